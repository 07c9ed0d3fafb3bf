"""Path patching equals its twin of plain hooks, in every family; the local shortcut equals the published way."""

import numpy as np
import pytest

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.engine import Options, Paths, path_patch, split_effects
from crosspatch.engine.patching import patch
from crosspatch.engine.paths import path_sweep
from crosspatch.models.open import open_model
from crosspatch.sites import parse_site
from naive.joint import part_of
from naive.patching import hook
from naive.path import path_effect
from zoo import ZOO, fresh, make_pair, make_task, module_of, opened

PAIRS = (make_pair(6, (2,)), make_pair(8, (3, 5), seed=1))
FAMILIES = sorted(name for name, beast in ZOO.items() if {"attn.head", "attn.q", "mlp.out"} <= beast.kinds)
SENDERS = [parse_site(text) for text in ("attn.head[0, 1]@end", "attn.head[1, 0]@all", "mlp.out[0]@3", "mlp.out[1]@-1")]


def score(pair):
    right, wrong = ([answer[0] for answer in side] for side in (pair.right, pair.wrong))
    return lambda logits: float(logits[right].double().mean() - logits[wrong].double().mean())


def by_hand(name, paths, site):
    """The twin's effect of one sender on every pair, by default in the direction of noising."""
    module, anatomy = module_of(name), opened(name).anatomy
    found = []
    for pair in PAIRS:
        base, source = (pair.clean, pair.corrupt) if paths.direction == "noise" else (pair.corrupt, pair.clean)
        to = paths.to if isinstance(paths.to, str) else [part_of(each, pair.names) for each in paths.to]
        frozen = ("attn.head", "mlp.out") if paths.through == "nothing" else ("attn.head",)
        sender = [part_of(site, pair.names)]
        found.append(
            path_effect(module, anatomy, base, source, sender=sender, receivers=to, score=score(pair), frozen=frozen)
        )
    return found


def check(name, paths, sites=SENDERS):
    effects = path_patch(opened(name), make_task(*PAIRS), paths=paths)
    expected = np.array([by_hand(name, paths, site) for site in sites])
    np.testing.assert_allclose(effects.raw, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))
    return effects


@pytest.mark.parametrize("name", FAMILIES)
def test_paths_to_the_logits_equal_the_twin(name):
    """Heads held, MLPs recomputed: every family that has heads to hold."""
    effects = check(name, Paths(SENDERS))
    assert np.abs(effects.raw).max() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_paths_to_queries_keys_and_values_equal_the_twin(name):
    """Receivers in two layers at once; what is written there goes on through the whole model."""
    kinds = ZOO[name].kinds
    texts = ["attn.q[1, 1]@end", "attn.k[2, 0]@all", "attn.v[2, 0]@all", "mlp.in[2]@end", "attn.q[2, 0]@3"]
    to = [parse_site(text) for text in texts if text.split("[", maxsplit=1)[0] in kinds]
    assert to
    check(name, Paths(SENDERS, to))


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "gpt_neox", "bloom"])
def test_edges_alone_equal_the_twin(name):
    """With MLPs held too, only the one edge from sender to receivers is left."""
    check(name, Paths(SENDERS, through="nothing"))
    check(name, Paths(SENDERS, [parse_site("attn.q[2, 1]@end")], through="nothing", direction="denoise"))


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen3"])
@pytest.mark.parametrize("to", ["logits", "attn.q[2, 1]@end, attn.v[2, 0]"])
def test_the_local_shortcut_equals_whole_rows(name, to):
    """One token a changed position gives what all positions give."""
    model, task = opened(name), make_task(*PAIRS)
    senders = "attn.head@3|end, mlp.out@2|end, resid.pre@3, attn.out@end"
    quick, full = (path_patch(model, task, paths=Paths(senders, to, local=local)) for local in (True, False))
    assert np.abs(quick.raw).max() > 1e-3
    np.testing.assert_allclose(quick.raw, full.raw, atol=1e-5)


