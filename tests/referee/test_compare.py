"""Comparing two sweeps: who is found, who is missed, rank correlation, and what joint windows add."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import small_effects
from crosspatch.core.stats import spearman
from crosspatch.referee.compare import (
    FEW,
    correlations,
    difference,
    found_in,
    inflations,
    rank_correlation,
    single_sites,
    strengths,
)
from crosspatch.sites import Site
from referee.made import HEADS, MLPS, NEGATIVE, A, B, C, heads, with_windows


def naive_ranks(values):
    """The mean place of all equal values in the sorted list, one value at a time."""
    ordered = sorted(values)
    return [np.mean([place for place, other in enumerate(ordered) if other == value]) for value in values]


def naive_spearman(first, second):
    """Pearson's correlation of the ranks, from its definition."""
    one, two = naive_ranks(first), naive_ranks(second)
    a, b = [x - np.mean(one) for x in one], [y - np.mean(two) for y in two]
    below = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / below if below else float("nan")


def naive_found(effects):
    """Two standard deviations from the mean over the sites of a kind that ran, sign by sign."""
    found = {}
    for kind in {site.kind for site in effects.sites}:
        rows = [(str(s), np.mean(v)) for s, v in zip(effects.sites, effects.values, strict=True) if s.kind == kind]
        rows = [(name, value) for name, value in rows if value != 0] or [("none", 0.0)]
        mean, spread = np.mean([v for _, v in rows]), np.std([v for _, v in rows])
        for name, value in rows:
            limit = abs(value - mean) >= 2 * spread if len(rows) >= 10 else abs(value) >= 0.1
            if limit and abs(value) >= 0.02:
                found[name] = "helps" if value > 0 else "hurts"
    return found


few = st.lists(st.integers(-3, 3), min_size=2, max_size=8)


@given(few, st.randoms(use_true_random=False))
def test_spearman_equals_its_twin(values, rng):
    other = [rng.randint(-3, 3) for _ in values]
    assert spearman(np.array(values, float), np.array(other, float)) == pytest.approx(
        naive_spearman(values, other), nan_ok=True
    )


@given(st.integers(0, 10_000), st.integers(1, 40), st.booleans())
def test_found_equals_its_twin(seed, sites, outlier):
    """Any number of sites, with heavy tails, some sites that cannot matter, of two kinds."""
    rng = np.random.default_rng(seed)
    raw = rng.standard_t(2, (sites + 3, 4)) * 0.1
    raw[rng.random(len(raw)) < 0.2] = 0
    raw[0] += 5.0 * outlier
    chosen = [*HEADS[:sites], *MLPS[:3]]
    effects = small_effects(chosen, raw, 4, layers=10)
    found, twin = found_in(effects), naive_found(effects)
    assert found.helping == {name for name, sign in twin.items() if sign == "helps"}
    assert found.hurting == {name for name, sign in twin.items() if sign == "hurts"}
    assert found.all == set(twin)


def test_two_deviations_find_the_strong_both_ways():
    found = found_in(heads({A: 0.5, NEGATIVE: -0.5}))
    assert (found.helping, found.hurting) == ({A}, {NEGATIVE})


def test_few_sites_are_judged_by_a_tenth_of_the_gap():
    """Of five values none is more than two deviations away: the rule of two deviations would find nothing."""
    values = [1.0, 0.001, 0.05, -0.2, 0.0]
    effects = small_effects(MLPS[:5], np.repeat(np.array(values)[:, None] * 2, 3, axis=1), 3, layers=10)
    assert len(values) < FEW
    assert found_in(effects).helping == {str(MLPS[0])}
    assert found_in(effects).hurting == {str(MLPS[3])}


def test_each_kind_has_its_own_spread():
    """Huge effects of one kind do not hide those of another."""
    big = np.array([50.0 * (-1) ** i for i in range(len(HEADS))])
    small = np.array([0.5, *[0.001] * 9])
    effects = small_effects([*HEADS, *MLPS], np.repeat(np.concatenate([big, small])[:, None], 3, axis=1), 3, layers=10)
    assert found_in(effects).all == {str(MLPS[0])}


