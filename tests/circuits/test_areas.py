import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.circuits.areas import MIB_FRACTIONS, faithfulness_curve
from crosspatch.core import stats
from crosspatch.core.errors import BadInput, NotFinite


def made(seed=0, examples=12, fractions=10):
    rng = np.random.default_rng(seed)
    return rng.normal(1, 1, (fractions, examples)), rng.normal(3, 0.5, examples), rng.normal(0, 0.5, examples)


def test_hand_worked_areas():
    """f = 0, 1, 1.5 at 0.2, 0.6, 1: CPR 0.4·0.5 + 0.4·1.25 = 0.7; |1 − f| = 1, 0, 0.5: CMD 0.4·0.5 + 0.4·0.25 = 0.3."""
    full, empty = np.array([4.0, 6.0]), np.array([0.0, 2.0])  # means 5 and 1
    values = np.array([[1.0, 1.0], [4.0, 6.0], [7.0, 7.0]])
    found = faithfulness_curve(values, full=full, empty=empty, fractions=[0.2, 0.6, 1.0])
    np.testing.assert_allclose(found.faithfulness, [0, 1, 1.5])
    assert found.cpr.value == pytest.approx(0.7)
    assert found.cmd.value == pytest.approx(0.3)


def test_the_whole_model_at_every_size_has_all_of_the_area():
    """f = 1 everywhere: CPR is the width 0.999, CMD 0, and neither is in doubt."""
    _, full, empty = made()
    found = faithfulness_curve(np.tile(full, (10, 1)), full=full, empty=empty)
    assert (found.cpr.value, found.cpr.low, found.cpr.high) == pytest.approx((0.999,) * 3)
    assert (found.cmd.value, found.cmd.low, found.cmd.high) == pytest.approx((0,) * 3, abs=1e-12)


@given(st.integers(0, 50))
def test_areas_are_mibs_loop_over_neighbours(seed):
    """The sum of trapezoids as MIB's code takes it, one pair of neighbours after the other, nothing below 0.001."""
    values, full, empty = made(seed)
    found = faithfulness_curve(values, full=full, empty=empty, draws=10)
    f = [(row.mean() - empty.mean()) / (full.mean() - empty.mean()) for row in values]
    cpr = cmd = 0.0
    for i in range(9):
        width = MIB_FRACTIONS[i + 1] - MIB_FRACTIONS[i]
        cpr += width * (f[i] + f[i + 1]) / 2
        cmd += width * (abs(1 - f[i]) + abs(1 - f[i + 1])) / 2
    assert found.cpr.value == pytest.approx(cpr)
    assert found.cmd.value == pytest.approx(cmd)


def test_intervals_equal_a_loop_over_resamples():
    """Naive twin: draw examples, make the whole curve of them, take percentiles; the same examples for both ends."""
    values, full, empty = made(3)
    found = faithfulness_curve(values, full=full, empty=empty, draws=200, seed=7)
    at, areas, curves = np.array(MIB_FRACTIONS), [], []
    for rows in np.random.default_rng(7).integers(0, 12, size=(200, 12)):
        f = (values[:, rows].mean(1) - empty[rows].mean()) / (full[rows].mean() - empty[rows].mean())
        curves.append(f)
        areas.append([(np.diff(at) * (y[1:] + y[:-1]) / 2).sum() for y in (f, np.abs(1 - f))])
    low, high = np.quantile(areas, [0.025, 0.975], axis=0)
    np.testing.assert_allclose([[found.cpr.low, found.cmd.low], [found.cpr.high, found.cmd.high]], [low, high])
    np.testing.assert_allclose([found.low, found.high], np.quantile(curves, [0.025, 0.975], axis=0))


def test_cpr_is_a_ratio_of_means():
    """f is linear in the values, so CPR's interval is that of one ratio of means."""
    values, full, empty = made(5)
    found = faithfulness_curve(values, full=full, empty=empty, draws=300)
    steps = np.diff(MIB_FRACTIONS)
    share = (np.append(steps, 0) + np.append(0, steps)) / 2
    low, high = stats.bootstrap_ratio((share @ (values - empty))[None], full - empty, draws=300)
    assert (found.cpr.low, found.cpr.high) == pytest.approx((low[0], high[0]))


def test_one_example_has_no_interval():
    values, full, empty = made(examples=1)
    found = faithfulness_curve(values, full=full, empty=empty)
    assert np.isfinite(found.cpr.value)
    assert np.isnan([found.cpr.low, found.cmd.high, found.low[0]]).all()


def test_bad_curves_are_refused():
    values, full, empty = made()
    for fractions in ([0.1], [0.2, 0.1], [0.0, 1.0], [0.5, 1.1]):
        with pytest.raises(BadInput, match="rise within"):
            faithfulness_curve(values[: len(fractions)], full=full, empty=empty, fractions=fractions)
    with pytest.raises(BadInput, match="do not fit 10 fractions"):
        faithfulness_curve(values[:9], full=full, empty=empty)
    with pytest.raises(BadInput, match="no scale"):
        faithfulness_curve(values, full=full, empty=full)
    values[2, 3] = np.nan
    with pytest.raises(NotFinite, match="values of a faithfulness curve"):
        faithfulness_curve(values, full=full, empty=empty)
