"""Every rule on grids made by hand: a case where it fires, a case where it must not."""

from dataclasses import replace

import numpy as np
import pytest

from crosspatch.referee import Setting
from crosspatch.referee.rules import RULE_NAMES, RULES
from referee.made import HEADS, NEGATIVE, SERIAL, A, B, C, grid, heads, judge, with_prob, with_windows


def changed(run, **by_setting):
    """Replace the effects of some settings: keys are 'corruption_direction_metric' with + for a dot."""
    found = dict(run.effects)
    for key, effects in by_setting.items():
        found[Setting(*key.split("__"))] = effects
    return replace(run, effects=found)


def only_in(strong, **where):
    """Strong sites in settings that match; the serial heads elsewhere."""
    return lambda s: strong if all(getattr(s, part) == value for part, value in where.items()) else SERIAL


def test_a_clean_case_gets_no_finding():
    """Where every way says the same, the referee is silent, whatever the noise."""
    for seed in range(5):
        run = grid(
            SERIAL,
            corruptions=("replace", "gaussian", "zero", "ABC"),
            metrics=("logit_diff", "prob", "logprob", "kl"),
            direct=dict.fromkeys(SERIAL, 0.02),
            spread=0.2 + 0.05 * seed,
        )
        assert judge(run) == {}


def test_a_chaotic_case_gets_few_findings():
    """Eight sweeps with five metrics that all disagree are told in a dozen lines, not in thirty."""
    rng = np.random.default_rng(0)

    def chaos(_):
        return {str(HEADS[i]): float(rng.uniform(0.1, 0.9) * rng.choice([-1, 1])) for i in rng.permutation(40)[:6]}

    run = grid(
        chaos,
        corruptions=("replace", "gaussian", "mean", "ABC"),
        metrics=("logit_diff", "prob", "logprob", "kl", "accuracy"),
    )
    found = judge(run)
    assert "metric" in found
    assert "corruption" in found
    assert sum(len(each) for each in found.values()) <= 12
    assert len(found["metric"]) <= 3
    assert len(found["corruption"]) <= 3


def test_every_rule_has_a_name_and_every_finding_a_source():
    assert len(RULE_NAMES) == len(RULES)
    assert all(text.endswith(".") for text in RULE_NAMES.values())
    found = judge(grid({A: 0.5, B: 0.4}, n=3))
    assert all(each.source and each.text.endswith(".") for some in found.values() for each in some)


# what sweeps say themselves; corruptions that break nothing


def test_cautions_of_the_main_sweeps_are_passed_on_once():
    found = judge(grid(n=3))
    assert len(found["caution"]) == 1
    assert "Only 3 pairs" in found["caution"][0].text
    assert "caution" not in judge(grid(n=8))


def test_a_corruption_that_does_not_break_is_named_and_left_out():
    run = grid(corruptions=("replace", "zero", "mean"))
    void = {A: -0.9, NEGATIVE: 0.9}
    broken = {
        setting: heads(void, gap=0.02, direction=setting.direction, metric=setting.metric)
        for setting in run.effects
        if setting.corruption == "zero"
    }
    found = judge(replace(run, effects={**run.effects, **broken}))
    assert set(found) == {"breaks"}
    assert len(found["breaks"]) == 1
    assert "zero" in found["breaks"][0].text
    assert "mean" not in found["breaks"][0].text
    assert "0.02" in found["breaks"][0].text
    # With a gap of its own it would have been compared, and found to differ.
    telling = {s: heads(void, direction=s.direction, metric=s.metric) for s in broken}
    assert "corruption" in judge(replace(run, effects={**run.effects, **telling}))


def test_a_gap_of_the_other_sign_does_not_break_the_behaviour():
    run = grid(corruptions=("replace", "zero"))
    turned = {
        s: replace(e, base=e.source, source=e.base, raw=-e.raw)
        for s, e in run.effects.items()
        if s.corruption == "zero"
    }
    assert set(judge(replace(run, effects={**run.effects, **turned}))) == {"breaks"}


# gates


@pytest.mark.parametrize(
    ("denoise", "noise", "gate"),
    [
        ({A: 0.02, B: 0.0}, {A: 0.9, B: 0.8}, "AND"),
        ({A: 0.9, B: 0.8}, {A: 0.02, B: 0.0}, "OR"),
        ({A: 0.5, B: 0.4}, {A: 0.5, B: 0.4}, "ADDER"),
    ],
)
def test_gates_are_told_apart(denoise, noise, gate):
    run = grid(lambda s: denoise if s.direction == "denoise" else noise)
    found = {rule: each for rule, each in judge(run).items() if rule.startswith("gate")}
    assert set(found) == {f"gate.{gate}"}
    assert found[f"gate.{gate}"][0].sites == (A, B)
    assert f"denoise {denoise[A]:.2f}, noise {noise[A]:.2f}" in found[f"gate.{gate}"][0].text
    # The gate explains why directions disagree: that is not said twice.
    assert "direction" not in judge(run)


