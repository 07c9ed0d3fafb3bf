"""Sampled subsets: who is in them, what patching them does, and how samplings are joined."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import crosspatch.attribution.joint as joint_module
from crosspatch.attribution.joint import Asked, Ground, Joint
from crosspatch.attribution.subsets import Sampling, drawn, sample_subsets
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.engine import Options
from crosspatch.sites import Group, Site
from crosspatch.tasks import corrupt
from naive.joint import joint_effect, part_of
from zoo import make_pair, make_task, module_of, opened

PAIRS = (make_pair(6, (2,)), make_pair(8, (3, 5), seed=1))
TASK = make_task(*PAIRS)
SITES = (
    *(Site("attn.head", layer, head, "all") for layer in range(3) for head in (0, 3)),
    *(Site("mlp.out", layer, None, place) for layer in (0, 2) for place in (7, "end")),
    Site("resid.pre", 1, None, 3),
    Site("attn.out", 1, None, "mid"),
    Site("mlp.out", 1, None, 0),
)


def score(pair):
    right, wrong = pair.right[0][0], pair.wrong[0][0]
    return lambda logits: float(logits[right].double() - logits[wrong].double())


@cache
def sampled(name, direction="denoise"):
    return sample_subsets(opened(name), TASK, SITES, design=Sampling(40, 0.3, seed=2, asked=Asked(direction)))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma3", "bloom"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_effects_equal_one_forward_with_several_hooks(name, direction):
    """Overlapping members included: the stream below a head, a layer's attention over its heads."""
    subsets = sampled(name, direction)
    assert np.abs(subsets.effects).max() > 1e-2
    for member, effect, number in zip(subsets.membership, subsets.effects, subsets.pairs, strict=True):
        pair = PAIRS[number]
        base, source = (pair.corrupt, pair.clean) if direction == "denoise" else (pair.clean, pair.corrupt)
        parts = [part_of(site, pair.names) for site, flag in zip(SITES, member, strict=True) if flag]
        twin = joint_effect(module_of(name), opened(name).anatomy, base, source, parts=parts, score=score(pair))
        assert effect == pytest.approx(twin, abs=3e-5 * max(1.0, abs(twin)))


def test_nodes_that_a_pair_lacks_are_in_no_subset_of_it():
    subsets = sampled("gpt2")
    late = SITES.index(Site("mlp.out", 0, None, 7))
    short = subsets.pairs == 0
    assert not subsets.membership[short, late].any()
    assert subsets.membership[~short, late].any()
    assert subsets.ground.present[:, late].tolist() == [False, True]


def test_still_nodes_are_those_before_the_first_difference_and_behind_the_last_read():
    still = {site for site, flag in zip(SITES, sampled("gpt2").still, strict=True) if flag}
    assert still == {Site("mlp.out", 1, None, 0)}
    ground = Ground.of(opened("gpt2"), TASK, [Site("mlp.out", 2, None, 5)], asked=Asked())
    assert ground.live.tolist() == [[True], [False]]


def test_membership_is_as_frequent_as_asked():
    """Each node's count lies within 5 standard deviations, pairs come equally often, nodes are independent."""
    ground = Ground.of(opened("gpt2"), TASK, [*SITES[:6]], asked=Asked())
    design = Sampling(20_000, 0.2, skip=frozenset(SITES[:1]))
    packed, pairs = drawn(ground, design)
    members = np.unpackbits(packed, axis=1, count=6).astype(bool)
    assert not members[:, 0].any()
    tolerance = 5 * np.sqrt(0.2 * 0.8 / 20_000)
    np.testing.assert_allclose(members[:, 1:].mean(0), 0.2, atol=tolerance)
    assert pairs.mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(20_000))
    together = members[:, 1:].astype(float).T @ members[:, 1:] / 20_000
    np.testing.assert_allclose(together[~np.eye(5, dtype=bool)], 0.04, atol=5 * np.sqrt(0.04 / 20_000))
    assert (members.mean(1) == 0).mean() == pytest.approx(0.8**5, abs=5 * 0.5 / np.sqrt(20_000))


def test_seeds_repeat_and_parts_change_nothing(monkeypatch):
    ground = Ground.of(opened("gpt2"), TASK, SITES, asked=Asked())
    packed, pairs = drawn(ground, Sampling(50, 0.3, seed=4))
    monkeypatch.setattr("crosspatch.attribution.subsets._AT_ONCE", 30)
    again, same = drawn(ground, Sampling(50, 0.3, seed=4))
    np.testing.assert_array_equal(packed, again)
    np.testing.assert_array_equal(pairs, same)
    assert not np.array_equal(packed, drawn(ground, Sampling(50, 0.3, seed=5))[0])