def test_sites_that_cannot_matter_do_not_shrink_the_spread():
    """Forty heads that were never touched would make every one of twelve others stand out."""
    live = np.linspace(0.02, 0.2, 12)
    sites = [*HEADS, *(Site("attn.head", layer, 0, "S2") for layer in range(10))]
    raw = np.zeros((50, 3))
    raw[:12] = live[:, None]
    assert found_in(small_effects(sites, raw, 3, layers=10)).all == set()


def test_nothing_is_found_without_a_gap_or_below_a_fiftieth():
    assert not found_in(heads({A: 0.5}, gap=0.0)).all
    assert not found_in(heads(dict.fromkeys(map(str, HEADS), 0.001) | {A: 0.019})).all


def test_windows_are_no_single_sites():
    effects = with_windows(heads({}), [0.1] * 10, {(0, 3): 0.9})
    assert [str(site) for site in single_sites(effects).sites] == [str(site) for site in MLPS]
    assert not {name for name in strengths(effects) if ":" in name}


# two settings


def test_settings_on_either_side_of_the_threshold_do_not_differ():
    """Just found and just not found is no difference; found and nothing is."""
    first = heads({A: 0.5, B: 0.2})
    near = next(
        value for value in np.arange(0.2, 0.0, -0.005) if B not in found_in(heads({A: 0.5, B: float(value)})).all
    )
    close, far = difference(first, heads({A: 0.5, B: float(near)})), difference(first, heads({A: 0.5, B: 0.02}))
    assert B in found_in(first).all
    assert close.sites == ()
    assert far.missed == (B,)
    assert difference(heads({A: 0.5, B: 0.02}), first).extra == (B,)


def test_a_reversed_sign_is_a_difference():
    found = difference(heads({A: 0.5}), heads({A: -0.5}))
    assert (found.flipped, found.missed, found.extra) == ((A,), (), ())
    assert found.share == 1.0


def test_explained_sites_are_left_out_but_still_counted():
    found = difference(heads({A: 0.5, B: 0.5}), heads({C: 0.5}))
    assert set(found.sites) == {A, B, C}
    assert set(found.without([A, C]).sites) == {B}
    assert found.without([A, C]).share == pytest.approx(1 / 3)


def test_ranks_are_compared_over_sites_that_matter():
    """The order of forty trifles is chance: it must not hide that six heads are ranked alike."""
    names = [str(site) for site in HEADS[::7]]
    strong = {name: 0.1 * (i + 1) for i, name in enumerate(names)}
    one = heads(strong)
    two = heads(strong)
    shuffled = two.raw + np.random.default_rng(1).normal(0, 0.01, (40, 1)).astype(np.float32)
    two = replace(two, raw=shuffled)
    assert rank_correlation(one, two) == 1.0
    turned = heads({name: 0.1 * (6 - i) for i, name in enumerate(names)})
    assert rank_correlation(one, turned) == -1.0
    assert np.isnan(rank_correlation(heads({A: 0.5}), heads({B: 0.5})))  # two sites have no order


def test_correlations_are_symmetric():
    names = [str(site) for site in HEADS[::5]]
    rng = np.random.default_rng(0)
    sweeps = [heads(dict(zip(names, rng.uniform(0.1, 1, len(names)), strict=True))) for _ in range(3)]
    found = correlations(sweeps)
    assert (np.diag(found) == 1).all()
    assert (found == found.T).all()
    assert found[0, 2] == rank_correlation(sweeps[0], sweeps[2])


# windows


def test_inflation_compares_peaks():
    """The strongest window against the strongest sum, each width for itself."""
    single = [0.1, 0.2, 0.1, 0, 0, 0, 0, 0, 0.05, 0]
    effects = with_windows(heads({}), single, {(0, 3): 0.8, (1, 3): 0.6, (7, 3): 0.05, (0, 5): 0.2})
    found = {each.width: each for each in inflations(effects)}
    assert found[3].window == "mlp.out[0:3]@end"
    assert (found[3].joint, found[3].summed) == (pytest.approx(0.8), pytest.approx(0.4))
    assert (found[3].ratio, found[5].ratio) == (pytest.approx(2.0), pytest.approx(0.5))


def test_inflation_needs_all_layers_and_survives_a_sum_of_nothing():
    effects = with_windows(heads({}), [0.0] * 10, {(0, 2): 0.5})
    assert inflations(effects)[0].ratio == float("inf")
    assert inflations(effects.only([*range(5, 10), 10])) == []
