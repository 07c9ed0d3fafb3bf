"""Compare two ways of patching: rank correlation, and what one of them finds that the other misses."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.core.stats import spearman
from crosspatch.engine import Effects
from crosspatch.sites import Group, Site

FEWEST = 5  # sites below which a rank correlation says nothing
SPREADS = 2.0  # a site is found where its effect is this many standard deviations from the mean over sites of its kind
FEW = 10  # sites of a kind below which that rule finds next to nothing: of n, none can be √(n − 1) deviations away
SHARE = 0.1  # share of the gap that finds a site of such a kind
LEAST = 0.02  # share of the gap below which nothing is found, however small the deviation, and no rank is compared
MISSED = 0.5  # a setting misses a site that is less than this part of the way to being found


def single_sites(effects: Effects) -> Effects:
    """Keep the single sites; windows and other groups are compared apart."""
    return effects.only([i for i, site in enumerate(effects.sites) if isinstance(site, Site)])


def means(effects: Effects) -> Float[np.ndarray, " site"]:
    """Average the normalised effects over pairs; 0 where nothing was run or the gap is nothing."""
    return np.nan_to_num(effects.mean("normalised").astype(np.float64), posinf=0.0, neginf=0.0)


def strengths(effects: Effects) -> dict[str, float]:
    """Tell how far each single site is on the way to being found: from 1 (helping) or −1 (hurting) on it is found.

    The rule is that of Zhang & Nanda 2023: two standard deviations from the mean over all sites of a kind. Sites whose
    effect is exactly zero on all pairs cannot matter, and are not counted among them. Kinds with fewer than ten
    other sites are judged by a tenth of the gap instead.
    """
    single = single_sites(effects)
    mean, live = means(single), (np.nan_to_num(single.raw) != 0).any(axis=1)
    found = dict.fromkeys(map(str, single.sites), 0.0)
    for kind in single.kinds:
        rows = [i for i, site in enumerate(single.sites) if site.kind == kind and live[i]]
        values = mean[rows]
        way = np.abs(values) / SHARE
        if len(rows) >= FEW:
            way = np.abs(values - values.mean()) / max(SPREADS * values.std(), 1e-9)
        way = np.where(np.abs(values) < LEAST, np.minimum(way, np.abs(values) / LEAST), way)
        found |= {str(single.sites[i]): float(w * np.sign(mean[i])) for i, w in zip(rows, way, strict=True)}
    return found


@dataclass(frozen=True)
class Found:
    """The sites that one setting finds: those that help the behaviour and those that hurt it."""

    helping: frozenset[str]
    hurting: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """All found sites."""
        return self.helping | self.hurting


def found_in(effects: Effects) -> Found:
    """Find the sites that stand out, by the rule of `strengths`."""
    way = strengths(effects)
    return Found(frozenset(s for s, w in way.items() if w >= 1), frozenset(s for s, w in way.items() if w <= -1))


@dataclass(frozen=True)
class Difference:
    """How a second way of patching differs from a first: sites that it misses, finds besides, or finds reversed.

    A site is missed where one way finds it and the other is not half-way to it: two ways on either side of a threshold
    do not differ.
    """

    correlation: float
    missed: tuple[str, ...]
    extra: tuple[str, ...]
    flipped: tuple[str, ...]
    either: int

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """All sites on which the two differ."""
        return (*self.missed, *self.extra, *self.flipped)

    @property
    def share(self) -> float:
        """The share of sites on which they differ, among those that either finds."""
        return len(self.sites) / self.either if self.either else 0.0

    def without(self, explained: Sequence[str]) -> "Difference":
        """Leave out sites whose difference is explained already."""
        missed, extra, flipped = (
            tuple(site for site in sites if site not in explained) for sites in (self.missed, self.extra, self.flipped)
        )
        return Difference(self.correlation, missed, extra, flipped, self.either)


def difference(first: Effects, second: Effects) -> Difference:
    """Compare what two sweeps of the same sites find."""
    one, two, correlation = strengths(first), strengths(second), rank_correlation(first, second)
    both = [site for site in one if site in two]
    missed = tuple(sorted(s for s in both if abs(one[s]) >= 1 and abs(two[s]) < MISSED))
    extra = tuple(sorted(s for s in both if abs(two[s]) >= 1 and abs(one[s]) < MISSED))
    flipped = tuple(sorted(s for s in both if min(abs(one[s]), abs(two[s])) >= 1 and one[s] * two[s] < 0))
    either = sum(max(abs(one[s]), abs(two[s])) >= 1 for s in both)
    return Difference(correlation, missed, extra, flipped, either)


def weighty(first: Effects, second: Effects) -> Bool[np.ndarray, " site"]:
    """Tell which sites reach a fiftieth of the gap in one of two sweeps; the order of the rest is chance."""
    return (np.abs(means(first)) >= LEAST) | (np.abs(means(second)) >= LEAST)


def rank_correlation(first: Effects, second: Effects) -> float:
    """Correlate the mean effects of two sweeps' weighty single sites by rank (Spearman); NaN for too few to rank."""
    one, two = single_sites(first), single_sites(second)
    rows = weighty(one, two)
    if rows.sum() < FEWEST:
        return float("nan")
    return spearman(means(one)[rows], means(two)[rows])


def correlations(sweeps: Sequence[Effects]) -> Float[np.ndarray, "setting setting"]:
    """Correlate every two sweeps of the same sites."""
    out = np.eye(len(sweeps))
    for i, first in enumerate(sweeps):
        for j in range(i):
            out[i, j] = out[j, i] = rank_correlation(first, sweeps[j])
    return out


@dataclass(frozen=True)
class Inflation:
    """How far the strongest joint window of a kind and width goes beyond the strongest sum of single layers."""

    kind: str
    width: int
    window: str
    joint: float
    summed: float

    @property
    def ratio(self) -> float:
        """Joint effect over summed effect, by size; infinite where the sum is nothing."""
        return abs(self.joint / self.summed) if self.summed else float("inf")


def inflations(effects: Effects) -> list[Inflation]:
    """Compare each width's strongest joint window with its strongest sum over a window (Zhang & Nanda 2023)."""
    mean = means(effects)
    at = {str(site): value for site, value in zip(effects.sites, mean, strict=True)}
    kinds: dict[tuple[str, int], list[tuple[Group, float, float]]] = {}
    for site, joint in zip(effects.sites, mean, strict=True):
        members = [str(member) for member in site.members] if isinstance(site, Group) else []
        if isinstance(site, Group) and all(member in at for member in members):
            total = sum(at[member] for member in members)
            kinds.setdefault((site.members[0].kind, len(members)), []).append((site, float(joint), float(total)))
    found = []
    for (kind, width), rows in kinds.items():
        best = max(rows, key=lambda row: abs(row[1]))
        summed = max((row[2] for row in rows), key=abs)
        found.append(Inflation(kind, width, str(best[0]), best[1], summed))
    return found
