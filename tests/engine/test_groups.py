"""Sites patched together, windows of layers and cuts of attention equal their twins of plain hooks."""

import random

import numpy as np
import pytest

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.engine import Effects, cuts, group, patch, summed, windows
from crosspatch.sites import Edge, Group, Site
from naive.joint import joint_effect, knockout_effect, part_of
from zoo import ZOO, make_pair, make_task, module_of, opened

PAIRS = (make_pair(6, (2,)), make_pair(8, (3, 5), seed=1))
TASK = make_task(*PAIRS)


def score(pair):
    right, wrong = ([answer[0] for answer in side] for side in (pair.right, pair.wrong))
    return lambda logits: float(logits[right].double().mean() - logits[wrong].double().mean())


def random_groups(name, count=6):
    """Groups of two to four sites of any kinds and layers, whose writes do not overlap."""
    rng, units = random.Random(name), opened(name).anatomy.units()
    kinds = sorted(ZOO[name].kinds - {"logits", "attn.pattern"})
    found = []
    for number in range(count):
        sites = {}
        while len(sites) < rng.randint(2, 4):
            kind = rng.choice(kinds)
            layer = None if kind == "embed" else rng.randrange(3)
            unit = rng.choice([None, 0, units[kind] - 1]) if kind in units else None
            place = rng.choice([3, "end", -2, "all"])
            # One site a kind and layer: the twin does not say which of two overlapping writes stands.
            sites.setdefault((kind, layer), Site(kind, layer, unit, place))
        found.append(Group(f"group {number}", tuple(sites.values())))
    return found


