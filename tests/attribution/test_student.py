"""Student's t against tables and against its integral."""

import numpy as np
import pytest

from crosspatch.attribution.student import t_quantile, t_tail
from crosspatch.core.errors import BadInput
from naive.verification import naive_t_cdf

# Percentage points as printed in statistical tables (Fisher & Yates; Abramowitz & Stegun, table 26.10).
TABLE = {
    0.90: {1: 3.078, 2: 1.886, 5: 1.476, 10: 1.372, 30: 1.310},
    0.95: {1: 6.314, 2: 2.920, 5: 2.015, 10: 1.812, 30: 1.697, 120: 1.658},
    0.99: {1: 31.821, 2: 6.965, 3: 4.541, 5: 3.365, 10: 2.764, 30: 2.457, 120: 2.358},
    0.995: {1: 63.657, 2: 9.925, 5: 4.032, 10: 3.169, 30: 2.750, 120: 2.617},
}
FREEDOM = np.array([1.0, 1.3, 2.0, 3.7, 8.0, 25.5, 300.0, 5000.0])


@pytest.mark.parametrize("level", TABLE)
def test_quantiles_are_those_of_tables(level):
    freedom = np.array([*TABLE[level]], dtype=float)
    np.testing.assert_allclose(t_quantile(level, freedom), [*TABLE[level].values()], atol=6e-4)


@pytest.mark.parametrize("t", [-4.0, -0.3, 0.0, 1e-4, 0.7, 2.0, 9.0])
def test_tail_is_the_integral_of_the_density(t):
    expected = [1 - naive_t_cdf(t, nu) for nu in FREEDOM]
    np.testing.assert_allclose(t_tail(np.full(len(FREEDOM), t), FREEDOM), expected, atol=1e-11)


def test_closed_forms_far_out():
    """One degree of freedom is Cauchy's, two have an algebraic tail: exact where the tail is tiny."""
    t = np.array([50.0, 1e4, 1e7])
    np.testing.assert_allclose(t_tail(t, np.ones(3)), np.arctan(1 / t) / np.pi, rtol=1e-12)
    np.testing.assert_allclose(t_tail(t, np.full(3, 2.0)), 1 / (t**2 + 2 + t * np.sqrt(t**2 + 2)), rtol=1e-12)
    np.testing.assert_allclose(t_tail(np.array([np.inf, -np.inf]), np.ones(2)), [0, 1])


@pytest.mark.parametrize("level", [1e-9, 0.01, 0.3, 0.5, 0.500001, 0.9, 0.999, 1 - 1e-9])
def test_quantile_inverts_the_tail(level):
    quantiles = t_quantile(level, FREEDOM)
    np.testing.assert_allclose(t_tail(quantiles, FREEDOM), 1 - level, rtol=1e-8, atol=1e-15)
    assert np.isfinite(quantiles).all()


def test_nothing_asked_gives_nothing():
    assert t_quantile(0.99, np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 99.0, float("nan")])
def test_bad_levels(level):
    with pytest.raises(BadInput, match="between 0 and 1"):
        t_quantile(level, np.ones(1))
