"""The grid: one sweep a corruption and direction, its cost, what it leaves out; and the engine's own numbers in it."""

from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import crosspatch as xp
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.referee import Setting, audit
from crosspatch.sites import Group
from crosspatch.tasks import corrupt
from zoo import fresh, make_pair, make_task, opened

LAYERS = 12


@pytest.fixture(scope="module")
def deep():
    return xp.open_model(fresh("llama", num_hidden_layers=LAYERS))


def deep_task(n=3):
    """Pairs of one layout whose key tokens differ, so that every corruption is possible."""
    return make_task(*(make_pair(8, (3,), seed=seed) for seed in range(n)))


@contextmanager
def counting(model):
    """Count the tokens that pass each block, by forward hooks of our own."""
    passed = Counter()
    blocks = model.module.get_submodule(model.anatomy.blocks)

    def count(_, given, __, number):
        passed[number] += given[0].shape[0] * given[0].shape[1]

    handles = [
        block.register_forward_hook(lambda m, given, out, number=number: count(m, given, out, number))
        for number, block in enumerate(blocks)
    ]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


def work_of(model, run):
    with counting(model) as passed:
        found = run()
    return sum(passed.values()), found


MANY = xp.AuditPlan(
    "attn.head, mlp.out",
    corruptions=("replace", "resample", "zero", "mean"),
    windows=(3, 5),
    edges=False,
)


def test_cost_of_the_whole_grid(deep):
    """4 corruptions × 5 metrics × 2 directions × 3 widths: at most 3 times the 8 sweeps of one metric, counted."""
    task = deep_task()
    whole, found = work_of(deep, lambda: audit(deep, task, plan=MANY))
    assert len(found.settings) == 4 * 5 * 2
    singles = 0
    for by in MANY.corruptions:
        for direction in MANY.directions:
            made = task if by == "replace" else corrupt(task, by)
            done, _ = work_of(deep, lambda made=made, d=direction: xp.patch(deep, made, sites=MANY.sites, direction=d))
            singles += done
    assert whole <= 3 * singles
    assert whole > singles  # windows are not free: the count sees them
    assert found.run.forwards <= 3 * found.run.single
    # Counted token-blocks are the plan's, but for the few forwards that find positions and masks.
    assert found.run.forwards == pytest.approx(whole / (8 * LAYERS), rel=0.1)
    assert found.run.single == pytest.approx(singles / (8 * LAYERS), rel=0.1)


def test_metrics_cost_no_runs(deep):
    """Five metrics are read off the runs of one."""
    plan = {"corruptions": ("replace",), "windows": (), "edges": False}
    one, _ = work_of(deep, lambda: audit(deep, deep_task(), plan=xp.AuditPlan(metrics=("logit_diff",), **plan)))
    five, found = work_of(deep, lambda: audit(deep, deep_task(), plan=xp.AuditPlan(**plan)))
    assert len({s.metric for s in found.settings}) == 5
    assert one == five
    assert found.run.forwards == found.run.single


def test_direct_effects_count(deep):
    plan = {"corruptions": ("replace",), "windows": ()}
    without = audit(deep, deep_task(), plan=xp.AuditPlan(edges=False, **plan))
    with_edges = audit(deep, deep_task(), plan=xp.AuditPlan(**plan))
    assert without.run.direct is None
    assert with_edges.run.forwards > without.run.forwards


def test_effects_are_those_of_patch(deep):
    """Each setting's numbers are what a sweep of its own gives; windows stand behind the single sites."""
    task = deep_task()
    found = audit(deep, task, plan=MANY)
    for setting in (Setting("replace", "denoise", "kl"), Setting("zero", "noise", "prob")):
        made = task if setting.corruption == "replace" else corrupt(task, setting.corruption)
        own = xp.patch(deep, made, sites=MANY.sites, direction=setting.direction, metric=setting.metric)
        effects = found.effects[setting]
        assert effects.sites[: len(own.sites)] == own.sites
        np.testing.assert_allclose(effects.raw[: len(own.sites)], own.raw, atol=1e-5)
        joint = [site for site in effects.sites[len(own.sites) :] if isinstance(site, Group)]
        assert {len(site.members) for site in joint} == {3, 5}
        alone = xp.patch(deep, made, sites=joint[:4], direction=setting.direction, metric=setting.metric)
        np.testing.assert_allclose(effects.raw[len(own.sites) :][:4], alone.raw, atol=1e-5)


# what is run, what is left out


def short(task, model="llama", **plan):
    given = {"sites": "attn.head@end, mlp.out@end", "windows": (), "edges": False, "draws": 2} | plan
    return audit(opened(model), task, plan=xp.AuditPlan(**given))


