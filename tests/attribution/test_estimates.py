"""Estimates against twins that are written from the papers, on the real classes of every family."""

import numpy as np
import pytest
import torch

import zoo
from crosspatch import attribute, patch
from crosspatch.engine import Options
from crosspatch.sites import Group, Site, resolve_position
from naive import estimates as naive
from naive.patching import hook

NAMES = sorted(zoo.ZOO)
ROUTED = [name for name in NAMES if not zoo.ZOO[name].own_attention]
LAYERS = 3


def close(found, expected, rtol=2e-4):
    np.testing.assert_allclose(found, expected, atol=rtol * max(np.nanmax(np.abs(expected)), 1e-6), rtol=0)


def spread(found):
    return float(np.nanmax(np.abs(found.raw)))


class ByHand:
    """One pair of one family: its runs by plain hooks, at the spots that a person read off the code."""

    def __init__(self, name, pair, direction="denoise", kernel=None):
        self.beast, self.module = zoo.ZOO[name], zoo.module_of(name, kernel=kernel)
        self.blocks = list(self.module.get_submodule(self.beast.blocks))
        base, source = (pair.corrupt, pair.clean) if direction == "denoise" else (pair.clean, pair.corrupt)
        self.base, self.source, self.pair = base, source, pair
        spots = {(kind, i): self.spot(kind, i) for kind in self.beast.spots for i in range(LAYERS)}
        # embeddings, and what passes between the blocks
        spots |= {("resid.pre", i): (block, "in") for i, block in enumerate(self.blocks)}
        self.spots = {f"{kind} {i}": spot for (kind, i), spot in spots.items()}
        self.values = naive.tracked(self.module, base, self.spots)
        self.others = naive.tracked(self.module, source, self.spots)

    def spot(self, kind, layer):
        path, side = self.beast.spots[kind]
        return self.blocks[layer].get_submodule(path), side

    def change(self, kind, layer):
        name = f"{kind} {layer}"
        return naive.flat(self.others[name]).double() - naive.flat(self.values[name]).double()

    def atp(self, kind, layer, gradient=None):
        name = f"{kind} {layer}"
        gradient = self.values[name].grad if gradient is None else gradient[name]
        return naive.atp(self.values[name], self.others[name], gradient)

    def expected(self, site, product):
        """Sum change · gradient `[pos, width]` over a site's positions and columns."""
        columns = self.beast.columns(site.kind, site.unit) if site.kind in self.beast.spots else slice(None)
        rows = product[:, columns]
        if site.position == "all":
            return float(rows.sum())
        return float(rows[resolve_position(site.position, self.pair.names, len(rows))].sum())


def sites_of(name, kinds=None):
    kinds = kinds or ["resid.pre", *zoo.ZOO[name].spots]
    return ", ".join(f"{kind}@*" if kind != "attn.v" else kind for kind in kinds if kind != "mlp.hidden")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", NAMES)
def test_atp_is_change_times_gradient(name, direction):
    """Every kind, layer, head and position of every family, in packed pairs of unequal length."""
    task = zoo.make_task(*zoo.uneven())
    found = attribute(zoo.opened(name), task, sites=sites_of(name) + ", resid.post@*", direction=direction)
    for number, pair in enumerate(task.pairs):
        hand = ByHand(name, pair, direction)
        kept = [i for i, s in enumerate(found.sites) if s.kind != "resid.post" and not np.isnan(found.raw[i, number])]
        expected = [hand.expected(s, hand.atp(s.kind, s.layer)) for s in (found.sites[i] for i in kept)]
        close(found.raw[kept, number], np.array(expected))
    after = [i for i, s in enumerate(found.sites) if s.kind == "resid.post" and s.layer < LAYERS - 1]
    before = {(s.layer, s.position): i for i, s in enumerate(found.sites) if s.kind == "resid.pre"}
    same = [before[found.sites[i].layer + 1, found.sites[i].position] for i in after]
    np.testing.assert_array_equal(found.raw[after], found.raw[same])


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
def test_neurons_and_the_middle_of_the_stream(name):
    """Neurons are columns of one product; the middle stream moves as what attention adds, and with what entered."""
    task = zoo.make_task(zoo.make_pair(8, (3,)))
    found = attribute(zoo.opened(name), task, sites="mlp.hidden[*, 0:20]@5|7, resid.mid@*")
    hand = ByHand(name, task.pairs[0])
    for i, site in enumerate(found.sites):
        if site.kind == "mlp.hidden":
            expected = hand.expected(site, hand.atp(site.kind, site.layer))
        else:
            change = hand.change("attn.out", site.layer) + hand.change("resid.pre", site.layer)
            gradient = naive.flat(hand.values[f"attn.out {site.layer}"].grad).double()
            expected = float((change * gradient)[site.position].sum())
        assert found.raw[i, 0] == pytest.approx(expected, abs=2e-4 * spread(found))


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3", "bloom", "opt", "mixtral"])
def test_graddrop_zeroes_each_block_in_turn(name):
    """Mean of magnitudes over gradients of which each passes all blocks' contributions but one's (equation 11)."""
    task = zoo.make_task(*zoo.uneven()[:2])
    kinds = ["attn.head", "attn.v", "mlp.out", "attn.out"]
    found = attribute(zoo.opened(name), task, sites=sites_of(name, kinds) + ", resid.pre@*", by="atp-drop")
    sign = -1 if found.mean_gap < 0 else 1
    for number, pair in enumerate(task.pairs):
        hand = ByHand(name, pair)
        blocks = [[hand.spot("attn.out", i), hand.spot("mlp.out", i)] for i in range(LAYERS)]
        gradients = naive.drops(hand.module, hand.base, hand.spots, blocks)
        for i, site in enumerate(found.sites):
            if np.isnan(found.raw[i, number]):
                continue
            each = [abs(hand.expected(site, hand.atp(site.kind, site.layer, g))) for g in gradients]
            expected = sum(each) / (LAYERS if site.kind == "resid.pre" else LAYERS - 1)
            assert sign * found.raw[i, number] == pytest.approx(expected, abs=2e-4 * spread(found))