def test_the_shortcut_runs_single_tokens():
    """A sender at the last position is one token in each block above it, and no more."""
    module = fresh("gpt2")
    model, task, seen = open_model(module), make_task(PAIRS[0]), []

    def note(value):
        seen.append(value.shape[:-1].numel())
        return value

    hook(module.transformer.h[2].mlp.c_fc, "in", note)
    path_patch(model, task, paths=Paths("attn.head@end"))
    runs = 2 * 6 - 2
    heads = 3 * model.anatomy.heads
    assert sum(seen) == runs + heads


def test_all_paths_from_the_last_sender_are_its_total_effect():
    """In the last block nothing else can pass a change on: path, edge and patch are one."""
    model, task = opened("llama"), make_task(*PAIRS)
    for site in ("mlp.out[2]@end", "attn.head[2, 1]@end"):
        total = patch(model, task, sites=site, direction="noise").raw
        np.testing.assert_allclose(path_patch(model, task, paths=Paths(site)).raw, total, atol=1e-5)


def test_total_is_direct_plus_indirect():
    """The three results belong to the same sites and add up; the last MLP has no indirect effect."""
    model, task = opened("gpt2"), make_task(*PAIRS)
    found = split_effects(model, task, sites="attn.head@end, mlp.out@end")
    np.testing.assert_allclose(found["direct"].raw + found["indirect"].raw, found["total"].raw, atol=1e-6)
    last = [i for i, site in enumerate(found["total"].sites) if str(site) == "mlp.out[2]@end"]
    np.testing.assert_allclose(found["indirect"].raw[last], 0, atol=1e-5)
    assert np.abs(found["indirect"].raw).max() > 1e-3


def test_pairs_that_do_not_fit_at_once_change_nothing():
    """With room for one pair at a time the numbers are the same."""
    model, task = opened("gpt2"), make_task(*PAIRS[::-1])
    paths = Paths("attn.head@end, mlp.out[0]@3", "attn.q[2, 1]@end, attn.k[2, 0]@3")
    plain, tight = (path_patch(model, task, paths=paths, options=Options(memory=m)) for m in (None, 20_000))
    assert tight.provenance["settings"]["plan"]["chunks"] == 2
    np.testing.assert_allclose(tight.raw, plain.raw, atol=1e-5)


def test_a_receiver_below_its_sender_receives_nothing():
    """What is computed before the sender cannot change."""
    effects = path_patch(opened("gpt2"), make_task(*PAIRS), paths=Paths("mlp.out[2]@end", "attn.q[1, 0]@end"))
    assert (effects.raw == 0).all()


def test_the_plan_counts_single_tokens():
    """The dry run of the shortcut is less work than that of whole rows."""
    model, task = opened("gpt2"), make_task(*PAIRS)
    quick, full = (path_sweep(model, task, Paths("attn.head@3", local=local)).plan() for local in (True, False))
    assert quick.rows == full.rows
    assert quick.token_blocks < full.token_blocks


def test_bad_paths_say_what_is_allowed():
    """Senders and receivers of a kind that cannot be, and ways that do not exist."""
    model, task = opened("gpt2"), make_task(*PAIRS)
    with pytest.raises(BadInput, match=r"attn.q\[0, 0\]@end cannot send a path: senders are"):
        path_patch(model, task, paths=Paths("attn.q[0, 0]@end"))
    with pytest.raises(BadInput, match=r"mlp.out\[2\]@end cannot receive a path: receivers are"):
        path_patch(model, task, paths=Paths("attn.head[0, 0]@end", "mlp.out[2]@end"))
    with pytest.raises(BadInput, match=r"through='heads'"):
        path_patch(model, task, paths=Paths("attn.head[0, 0]@end", through="heads"))
    with pytest.raises(UnknownName, match=r"layers 0..2"):
        path_patch(model, task, paths=Paths("attn.head[7, 0]@end"))
