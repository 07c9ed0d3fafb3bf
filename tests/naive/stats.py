"""Statistics, one site and one draw at a time, from the definitions."""

from itertools import product

import numpy as np


def naive_bootstrap_ratio(raw, gap, level, draws, seed):
    """Efron's percentile interval: resample examples, take mean(raw)/mean(gap), read the quantiles."""
    low, high = [], []
    chosen = np.random.default_rng(seed).integers(0, len(gap), size=(draws, len(gap)))
    for site in raw:
        sample = []
        for draw in chosen:
            values = [site[i] for i in draw if not np.isnan(site[i])]
            sample += [sum(values) / len(values) / (sum(gap[i] for i in draw) / len(draw))] if values else []
        too_few = np.sum(~np.isnan(site)) < 2
        low.append(np.nan if too_few else np.percentile(sample, 50 - 50 * level))
        high.append(np.nan if too_few else np.percentile(sample, 50 + 50 * level))
    return np.array(low), np.array(high)


def naive_ratio_difference(first, second, *, paired, level, draws, seed):
    """The same of the difference of two ratios, each of its own draws; the same draws where the sets are paired."""
    ends = []
    for rows in zip(first[0], second[0], strict=True):
        samples = []
        for place, (site, gap) in enumerate(zip(rows, (first[1], second[1]), strict=True)):
            rng = np.random.default_rng(seed if paired else seed + place)
            sample = []
            for draw in rng.integers(0, len(gap), size=(draws, len(gap))):
                values = [site[i] for i in draw if not np.isnan(site[i])]
                mean = sum(values) / len(values) if values else np.nan
                sample.append(mean / (sum(gap[i] for i in draw) / len(draw)))
            samples.append(sample)
        difference = np.array(samples[0]) - np.array(samples[1])
        ends.append(np.nanpercentile(difference, [50 - 50 * level, 50 + 50 * level]))
    return np.array(ends).T


def naive_sign_flip_p(values):
    """The share of all sign vectors whose |sum| reaches the observed one."""
    p = []
    for site in values:
        there = [float(value) for value in site if not np.isnan(value)]
        flips = product((1, -1), repeat=len(there))
        sums = [abs(sum(s * v for s, v in zip(signs, there, strict=True))) for signs in flips]
        p.append(np.mean([total >= abs(sum(there)) - 1e-9 for total in sums]) if there else np.nan)
    return np.array(p)


def naive_familywise_p(values):
    """Westfall & Young's maxT over all sign vectors: how often does any site reach this site's |t|?"""

    def t(sample):
        spread = np.std(sample, ddof=1) / np.sqrt(len(sample))
        return abs(np.mean(sample)) / spread if spread > 0 else np.inf

    maxima = [max(t(site * np.array(s)) for site in values) for s in product((1, -1), repeat=values.shape[1])]
    return np.array([np.mean([m >= t(site) - 1e-9 for m in maxima]) for site in values])


def naive_benjamini_hochberg(p):
    """q of a test: the least m·p_j/rank_j over the tests j with p_j at least as large (Benjamini & Hochberg 1995)."""
    tested = [value for value in p if not np.isnan(value)]
    q = []
    for value in p:
        larger = [len(tested) * w / sum(v <= w for v in tested) for w in tested if w >= value]
        q.append(np.nan if np.isnan(value) else min([1.0, *larger]))
    return np.array(q)