@pytest.mark.parametrize("name", ROUTED)
def test_queries_and_keys_act_through_the_softmax(name):
    """Pattern of a run with one query (one key) patched, minus the base pattern, times the pattern's own gradient."""
    pair = zoo.make_pair(7, (2, 4))
    model = zoo.opened(name)
    found = attribute(model, zoo.make_task(pair), sites="attn.q@*, attn.k@*, attn.k[1]@all", by="atp-qk")
    hand = ByHand(name, pair, kernel="eager")
    base = [naive.attention(hand.module, hand.base, layer) for layer in range(LAYERS)]
    for i, site in enumerate(found.sites):
        pattern, slope = base[site.layer]
        value = hand.others[f"{site.kind} {site.layer}"].detach()
        columns = hand.beast.columns(site.kind, site.unit)
        places = range(7) if site.position == "all" else [site.position]
        write = writing(value, places, columns)
        moved = naive.attention(hand.module, hand.base, site.layer, (*hand.spot(site.kind, site.layer), write))[0]
        expected = float(((moved - pattern).double() * slope.double()).sum())
        assert found.raw[i, 0] == pytest.approx(expected, abs=5e-4 * spread(found)), site


def writing(value, places, columns):
    def write(present):
        out = present.clone().reshape(-1, present.shape[-1])
        for place in places:
            out[place, columns] = value.reshape(out.shape)[place, columns]
        return out.reshape(present.shape)

    return write


def test_atp_star_is_graddrop_through_the_softmax():
    """In the last block there is nothing above to drop: AtP* is the fix itself, as a magnitude."""
    model, task = zoo.opened("qwen3"), zoo.make_task(*zoo.uneven())
    sites = "attn.q@*, attn.k@*, attn.head@*"
    star, fixed, drop = (attribute(model, task, sites=sites, by=by) for by in ("atp*", "atp-qk", "atp-drop"))
    last = [i for i, s in enumerate(star.sites) if s.layer == LAYERS - 1]
    close(np.abs(star.raw[last]), np.abs(fixed.raw[last]))
    heads = [i for i, s in enumerate(star.sites) if s.kind == "attn.head"]
    np.testing.assert_array_equal(star.raw[heads], drop.raw[heads])
    queries = [i for i, s in enumerate(star.sites) if s.kind == "attn.q" and s.layer == 0]
    assert np.abs(star.raw[queries] - drop.raw[queries]).max() > 1e-3 * np.abs(star.raw).max()


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_gradients_along_the_inputs(name):
    """The mean gradient over prompts whose embeddings lie between base and source, times source − base."""
    pair = zoo.make_pair(7, (2, 4))
    kinds = ["attn.head", "mlp.out", "attn.v"]
    sites = sites_of(name, kinds) + ", resid.pre@*"
    found = attribute(zoo.opened(name), zoo.make_task(pair), sites=sites, by="ig", steps=3, points="right")
    hand = ByHand(name, pair)
    ends = hand.values["resid.pre 0"], hand.others["resid.pre 0"]
    visits = naive.along(hand.module, hand.base, (hand.blocks[0], "in"), ends, (1 / 3, 2 / 3, 1.0))
    total = {key: 0.0 for key in hand.spots}
    for visit in visits.values():
        seen = naive.tracked(hand.module, hand.base, hand.spots, written=[(hand.blocks[0], "in", visit)])
        for key in set(seen) - {"resid.pre 0"}:
            total[key] = total[key] + seen[key].grad / 3
    for i, site in enumerate(found.sites):
        if (site.kind, site.layer) == ("resid.pre", 0):
            continue
        expected = hand.expected(site, hand.atp(site.kind, site.layer, total))
        assert found.raw[i, 0] == pytest.approx(expected, abs=3e-4 * spread(found))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "gemma2"])