@pytest.mark.parametrize(
    ("denoise", "noise"),
    [
        ({A: 0.9, B: 0.95}, {A: 0.9, B: 0.95}),  # each is the only road
        ({A: 0.09}, {A: 0.0}),  # weak
        ({A: 0.2}, {A: 0.4}),  # twice, not three times
        ({A: -0.5}, {A: 0.9}),  # it hurts one way: no gate does
        ({A: 0.4}, {A: 0.4}),  # a single part is no sum
    ],
)
def test_no_gate(denoise, noise):
    found = judge(grid(lambda s: denoise if s.direction == "denoise" else noise))
    assert not [rule for rule in found if rule.startswith("gate")]


def test_a_gate_needs_pairs_that_agree():
    """A mean of 0.15 of pairs that go both ways is no AND."""
    run = grid({}, metrics=("logit_diff",), corruptions=("replace",))
    noise = heads({A: 0.15}, direction="noise", metric="logit_diff")
    row = [str(s) for s in noise.sites].index(A)
    steady = changed(run, replace__noise__logit_diff=noise)
    raw = noise.raw.copy()
    raw[row] = -2 * (0.15 + np.tile([-1, 1], 6))  # the same mean
    wild = changed(run, replace__noise__logit_diff=replace(noise, raw=raw))
    assert "gate.AND" in judge(steady)
    assert "gate.AND" not in judge(wild)


# backup


def test_backup_where_direct_exceeds_total():
    run = grid({A: 0.3, B: 0.9}, direct={A: 0.9, B: 0.9})
    found = judge(run)["backup"]
    assert found[0].sites == (A,)
    assert f"{A} (direct 0.90, total 0.30)" in found[0].text


@pytest.mark.parametrize(
    "direct",
    [{A: 0.05}, {A: 0.9, B: 0.9}, {}, None],
    ids=["weak", "as much", "nothing", "not measured"],
)
def test_no_backup(direct):
    assert "backup" not in judge(grid({A: 0.85, B: 0.9}, direct=direct))


def test_backup_needs_pairs_that_agree():
    run = grid({A: 0.2}, direct={A: 0.3})
    assert "backup" in judge(run)
    raw = run.direct.raw.copy()
    row = [str(s) for s in run.direct.sites].index(A)
    raw[row] = np.where(np.arange(12) == 0, 0.3 * 12 * -2.0, 0.0)
    assert "backup" not in judge(replace(run, direct=replace(run.direct, raw=raw.astype(np.float32))))


# directions


def test_directions_that_find_other_sites():
    """Differences that no gate explains: one way a head hurts."""
    run = grid(lambda s: {A: 0.9, B: 0.9 if s.direction == "denoise" else -0.9})
    found = judge(run)["direction"]
    assert len(found) == 1
    assert found[0].sites == (B,)
    assert "other sign" in found[0].text


def test_directions_that_agree():
    assert "direction" not in judge(grid(lambda s: {A: 0.9, B: 0.6 if s.direction == "denoise" else 0.5}))
    assert "direction" not in judge(grid(directions=("noise",)))


# saturation


def test_saturation_names_what_probability_hides():
    run = grid(lambda s: {A: 0.9, NEGATIVE: -0.5} if s.metric == "logit_diff" else {A: 0.9})
    found = judge(with_prob(run, 0.01, 0.6))
    assert found["saturation"][0].sites == (NEGATIVE,)
    assert "0.010" in found["saturation"][0].text
    assert len(found["saturation"]) == 1
    # Said once: probability is not also said to differ in denoising.
    assert all("denoise" not in each.text for each in found.get("metric", []))


def test_saturation_at_the_top_in_noising():
    run = grid(lambda s: {A: 0.9, NEGATIVE: -0.5} if s.metric == "logit_diff" else {A: 0.9}, directions=("noise",))
    found = judge(with_prob(run, 0.98, 0.3, direction="noise"))["saturation"]
    assert "0.980 and cannot rise above 1" in found[0].text


@pytest.mark.parametrize(
    ("strong", "start"),
    [
        ({A: 0.9}, 0.01),  # nothing works against the behaviour
        ({A: 0.9, NEGATIVE: -0.5}, 0.3),  # there is room
    ],
)
def test_no_saturation(strong, start):
    run = with_prob(grid(lambda s: strong if s.metric == "logit_diff" else {A: 0.9}), start, 0.7)
    run = with_prob(run, 0.7, start, direction="noise")
    assert "saturation" not in judge(run)


