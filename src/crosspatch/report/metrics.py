"""One sweep read by several metrics: how alike they rank the sites, and the sites on which they disagree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from crosspatch.core.errors import BadInput
from crosspatch.draw import with_interval
from crosspatch.engine.effects import Effects
from crosspatch.referee.compare import LEAST, correlations, means
from crosspatch.report.correlations import correlation_bar, correlation_svg

HIGH, LOW = 10, 50  # a site among the first of one metric and not among so many of another is ranked otherwise
MOST = 20  # lines of the table
CELL = 36  # pixels of a square in the map of correlations


@dataclass(frozen=True)
class Line:
    """A site on which metrics disagree: how, and its effect with interval by each metric."""

    site: str
    why: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Metrics:
    """What the page says of several metrics: names, a picture with its legend, lines, and how many more there are."""

    names: tuple[str, ...]
    svg: str
    bar: str
    lines: tuple[Line, ...]
    more: int


def compare_metrics(effects: Effects, others: Sequence[Effects]) -> Metrics | None:
    """Compare one sweep's effects by several metrics, this page's first; None without another one.

    Raises BadInput for effects that are not of the same sweep, and for a metric that is there twice.
    """
    if not others:
        return None
    every = (effects, *others)
    for other in others:
        if not same_sweep(effects, other) or len({each.metric for each in every}) < len(every):
            raise BadInput(
                f"{other.metric} and {effects.metric} cannot be compared: give effects of one sweep, each by a metric "
                "of its own, as patch_metrics does."
            )
    names = tuple(each.metric for each in every)
    found = list(_disagreements(every))
    kept = [i for i, _ in found[:MOST]]
    cells = [_cells(each, kept) for each in every]
    lines = tuple(
        Line(str(effects.sites[i]), why, tuple(column[row] for column in cells))
        for row, (i, why) in enumerate(found[:MOST])
    )
    svg = correlation_svg(names, correlations(every), cell=CELL, what="metrics")
    return Metrics(names, svg, correlation_bar(), lines, len(found) - len(lines))


def same_sweep(first: Effects, second: Effects) -> bool:
    """Tell whether two effects are of the same sites, pairs and direction on one model: one sweep by two metrics."""
    return all(getattr(first, name) == getattr(second, name) for name in _SAME)


_SAME = ("model", "task", "sites", "direction", "examples")


def _cells(effects: Effects, kept: Sequence[int]) -> list[str]:
    part = effects.only(kept)
    low, high = part.interval()
    return [with_interval(*map(float, bounds)) for bounds in zip(part.mean(), low, high, strict=True)]


def _disagreements(every: Sequence[Effects]) -> Iterator[tuple[int, str]]:
    """Yield the sites on which two metrics disagree, and how, those with the largest effect by any metric first."""
    sizes = np.stack([means(each) for each in every])
    signs, ranks = _sure_signs(every, sizes), np.stack([_ranks(values) for values in sizes])
    names = [each.metric for each in every]
    for i in map(int, np.argsort(-np.abs(sizes).max(axis=0), kind="stable")):
        told = (_sign_words(signs[:, i], names), _rank_words(ranks[:, i], names))
        if any(told):
            yield i, "; ".join(filter(None, told))


def _sign_words(signs: Int[np.ndarray, " metric"], names: Sequence[str]) -> str:
    plus, minus = ([name for name, own in zip(names, signs, strict=True) if own == sign] for sign in (1, -1))
    return f"sign: + by {', '.join(plus)}, − by {', '.join(minus)}" if plus and minus else ""


def _rank_words(ranks: Int[np.ndarray, " metric"], names: Sequence[str]) -> str:
    high, low = int(ranks.argmin()), int(ranks.argmax())
    if ranks[high] >= HIGH or ranks[low] < LOW:
        return ""
    return f"rank {ranks[high] + 1} by {names[high]}, {ranks[low] + 1} by {names[low]}"


def _sure_signs(every: Sequence[Effects], sizes: Float[np.ndarray, "metric site"]) -> Int[np.ndarray, "metric site"]:
    """Give the sign of each effect, 0 where it is small or its interval holds zero; only where signs may differ."""
    large = np.where(np.abs(sizes) >= LEAST, np.sign(sizes), 0).astype(np.int64)
    unlike = np.flatnonzero((large > 0).any(axis=0) & (large < 0).any(axis=0))
    sure = np.zeros_like(large)
    for metric, effects in enumerate(every):
        low, high = effects.only(unlike.tolist()).interval()
        sure[metric, unlike] = np.where(_holds_zero(low, high), 0, large[metric, unlike])
    return sure


def _holds_zero(low: Float[np.ndarray, " site"], high: Float[np.ndarray, " site"]) -> Bool[np.ndarray, " site"]:
    return (low <= 0) & (high >= 0)


def _ranks(values: Float[np.ndarray, " site"]) -> Int[np.ndarray, " site"]:
    """Give each site's place when they are sorted by size, the largest being 0."""
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(-np.abs(values), kind="stable")] = np.arange(len(values))
    return ranks