@pytest.mark.parametrize("kind", ["resid.pre", "attn.head", "mlp.out", "attn.k"])
def test_gradients_along_one_layers_activations(name, kind):
    """The mean gradient over runs in which one kind of one layer lies between base and source, everywhere at once."""
    pair = zoo.make_pair(7, (2, 4))
    site = f"{kind}[1]@*" if kind in ("resid.pre", "mlp.out") else f"{kind}[1, *]@*"
    found = attribute(zoo.opened(name), zoo.make_task(pair), sites=site, by="ig-activations", steps=2, points="left")
    hand = ByHand(name, pair)
    spot = hand.spot(kind, 1) if kind != "resid.pre" else (hand.blocks[1], "in")
    value, other = (values[f"{kind} 1"].detach() for values in (hand.values, hand.others))
    columns = hand.beast.columns(kind, None)
    total = torch.zeros_like(value.reshape(-1, value.shape[-1]))
    for alpha in (0.0, 0.5):
        part = value.clone()
        part[..., columns] += alpha * (other - value)[..., columns]
        leaf = part.requires_grad_()
        handle = hook(*spot, lambda _, leaf=leaf: leaf)
        with torch.enable_grad():
            score = naive.score(hand.module(input_ids=torch.tensor([list(hand.base)])).logits[0])
            (gradient,) = torch.autograd.grad(score, leaf)
        handle.remove()
        total += gradient.reshape(total.shape) / 2
    product = total.double() * naive.flat(other - value).double()
    expected = [hand.expected(s, product) for s in found.sites]
    close(found.raw[:, 0], np.array(expected), rtol=3e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_integrated_gradients_are_complete(name):
    """Over inputs, what enters the first block adds up to the gap; over activations, a layer to its joint patch."""
    model, task = zoo.opened(name), zoo.make_task(*zoo.uneven())
    gaps = [attribute(model, task, sites="resid.pre[0]@all", by="ig", steps=steps) for steps in (4, 64)]
    missed = [np.abs(np.nansum(found.raw, axis=0) - found.gap).max() for found in gaps]
    assert missed[1] < 2e-2 * np.abs(gaps[1].gap).max()
    assert missed[1] <= missed[0]
    pair = zoo.make_task(zoo.make_pair(8, (3,)))
    parts = attribute(model, pair, sites="attn.head[1]@*", by="ig-activations", steps=64)
    members = tuple(Site("attn.head", 1, unit, "all") for unit in range(4))
    together = patch(model, pair, sites=[Group("all heads", members)])
    assert float(parts.raw.sum()) == pytest.approx(float(together.raw[0, 0]), rel=2e-2)


@pytest.mark.parametrize("by", ["atp", "atp*", "ig", "ig-activations"])
def test_cuts_and_checkpoints_change_nothing(by):
    """Pairs held one at a time, in another order, or blocks run twice give the same estimates."""
    pairs = zoo.uneven()
    model, sites = zoo.opened("qwen3"), "resid.pre, resid.mid, attn.q@*, attn.head, mlp.out"
    whole = attribute(model, zoo.make_task(*pairs), sites=sites, by=by)
    cut = attribute(model, zoo.make_task(*pairs[::-1]), sites=sites, by=by, options=Options(memory=1))
    twice = attribute(model, zoo.make_task(*pairs), sites=sites, by=by, checkpoint=True)
    close(cut.raw[:, ::-1], whole.raw)
    close(twice.raw, whole.raw)
    for name in ("base", "source"):
        close(getattr(cut, name)[::-1], getattr(whole, name))
        close(getattr(whole, name), getattr(patch(model, zoo.make_task(*pairs), sites="resid.pre[0]@0"), name))