def test_one_sweep_a_pair_and_equal_or_empty_subsets_run_once(monkeypatch):
    calls = []

    def counted(model, task, **settings):
        calls.append((len(task.pairs), len(settings["sites"])))
        return patch(model, task, **settings)

    patch = joint_module.patch
    monkeypatch.setattr(joint_module, "patch", counted)
    subsets = sample_subsets(opened("llama"), TASK, SITES[:2], design=Sampling(200, 0.5))
    assert calls == [(1, 3), (1, 3)]
    empty = ~subsets.membership.any(axis=1)
    assert empty.any()
    assert (subsets.effects[empty] == 0).all()
    assert subsets.complete
    assert subsets.spent == 100


def test_no_runs_at_all_where_nothing_can_change(monkeypatch):
    monkeypatch.setattr(joint_module, "patch", None)
    subsets = sample_subsets(opened("llama"), TASK, [Site("mlp.out", 0, None, 0)], design=Sampling(9, 0.5))
    assert (subsets.effects == 0).all()
    assert subsets.still.all()


def test_interrupted_samples_are_missing_and_end_the_sampling(monkeypatch):
    def interrupted(model, task, **settings):
        found = patch(model, task, **settings)
        found.raw[:] = np.nan
        calls.append(task)
        return found

    patch, calls = joint_module.patch, []
    monkeypatch.setattr(joint_module, "patch", interrupted)
    subsets = sample_subsets(opened("llama"), TASK, SITES, design=Sampling(20, 0.5))
    assert len(calls) == 1
    assert not subsets.complete


def test_joined_samples_are_both():
    design = Sampling(30, 0.3, seed=7)
    more = sample_subsets(opened("gpt2"), TASK, SITES, design=design)
    both = sampled("gpt2").joined(more)
    assert len(both) == 70
    np.testing.assert_array_equal(both.effects, np.concatenate([sampled("gpt2").effects, more.effects]))
    np.testing.assert_array_equal(both.membership[40:], more.membership)
    assert both.designs[1] == design


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 2}, "seed 2 was sampled already"),
        ({"p": 0.4}, "another p or other skipped"),
        ({"skip": frozenset(SITES[:1])}, "another p or other skipped"),
        ({"asked": Asked("noise")}, "of other sites, another model"),
    ],
)
def test_what_cannot_be_joined(change, words):
    design = replace(Sampling(5, 0.3, seed=3), **change)
    other = sample_subsets(opened("gpt2"), TASK, SITES, design=design)
    with pytest.raises(BadInput, match=words):
        sampled("gpt2").joined(other)


@pytest.mark.parametrize(("samples", "p"), [(1, 0.5), (0, 0.5), (9, 0.0), (9, 1.0), (9, -0.1), (9, float("nan"))])
def test_bad_designs(samples, p):
    with pytest.raises(BadInput, match="Give"):
        Sampling(samples, p)


def test_bad_questions():
    model, design = opened("gpt2"), Sampling(5, 0.5)
    with pytest.raises(BadInput, match="no sites"):
        sample_subsets(model, TASK, [], design=design)
    with pytest.raises(UnknownName, match=r"layers 0\.\.2"):
        sample_subsets(model, TASK, [Site("mlp.out", 9, None, 2)], design=design)
    with pytest.raises(BadInput, match="group"):
        sample_subsets(model, TASK, [Group("g", SITES[:2])], design=design)
    with pytest.raises(BadInput, match=r"mlp.out\[2\]@1 is to be skipped"):
        sample_subsets(model, TASK, SITES, design=replace(design, skip=frozenset([Site("mlp.out", 2, None, 1)])))
    with pytest.raises(BadInput, match="gaussian"):
        sample_subsets(model, corrupt(TASK, "gaussian", draws=2), SITES, design=design)


def test_noise_on_one_pair_averages_its_draws():
    task = corrupt(make_task(PAIRS[1]), "gaussian", draws=3)
    subsets = sample_subsets(opened("gpt2"), task, SITES[:3], design=Sampling(10, 0.5, seed=1))
    joint = Joint(opened("gpt2"), task, subsets.ground, Asked(), Options())
    whole = np.nan_to_num(joint.on_all(subsets.membership)[:, 0])  # an empty subset is NaN there
    np.testing.assert_allclose(whole, subsets.effects, atol=1e-5)


def test_a_journal_keeps_each_pair_apart(tmp_path):
    design = Sampling(40, 0.3, seed=2)
    options = Options(journal=tmp_path)
    first = sample_subsets(opened("gpt2"), TASK, SITES, design=design, options=options)
    again = sample_subsets(opened("gpt2"), TASK, SITES, design=design, options=options)
    np.testing.assert_array_equal(first.effects, again.effects)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pair 0", "pair 1"]
