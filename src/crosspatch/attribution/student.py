"""Student's t distribution: upper tails and quantiles for arrays of degrees of freedom; numpy only."""

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

from crosspatch.core.errors import BadInput

Values = Float64[np.ndarray, " value"]

_LOG_GAMMA = np.frompyfunc(math.lgamma, 1, 1)
_TINY, _CLOSE, _MOST_STEPS = 1e-300, 4e-15, 20_000


def t_tail(t: Values, freedom: Values) -> Values:
    """Give P(T > t) for T with `freedom` > 0 degrees of freedom, which need not be whole; exact for ±∞.

    P(T > t) = ½·I_x(ν/2, ½) with x = ν/(ν + t²) for t ≥ 0 (Abramowitz & Stegun 26.7.1), by symmetry below.
    """
    t, freedom = np.broadcast_arrays(np.asarray(t, dtype=np.float64), np.asarray(freedom, dtype=np.float64))
    upper = np.where(np.isinf(t), 0.0, 0.5)
    inside = np.isfinite(t) & (t != 0)
    square, nu = t[inside] ** 2, freedom[inside]
    # The share and its complement are formed apart: 1 − x would lose a small one.
    upper[inside] = 0.5 * _beta_share(nu / (nu + square), square / (nu + square), nu / 2)
    return np.where(t < 0, 1.0 - upper, upper)


def t_quantile(level: float, freedom: Values) -> Values:
    """Give the t with P(T ≤ t) = `level` for each number of degrees of freedom, at least 1 each.

    Raises:
        BadInput: a level that is not between 0 and 1.
    """
    require_level(level)
    freedom = np.asarray(freedom, dtype=np.float64)
    if level < 0.5:
        return -t_quantile(1.0 - level, freedom)
    # The tail is convex above zero and heavier than the normal one, so Newton's steps from the normal quantile
    # climb to the root and never pass it.
    found = np.full(freedom.shape, NormalDist().inv_cdf(level))
    moving = np.arange(found.size) if level > 0.5 else np.arange(0)
    while len(moving):
        here, nu = found[moving], freedom[moving]
        step = (t_tail(here, nu) - (1.0 - level)) / _density(here, nu)
        found[moving] = here + step
        moving = moving[step > 1e-12 * np.abs(here)]
    return found


def require_level(level: float) -> None:
    """Raise BadInput unless the level of confidence is between 0 and 1."""
    if not 0 < level < 1:
        raise BadInput(f"level {level}: a level of confidence lies between 0 and 1. Give 0.99, say.")


def _density(t: Values, freedom: Values) -> Values:
    half = (freedom + 1) / 2
    log_scale = _log_gamma(half) - _log_gamma(freedom / 2) - 0.5 * np.log(freedom * np.pi)
    return np.exp(log_scale - half * np.log1p(t**2 / freedom))


def _log_gamma(values: Values) -> Values:
    return np.asarray(_LOG_GAMMA(values), dtype=np.float64)


def _beta_share(x: Values, rest: Values, a: Values) -> Values:
    """Give the regularised incomplete beta function I_x(a, ½), where `rest` is 1 − x."""
    b = np.full_like(a, 0.5)
    log_front = _log_gamma(a + b) - _log_gamma(a) - _log_gamma(b) + a * np.log(x) + b * np.log(rest)
    front = np.exp(log_front)
    # The fraction converges fast below the mean of the distribution; above it the complement's does.
    low = x < (a + 1) / (a + b + 2)
    share = np.empty_like(x)
    share[low] = front[low] * _fraction(x[low], a[low], b[low]) / a[low]
    share[~low] = 1.0 - front[~low] * _fraction(rest[~low], b[~low], a[~low]) / b[~low]
    return share


def _fraction(x: Values, a: Values, b: Values) -> Values:
    """Evaluate 1/(1 + d₁/(1 + d₂/(1 + …))) of the incomplete beta function (DLMF 8.17.22) by Lentz's method."""
    above, below, value = np.ones_like(x), np.zeros_like(x), np.ones_like(x)
    for number in range(1, _MOST_STEPS):
        m = number // 2
        if number % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        below = 1.0 / _off_zero(1.0 + term * below)
        above = _off_zero(1.0 + term / above)
        value = value * above * below
        if (np.abs(above * below - 1.0) < _CLOSE).all():
            break
    return 1.0 / value


def _off_zero(values: Values) -> Values:
    return np.where(np.abs(values) < _TINY, _TINY, values)
