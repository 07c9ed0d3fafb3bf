import numpy as np
import pytest

from crosspatch.core import stats
from naive.stats import (
    naive_benjamini_hochberg,
    naive_bootstrap_ratio,
    naive_familywise_p,
    naive_ratio_difference,
    naive_sign_flip_p,
)


def holed(shape, seed=0, share=0.2):
    rng = np.random.default_rng(seed)
    values = rng.normal(0.3, 1.0, shape)
    values[rng.random(shape) < share] = np.nan
    return values


def test_bootstrap_ratio_equals_the_naive_twin():
    """Weights instead of loops, one sort for all sites: the same numbers, with and without holes."""
    raw, gap = holed((5, 9)), np.random.default_rng(1).normal(3, 0.5, 9)
    raw[3] = np.nan
    raw[4, 1:] = np.nan
    raw[2] = np.arange(9.0)
    low, high = stats.bootstrap_ratio(raw, gap, level=0.9, draws=300, seed=5)
    expected = naive_bootstrap_ratio(raw, gap, 0.9, 300, 5)
    np.testing.assert_allclose((low, high), expected, rtol=1e-12)


def test_bootstrap_mean_is_the_ratio_to_one():
    values = holed((4, 12))
    found = stats.bootstrap_mean(values, draws=200)
    np.testing.assert_allclose(found, naive_bootstrap_ratio(values, np.ones(12), 0.95, 200, 0), rtol=1e-12)


@pytest.mark.parametrize("paired", [False, True])
def test_the_difference_of_ratios_equals_the_naive_twin(paired):
    """Paired: one draw for both sets. Else each has its own; sets may then differ in size."""
    rng = np.random.default_rng(2)
    first, second = (holed((4, 9)), rng.normal(3, 0.5, 9)), (holed((4, 9 if paired else 6), 3), rng.normal(2, 0.4, 9))
    second = (second[0], second[1][: second[0].shape[1]])
    found = stats.bootstrap_ratio_difference(first, second, paired=paired, level=0.9, draws=300, seed=5)
    expected = naive_ratio_difference(first, second, paired=paired, level=0.9, draws=300, seed=5)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_paired_sets_that_move_together_differ_by_little():
    """What pairs share drops out of their difference, and only then."""
    values = np.random.default_rng(0).normal(1, 1, (1, 40))
    sets = (values, np.ones(40)), (values - 0.1, np.ones(40))
    low, high = stats.bootstrap_ratio_difference(*sets, paired=True)
    np.testing.assert_allclose([low[0], high[0]], [0.1, 0.1])
    low, high = stats.bootstrap_ratio_difference(*sets)
    assert high[0] - low[0] > 0.5


def test_sites_in_many_chunks_get_the_same_intervals(monkeypatch):
    values = holed((7, 10))
    whole = stats.bootstrap_mean(values, draws=100)
    monkeypatch.setattr(stats, "_CHUNK", 2)
    np.testing.assert_array_equal(stats.bootstrap_mean(values, draws=100), whole)


def test_one_value_has_no_interval():
    """From one pair nothing is known of the spread."""
    assert np.isnan(stats.bootstrap_mean(np.array([[2.0]]))).all()
    assert np.isnan(stats.bootstrap_mean(np.array([[2.0, np.nan, np.nan]]))).all()


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_intervals_cover_the_true_mean_nearly_as_often_as_they_say(draw):
    """500 samples of 40 from known distributions: a 95 % percentile interval covers 91 to 97 of 100."""
    rng = np.random.default_rng(3)
    samples = rng.normal(1.0, 2.0, (500, 40)) if draw == "normal" else rng.exponential(1.0, (500, 40))
    low, high = stats.bootstrap_mean(samples, draws=800)
    assert 0.90 <= ((low <= 1.0) & (high >= 1.0)).mean() <= 0.97


def test_ratio_interval_holds_the_uncertainty_of_the_gap():
    """Effects that are exactly half of noisy gaps: drawn jointly, the ratio has no uncertainty."""
    rng = np.random.default_rng(4)
    gap = rng.normal(2.0, 1.0, 30)
    low, high = stats.bootstrap_ratio((0.5 * gap)[None], gap)
    np.testing.assert_allclose((low, high), 0.5)
    independent = stats.bootstrap_ratio(np.full((1, 30), 1.0), gap)
    assert independent[1][0] - independent[0][0] > 0.1


def test_ratio_intervals_cover_the_true_ratio():
    rng = np.random.default_rng(6)
    gap = rng.normal(3.0, 1.0, (300, 30))
    raw = 0.4 * gap + rng.normal(0, 0.5, (300, 30))
    bounds = [stats.bootstrap_ratio(raw[i : i + 1], gap[i], draws=400) for i in range(300)]
    covered = np.mean([low[0] <= 0.4 <= high[0] for low, high in bounds])
    assert 0.89 <= covered <= 0.98


def test_sign_flip_p_of_few_examples_equals_the_naive_twin():
    values = holed((6, 8))
    values[4], values[5] = 0.0, np.nan
    np.testing.assert_allclose(stats.sign_flip_p(values), naive_sign_flip_p(values))


def test_random_flips_approach_the_exact_p_value():
    values = np.random.default_rng(7).normal(0.35, 1.0, (6, 14))
    exact = naive_sign_flip_p(values)
    np.testing.assert_allclose(stats.sign_flip_p(values, draws=20_000), exact, atol=0.012)