def test_saturation_without_a_logit_difference_to_tell():
    """Without wrong answers, the room alone is warned of."""
    run = with_prob(grid({A: 0.9}, metrics=("prob",), directions=("denoise",)), 0.01, 0.6)
    assert "saturation" in judge(run)
    assert judge(run)["saturation"][0].sites == ()


# metrics, corruptions


def test_a_metric_that_finds_other_sites():
    run = grid(only_in({A: 0.9, NEGATIVE: 0.9}, metric="kl"), metrics=("logit_diff", "prob", "kl"))
    found = judge(run)["metric"]
    assert len(found) == 1
    assert set(found[0].sites) == {B, C, NEGATIVE}
    assert "by kl instead of logit_diff" in found[0].text
    assert "(denoise and noise)" in found[0].text
    assert f"misses {B}, {C}" in found[0].text


def test_metrics_that_say_the_same_are_told_together():
    run = grid(
        lambda s: SERIAL if s.metric in ("logit_diff", "right_logit") else {A: 0.9, NEGATIVE: 0.9},
        metrics=("logit_diff", "prob", "kl", "right_logit"),
    )
    found = judge(run)["metric"]
    assert len(found) == 1
    assert "prob and kl" in found[0].text
    assert "right_logit" not in found[0].text


def test_a_corruption_that_finds_other_sites():
    found = judge(grid(only_in({A: 0.9, NEGATIVE: -0.9}, corruption="gaussian", direction="noise")))["corruption"]
    assert len(found) == 1
    assert "(noise)" in found[0].text
    assert "prefer replaced tokens" in found[0].text


def test_order_alone_can_differ():
    """Six heads found both ways, in reverse order."""
    names = [str(site) for site in HEADS[::7]]
    up, down = (
        {name: 0.3 + 0.1 * (i if rising else 5 - i) for i, name in enumerate(names)} for rising in (True, False)
    )
    found = judge(grid(lambda s: down if s.corruption == "gaussian" else up))["corruption"]
    assert "rank correlation -1.00" in found[0].text
    assert found[0].sites == ()


def test_another_question_is_no_contradiction():
    """An alternative that changes other words is told apart from one that changes the same words otherwise."""
    run = grid(only_in({NEGATIVE: 0.9}, corruption="ABC"), corruptions=("replace", "ABC"))
    assert "corruption" in judge(run)

    def elsewhere(view):
        tokens = (*view.clean_tokens[:2], " Zoe", *view.clean_tokens[3:])
        return replace(view, corrupt_tokens=tokens)

    other = {
        s: replace(e, examples=tuple(map(elsewhere, e.examples)))
        for s, e in run.effects.items()
        if s.corruption == "ABC"
    }
    found = judge(replace(run, effects={**run.effects, **other}))
    assert "corruption" not in found
    assert len(found["question"]) == 1
    assert "ABC changes IO, and replace changes S2" in found["question"][0].text
    assert {A, B, C, NEGATIVE} == set(found["question"][0].sites)


# windows, steps


def windows_run(joint):
    run = grid(corruptions=("replace",), metrics=("logit_diff",))
    single = [0.1, 0.2, 0.1, *[0.01] * 7]
    return replace(run, effects={s: with_windows(e, single, joint) for s, e in run.effects.items()})


def test_windows_that_do_more_than_their_layers():
    found = judge(windows_run({(0, 3): 0.8, (1, 3): 0.4, (0, 5): 0.9}))["window"]
    assert len(found) == 1
    assert found[0].sites == ("mlp.out[0:3]@end", "mlp.out[0:5]@end")
    assert "0.80 jointly" in found[0].text
    assert "(2.0 times)" in found[0].text


@pytest.mark.parametrize("joint", [{(0, 3): 0.4}, {(0, 3): 0.45}, {(3, 3): 0.09}, {}])
def test_windows_that_add_up(joint):
    assert "window" not in judge(windows_run(joint))


def test_a_window_over_layers_that_do_nothing():
    run = windows_run({(0, 3): 0.5})
    still = {s: with_windows(e, [0.0] * 10, {(0, 3): 0.5}) for s, e in run.effects.items()}
    text = judge(replace(run, effects=still))["window"][0].text
    assert "inf" not in text
    assert "nan" not in text


def test_steps():
    """Accuracy that no pair moves, for a site that the logit difference finds."""
    run = grid(metrics=("logit_diff", "accuracy"))
    still = {}
    for setting, effects in run.effects.items():
        raw = effects.raw.copy()
        raw[[str(s) in (B, C) for s in effects.sites]] = 0
        still[setting] = replace(effects, raw=raw) if setting.metric == "accuracy" else effects
    found = judge(replace(run, effects=still))
    assert set(found["steps"][0].sites) == {B, C}
    assert "metric" not in found  # said once, not twice
    assert "steps" not in judge(run)
