"""Intervals and tests over examples: bootstrap, sign flips and the control of false discoveries; numpy only."""

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Float64

Sites = Float[np.ndarray, " site"]
SiteByExample = Float[np.ndarray, "site example"]

EXACT_UP_TO = 12  # 2**12 sign vectors are fewer than a good random sample of them
REFINE_BELOW, REFINE_BY = 0.01, 50
_MOST_WORK = 50_000_000_000  # site × example × draw of a second sample: some ten seconds
_CHUNK = 2048  # sites held at once: bounds the memory at chunk × draws numbers


def bootstrap_mean(
    values: SiteByExample, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[Sites, Sites]:
    """Give the percentile bootstrap interval of each site's mean over examples, as (low, high).

    NaN is an example without a value at that site. A site with fewer than two values has NaN bounds.
    """
    return bootstrap_ratio(values, np.ones(values.shape[1]), level=level, draws=draws, seed=seed)


def bootstrap_ratio(
    raw: SiteByExample, gap: Float[np.ndarray, " example"], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[Sites, Sites]:
    """Give the percentile bootstrap interval of mean(raw) / mean(gap) of each site, as (low, high).

    Examples are drawn jointly for the numerator and the denominator, so the interval holds the gap's own uncertainty.
    """
    weights = resample_weights(raw.shape[1], draws=draws, seed=seed)
    scale = _weighted_means(gap[None].astype(np.float64), weights)
    low, high = np.full(len(raw), np.nan), np.full(len(raw), np.nan)
    for part in _chunks(len(raw)):
        values = raw[part].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = _weighted_means(values, weights) / scale
        low[part], high[part] = percentile_interval(ratios, level)
        too_few = (~np.isnan(values)).sum(axis=1) < 2
        low[part][too_few] = high[part][too_few] = np.nan
    return low, high


def bootstrap_difference(
    first: SiteByExample,
    second: Float[np.ndarray, "site other"],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[Sites, Sites]:
    """Give the percentile bootstrap interval of mean(first) − mean(second) of each site, as (low, high).

    The two sets of examples are drawn independently. NaN as in `bootstrap_mean`, for either set.
    """
    sets = [(each, np.ones(each.shape[1])) for each in (first, second)]
    return bootstrap_ratio_difference(sets[0], sets[1], level=level, draws=draws, seed=seed)


def bootstrap_ratio_difference(
    first: tuple[SiteByExample, Float[np.ndarray, " example"]],
    second: tuple[Float[np.ndarray, "site other"], Float[np.ndarray, " other"]],
    *,
    paired: bool = False,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[Sites, Sites]:
    """Give the percentile bootstrap interval of the difference of two mean(raw) / mean(gap), as (low, high).

    Each set is (raw, gap) and is drawn jointly, as in `bootstrap_ratio`. The two sets are drawn independently, or, with
    `paired`, together: example by example they are then the same. NaN as in `bootstrap_mean`, for either set.
    """
    sets = [(raw.astype(np.float64), gap.astype(np.float64)) for raw, gap in (first, second)]
    weights = [
        resample_weights(len(gap), draws=draws, seed=seed if paired else seed + i) for i, (_, gap) in enumerate(sets)
    ]
    scales = [_weighted_means(gap[None], drawn) for (_, gap), drawn in zip(sets, weights, strict=True)]
    low, high = np.full(len(sets[0][0]), np.nan), np.full(len(sets[0][0]), np.nan)
    for part in _chunks(len(low)):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = [_weighted_means(sets[i][0][part], weights[i]) / scales[i] for i in range(2)]
        low[part], high[part] = percentile_interval(ratios[0] - ratios[1], level)
    too_few = np.any([(~np.isnan(raw)).sum(axis=1) < 2 for raw, _ in sets], axis=0)
    low[too_few] = high[too_few] = np.nan
    return low, high


def share_interval(hits: int, n: int, *, level: float = 0.95) -> tuple[float, float, float]:
    """Return the share of hits among n and its Wilson score interval (Wilson 1927), as (share, low, high).

    Without any case the share is NaN and may be anything.
    """
    if not n:
        return math.nan, 0.0, 1.0
    z, share = NormalDist().inv_cdf(0.5 + level / 2), hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return share, max(0.0, middle - half), min(1.0, middle + half)


def sign_flip_p(values: SiteByExample, *, draws: int = 2000, seed: int = 0) -> Sites:
    """Test for each site whether its effects are as likely negative as positive; two-sided p-values.

    All sign vectors are used up to 12 examples. Above, random ones are drawn, with the +1 correction; sites under
    p = 0.01 are drawn again, up to 50 times as often, so that a correction for many sites can still reject.
    NaN is an example without a value; a site of NaN alone has p-value NaN.
    """
    filled = _without_gaps(values)
    n, rng = values.shape[1], np.random.default_rng(seed)
    count, total = _extremes(filled, _sign_blocks(n, draws, rng=rng))
    p = _share(count, total, n=n)
    small = np.flatnonzero(p < REFINE_BELOW)
    if n > EXACT_UP_TO and len(small):
        # A fresh sample, its size fixed without looking at it: the p-value stays valid.
        more = min(draws * REFINE_BY, max(draws, _MOST_WORK // (n * len(small))))
        p[small] = _share(*_extremes(filled[small], _sign_blocks(n, more, rng=rng)), n=n)
    return np.where(np.isnan(values).all(axis=1), np.nan, p)


def familywise_p(values: SiteByExample, *, draws: int = 2000, seed: int = 0) -> Sites:
    """Test all sites together: the chance that any site reaches this one's |t| when signs are flipped (maxT).

    Controls the chance of a single false claim, however many sites there are and however they depend on each other
    (Westfall and Young 1993). All sign vectors are used up to 12 examples, random ones above. NaN as in `sign_flip_p`.
    """
    filled, n = _without_gaps(values), values.shape[1]
    length = np.sqrt((filled**2).sum(axis=1, keepdims=True))
    # Flips leave the sum of squares as it is, so |t| grows with the |sum| of values of unit length.
    unit = np.divide(filled, length, out=np.zeros_like(filled), where=length > 0)
    observed = np.abs(unit.sum(axis=1)) - 1e-9
    blocks = _sign_blocks(n, draws, rng=np.random.default_rng(seed))
    largest = np.sort(np.concatenate([_largest(unit, block) for block in blocks]))
    p = _share(len(largest) - np.searchsorted(largest, observed, side="left"), len(largest), n=n)
    return np.where(np.isnan(values).all(axis=1), np.nan, p)


def smallest_p(n: int, *, draws: int = 2000) -> float:
    """Give the smallest p-value that `sign_flip_p` can reach with n examples."""
    return 2.0 ** (1 - n) if n <= EXACT_UP_TO else 1 / (draws * REFINE_BY + 1)


def benjamini_hochberg(p: Sites) -> Sites:
    """Turn p-values into q-values: the least false-discovery rate at which each is rejected. NaN: not a test."""
    q = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def spearman(first: Sites, second: Sites) -> float:
    """Correlate two lists by rank, ties sharing their mean rank; NaN if one is constant or a value is missing."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    spread = [float(rank.std()) if len(rank) else 0.0 for rank in ranks]
    if min(spread) == 0 or any(np.isnan(values).any() for values in (first, second)):
        return float("nan")
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / (spread[0] * spread[1]))


def _ranks(values: Sites) -> Sites:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place].astype(np.float64)


def resample_weights(n: int, *, draws: int, seed: int) -> Float[np.ndarray, "draw example"]:
    """Draw n examples with replacement, draws times; count how often each came."""
    chosen = np.random.default_rng(seed).integers(0, n, size=(draws, n))
    slots = chosen + n * np.arange(draws)[:, None]
    return np.bincount(slots.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def _weighted_means(
    values: SiteByExample, weights: Float[np.ndarray, "draw example"]
) -> Float[np.ndarray, "site draw"]:
    """Average each site's values under each draw; NaN where a draw holds none of the site's values."""
    there = ~np.isnan(values)
    sums = np.where(there, values, 0.0) @ weights.T
    counts = there.astype(np.float64) @ weights.T if not there.all() else weights.sum(axis=1)[None]
    with np.errstate(invalid="ignore"):
        return sums / counts


def percentile_interval(sample: Float[np.ndarray, "site draw"], level: float) -> tuple[Sites, Sites]:
    """Read both ends of the central interval off each row, as np.nanpercentile would; sort puts NaN last."""
    ordered, last = np.sort(sample, axis=1), (~np.isnan(sample)).sum(axis=1) - 1
    rows = np.arange(len(sample))

    def at(share: float) -> Sites:
        place = np.maximum(last, 0) * share
        below = np.floor(place).astype(int)
        above = np.minimum(below + 1, np.maximum(last, 0))
        left, right = ordered[rows, below], ordered[rows, above]
        with np.errstate(invalid="ignore"):
            return left + (right - left) * (place - below)

    return at((1 - level) / 2), at((1 + level) / 2)


def _without_gaps(values: SiteByExample) -> Float64[np.ndarray, "site example"]:
    """Put zeros for missing values: a zero has no sign to flip and drops out of every sum."""
    return np.nan_to_num(values.astype(np.float64), nan=0.0)


def _sign_blocks(n: int, draws: int, *, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "draw example"]]:
    """Give all sign vectors of few examples, but for mirror images, or random ones of many, in blocks."""
    if n <= EXACT_UP_TO:
        codes = np.arange(2 ** max(n - 1, 0))  # the last example keeps its sign
        yield 1.0 - 2.0 * (codes[:, None] >> np.arange(n) & 1)
        return
    for start in range(0, draws, _CHUNK):
        yield rng.integers(0, 2, size=(min(_CHUNK, draws - start), n)).astype(np.float64) * 2 - 1


def _share(count: np.ndarray, total: int, *, n: int) -> Sites:
    """Turn counts into p-values; among random sign vectors the observed one counts as drawn, so none is zero."""
    return count / total if n <= EXACT_UP_TO else (count + 1) / (total + 1)


def _extremes(filled: SiteByExample, signs: Iterator[Float[np.ndarray, "draw example"]]) -> tuple[Sites, int]:
    """Count for each site the sign vectors whose sum is at least as far from zero as the observed one, and all."""
    # Sums of equal numbers in another order differ in the last bits: such ties count as extreme.
    observed = np.abs(filled.sum(axis=1)) - 1e-9 * np.abs(filled).sum(axis=1)
    count, total = np.zeros(len(filled)), 0
    for block in signs:
        total += len(block)
        for part in _chunks(len(filled)):
            count[part] += (np.abs(filled[part] @ block.T) >= observed[part, None]).sum(axis=1)
    return count, total


def _largest(unit: SiteByExample, block: Float[np.ndarray, "draw example"]) -> Float[np.ndarray, " draw"]:
    """Find for each sign vector the largest |sum| over all sites."""
    largest = np.zeros(len(block))
    for part in _chunks(len(unit)):
        np.maximum(largest, np.abs(unit[part] @ block.T).max(axis=0), out=largest)
    return largest


def _chunks(total: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK))