@pytest.mark.parametrize("name", sorted(ZOO))
def test_groups_equal_one_forward_with_several_hooks(name):
    """Whatever is patched together, in whatever blocks, both ways."""
    groups = random_groups(name)
    for direction in ("denoise", "noise"):
        effects = patch(opened(name), TASK, sites=groups, direction=direction)
        expected = np.zeros_like(effects.raw)
        for i, each in enumerate(groups):
            for j, pair in enumerate(PAIRS):
                base, source = (pair.corrupt, pair.clean) if direction == "denoise" else (pair.clean, pair.corrupt)
                parts = [part_of(site, pair.names) for site in each.members]
                module, anatomy = module_of(name), opened(name).anatomy
                expected[i, j] = joint_effect(module, anatomy, base, source, parts=parts, score=score(pair))
        np.testing.assert_allclose(effects.raw, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gemma3", "qwen3"])
def test_patterns_in_a_group_weigh_the_rows_own_values(name):
    """A patched pattern above a patched stream uses the values of the patched run, not of the base run."""
    group_ = Group("both", (Site("resid.pre", 1, None, 3), Site("attn.pattern", 2, 1, "end")))
    alone = Group("alone", (Site("resid.pre", 1, None, 3), Site("attn.pattern", 2, None, "end")))
    effects = patch(opened(name), TASK, sites=[group_, alone])
    for i, each in enumerate((group_, alone)):
        for j, pair in enumerate(PAIRS):
            parts = [part_of(site, pair.names) for site in each.members]
            twin = joint_effect(
                module_of(name), opened(name).anatomy, pair.corrupt, pair.clean, parts=parts, score=score(pair)
            )
            assert effects.raw[i, j] == pytest.approx(twin, abs=3e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gemma3", "mistral", "gpt_oss", "gpt_neox", "olmo2"])
def test_cut_attention_equals_a_masked_forward(name):
    """One head or all, one layer or all above it; sliding windows, sinks and soft caps included."""
    model = opened(name)
    asked = [*cuts(model, "end", 3), *cuts(model, "end", 2, heads=[1], width=1)]
    effects = patch(model, TASK, sites=asked, direction="noise")
    assert np.abs(effects.raw).max() > 1e-3
    for i, each in enumerate(asked):
        for j, pair in enumerate(PAIRS):
            edges = [(e.layer, e.head, [pair.names["end"]], [e.key]) for e in each.members if isinstance(e, Edge)]
            twin = knockout_effect(module_of(name), model.anatomy, pair.clean, cuts=edges, score=score(pair))
            assert effects.raw[i, j] == pytest.approx(twin, abs=3e-5)


def test_cutting_everything_is_refused():
    """A query must keep a key."""
    edges = tuple(Edge(1, 1, key) for key in (0, 1))
    with pytest.raises(BadInput, match=r"leaves nothing to attend to"):
        patch(opened("gpt2"), TASK, sites=[Group("all of it", edges)], direction="noise")
    with pytest.raises(BadInput, match=r"Use direction='noise'"):
        patch(opened("gpt2"), TASK, sites=cuts(opened("gpt2"), "end", 2))
    with pytest.raises(BadInput, match=r"attn.pattern cannot be used"):
        cuts(opened("bloom"), "end", 2)


def test_a_later_key_is_no_edge():
    """A causal model reads nothing there, so there is nothing to cut and nothing to run."""
    effects = patch(opened("llama"), TASK, sites=[Group("later", (Edge(0, 2, "end"),))], direction="noise")
    assert (effects.raw == 0).all()


def test_windows_are_full_and_stand_at_their_middle():
    """Three layers have two windows of two and one of three; a window of one is the site itself."""
    model = opened("gpt2")
    two = windows(model, TASK, "mlp.out", 2, positions=["end"])
    assert [(w.name, w.layer, w.kind) for w in two] == [
        ("mlp.out[0:2]@end", 1, "mlp.out ×2"),
        ("mlp.out[1:3]@end", 2, "mlp.out ×2"),
    ]
    one = patch(model, TASK, sites=windows(model, TASK, "mlp.out", 1, positions=[3, "end"]))
    np.testing.assert_array_equal(one.raw, patch(model, TASK, sites="mlp.out@3|end").raw[[0, 1, 2, 3, 4, 5]])
    with pytest.raises(BadInput, match=r"this model has 3, give 1 to 3"):
        windows(model, TASK, "mlp.out", 4)


def test_summed_windows_add_single_layers():
    """The baseline of joint windows: same windows, sums of single effects; equal to them only without interaction."""
    model = opened("gpt2")
    single = patch(model, TASK, sites="mlp.out@3|end")
    sums = summed(single, "mlp.out", 2)
    joint = patch(model, TASK, sites=windows(model, TASK, "mlp.out", 2, positions=[3, "end"]))
    assert set(map(str, sums.sites)) == set(map(str, joint.sites))
    at = {str(site): row for site, row in zip(single.sites, single.raw, strict=True)}
    for site, row in zip(sums.sites, sums.raw, strict=True):
        assert isinstance(site, Group)
        np.testing.assert_allclose(row, sum(at[str(member)] for member in site.members), rtol=1e-6)
    # The last two MLPs at the last token of a pre-norm model act on one another only through the second's norm.
    assert not np.allclose(sums.raw, joint.raw)
    with pytest.raises(UnknownName):
        summed(single, "attn.out", 2)
    with pytest.raises(BadInput, match=r"were not all swept"):
        summed(patch(model, TASK, sites="mlp.out[0|2]@end"), "mlp.out", 2)


def test_a_group_of_all_that_a_layer_adds_is_the_stream():
    """Attention and MLP output of every layer, and the embedding, together are the source run."""
    model = opened("gpt2")
    whole = group(model, TASK, "embed@all, attn.out@all, mlp.out@all", name="everything")
    effects = patch(model, TASK, sites=[whole])
    np.testing.assert_allclose(effects.raw[0], effects.gap, atol=1e-5)
    assert "everything" in effects.finding()


def test_groups_are_saved_and_drawn(tmp_path):
    """Files keep the members; maps, tables and pages show groups by name or at their layer."""
    model = opened("gpt2")
    asked = [*windows(model, TASK, "mlp.out", 2), group(model, TASK, "attn.head[0|1, 1]@end", name="pair of heads")]
    effects = patch(model, TASK, sites=asked)
    loaded = Effects.load(effects.save(tmp_path / "run"))
    assert loaded.sites == effects.sites
    assert effects.grid("mlp.out ×2").values.shape[0] == 3
    assert "pair of heads" in repr(effects.top(100))
    page = effects.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "mlp.out ×2" in page
    assert "pair of heads" in page


def test_bad_groups_are_refused():
    """Without a name, without sites, with one twice, with a site that has no position or does not exist."""
    site = Site("mlp.out", 0, None, "end")
    for name, members in (("", (site,)), ("empty", ()), ("twice", (site, site))):
        with pytest.raises(BadInput):
            Group(name, members)
    with pytest.raises(BadInput, match=r"say at which position"):
        patch(opened("gpt2"), TASK, sites=[Group("nowhere", (Site("mlp.out", 0),))])
    with pytest.raises(UnknownName, match=r"layers 0..2"):
        patch(opened("gpt2"), TASK, sites=[Group("far", (Site("mlp.out", 9, None, "end"),))])