def corruptions_of(found):
    return list(dict.fromkeys(s.corruption for s in found.settings))


def test_default_corruptions():
    found = short(deep_task(), metrics=("logit_diff",))
    assert corruptions_of(found) == ["replace", "gaussian", "resample", "mean"]
    assert found.run.left_out == ()
    assert found.main == Setting("replace", "denoise", "logit_diff")


def test_an_alternative_goes_before_resampling():
    task = deep_task()
    other = tuple(make_pair(8, (3, 5), seed=seed).corrupt for seed in range(3))
    made = task.__class__(**{**task.__dict__, "alternatives": {"ABC": other, "DEF": other}})
    assert corruptions_of(short(made, metrics=("logit_diff",))) == ["replace", "gaussian", "ABC", "mean"]


def test_what_a_task_does_not_allow_is_named():
    """Pairs of layouts of their own have no mean and no other example; without wrong answers no logit difference."""
    uneven = make_task(make_pair(6, (2,)), make_pair(8, (3,), seed=1))
    found = short(uneven, metrics=("logit_diff",), windows=(2, 9), sites="mlp.out@end")
    assert corruptions_of(found) == ["replace", "gaussian", "zero"]
    left = " ".join(found.run.left_out)
    assert "corruption mean" in left
    assert "corruption resample" in left
    assert "windows of 9 layers" in left
    no_wrong = make_task(*(make_pair(8, (3,), seed=seed, wrong=()) for seed in range(3)), metric="logprob")
    found = short(no_wrong)
    assert {s.metric for s in found.settings} == {"prob", "logprob", "kl", "accuracy"}
    assert "metric logit_diff" in found.run.left_out[0]
    assert found.main.metric == "prob"


def test_what_was_asked_for_is_an_error_instead():
    uneven = make_task(make_pair(6, (2,)), make_pair(8, (3,), seed=1))
    with pytest.raises(BadInput, match="layout"):
        short(uneven, corruptions=("replace", "mean"))
    with pytest.raises(UnknownName, match="replace"):
        short(uneven, corruptions=("noisy",))
    with pytest.raises(UnknownName, match="logit_diff"):
        short(uneven, metrics=("accurate",))
    with pytest.raises(BadInput, match="direction"):
        short(uneven, directions=("up",))
    with pytest.raises(BadInput, match="nothing is left"):
        short(uneven, directions=())


def test_the_task_s_own_corruption_is_the_main_one():
    """A task that is corrupted by zero is audited by zero first, and by its replaced tokens besides."""
    found = short(corrupt(deep_task(), "zero"), metrics=("logit_diff",))
    assert corruptions_of(found) == ["zero", "replace", "gaussian", "resample"]
    own = xp.patch(opened("llama"), corrupt(deep_task(), "zero"), sites="attn.head@end")
    np.testing.assert_allclose(found.effects[found.main].raw[: len(own.sites)], own.raw, atol=1e-5)
    resampled = short(corrupt(deep_task(), "resample"), metrics=("logit_diff",))
    assert corruptions_of(resampled)[0] == "resample"
    assert "replace" not in corruptions_of(resampled)


def test_direct_effects_are_of_the_main_corruption_and_metric():
    """Else they could not be compared with total effects."""
    task, model = make_task(*deep_task().pairs, metric="prob"), opened("llama")
    found = short(task, corruptions=("zero", "replace"), metrics=("prob", "logit_diff"), edges=True)
    assert found.main == Setting("zero", "denoise", "logit_diff")
    assert found.run.direct.metric == "logit_diff"
    sites = [site for site in found.run.direct.sites]
    paths = xp.Paths(sites, through="nothing")
    own = xp.path_patch(model, corrupt(task, "zero"), paths=paths, metric="logit_diff")
    np.testing.assert_allclose(found.run.direct.raw, own.raw, atol=1e-5)
    assert short(task, directions=("denoise",), edges=True).run.direct is None


def test_windows_need_all_their_layers():
    """Only swept layers are joined, or sums could not be compared."""
    found = short(deep_task(), sites="mlp.out[0|1]@end", windows=(2, 3), metrics=("logit_diff",))
    groups = [str(s) for s in found.effects[found.main].sites if isinstance(s, Group)]
    assert groups == ["mlp.out[0:2]@end"]


def test_the_model_is_left_as_it_was(deep):
    before = {name: value.clone() for name, value in deep.module.state_dict().items()}
    audit(deep, deep_task(), plan=xp.AuditPlan("mlp.out@end", windows=(), draws=1))
    assert all(torch.equal(value, before[name]) for name, value in deep.module.state_dict().items())