def test_random_flips_never_say_zero_and_look_closer_at_small_p_values():
    """All effects positive: the observed sign vector counts as drawn; the second, larger sample sharpens it."""
    p = stats.sign_flip_p(np.ones((1, 40)), draws=100)
    assert p[0] == pytest.approx(1 / (100 * stats.REFINE_BY + 1))
    assert p[0] == pytest.approx(stats.smallest_p(40, draws=100))


@pytest.mark.parametrize("n", [9, 30])
def test_p_values_of_noise_are_uniform(n):
    """Under the null hypothesis at most 5 % (and near 5 %) fall below 0.05."""
    p = stats.sign_flip_p(np.random.default_rng(8).normal(0, 1, (1500, n)), draws=300)
    assert 0.03 <= (p <= 0.05).mean() <= 0.068
    assert 0.45 <= (p <= 0.5).mean() <= 0.55


def test_smallest_p_is_what_equal_effects_reach():
    assert stats.sign_flip_p(np.ones((1, 5)))[0] == stats.smallest_p(5) == 2 / 2**5
    assert stats.sign_flip_p(np.ones((1, 1)))[0] == stats.smallest_p(1) == 1.0


def test_equal_sums_in_another_order_count_as_ties():
    """0.1 + 0.2 − 0.3 is not 0 in floating point; it must not look less extreme than itself."""
    assert stats.sign_flip_p(np.array([[0.1, 0.2, -0.3]]))[0] == 1.0


def test_familywise_p_equals_the_naive_twin(monkeypatch):
    """With the t statistic written out, all sign vectors, and sites in several chunks."""
    values = np.random.default_rng(11).normal(0.4, 1.0, (5, 8))
    expected = naive_familywise_p(values)
    np.testing.assert_allclose(stats.familywise_p(values), expected)
    monkeypatch.setattr(stats, "_CHUNK", 2)
    np.testing.assert_allclose(stats.familywise_p(values), expected)


def test_familywise_p_of_many_examples_approaches_all_sign_vectors():
    values = np.random.default_rng(12).normal(0.35, 1.0, (3, 13))
    np.testing.assert_allclose(stats.familywise_p(values, draws=20_000), naive_familywise_p(values), atol=0.015)


def test_any_false_claim_among_many_sites_is_rare():
    """400 sweeps of 50 sites of noise: in about 5 % of them some site has p < 0.05."""
    rng = np.random.default_rng(13)
    claims = [(stats.familywise_p(rng.normal(0, 1, (50, 8))) < 0.05).any() for _ in range(400)]
    assert 0.02 <= np.mean(claims) <= 0.085


def test_sites_without_values_or_without_effect_have_no_claim():
    values = np.array([[np.nan] * 6, [0.0] * 6, [1.0] * 6])
    p = stats.familywise_p(values)
    assert np.isnan(p[0])
    assert (p[1], p[2]) == (1.0, 2 / 2**6)


def test_benjamini_hochberg_equals_the_naive_twin():
    rng = np.random.default_rng(9)
    p = np.concatenate([rng.random(20), [0.01, 0.01, np.nan, 1e-5, np.nan, 1.0]])
    np.testing.assert_allclose(stats.benjamini_hochberg(p), naive_benjamini_hochberg(p))


def test_benjamini_hochberg_of_a_known_table():
    """The textbook case: m = 4, p = .01 .02 .03 .5 gives q = .04 .04 .04 .5."""
    np.testing.assert_allclose(stats.benjamini_hochberg(np.array([0.03, 0.5, 0.01, 0.02])), [0.04, 0.5, 0.04, 0.04])


def test_benjamini_hochberg_without_tests():
    assert np.isnan(stats.benjamini_hochberg(np.array([np.nan, np.nan]))).all()


def test_false_discoveries_stay_under_the_level():
    """Half true effects, half noise: among those with q < 0.1 at most about a tenth are noise."""
    rng = np.random.default_rng(10)
    values = rng.normal(0, 1, (400, 25)) + np.repeat([1.0, 0.0], 200)[:, None]
    found = stats.benjamini_hochberg(stats.sign_flip_p(values, draws=500)) < 0.1
    assert found[:200].mean() > 0.95
    assert found[200:].sum() / found.sum() < 0.1


@pytest.mark.parametrize(("hits", "n"), [(0, 2), (1, 2), (5, 12), (12, 12), (76, 100)])
def test_a_shares_bounds_are_where_its_distance_is_as_many_standard_errors(hits, n):
    """Wilson 1927: |share − p| = z √(p (1 − p) / n) at both ends, unless an end is 0 or 1."""
    share, low, high = stats.share_interval(hits, n)
    assert share == hits / n
    assert 0 <= low <= share <= high <= 1
    for p in (low, high):
        if 0 < p < 1:
            assert abs(share - p) == pytest.approx(1.959964 * (p * (1 - p) / n) ** 0.5, rel=1e-5)
    narrow = stats.share_interval(hits, n, level=0.5)
    assert low <= narrow[1] <= narrow[2] <= high


def test_no_case_may_be_any_share():
    share, low, high = stats.share_interval(0, 0)
    assert np.isnan(share)
    assert (low, high) == (0.0, 1.0)
