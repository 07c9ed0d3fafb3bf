"""Two runs site by site: what both have measured, how it correlates, and where it differs most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.attribution.agreement import pearson
from crosspatch.core.errors import BadInput
from crosspatch.core.stats import bootstrap_ratio_difference, spearman
from crosspatch.draw import Point, number, scatter_svg, with_interval
from crosspatch.engine.effects import Effects

MOST_POINTS, MOST_ROWS = 600, 20
_LONGEST = 31  # letters of a run's name on a map or an axis

Run = tuple[str, Effects]  # its name, what it found


@dataclass(frozen=True)
class Line:
    """A site of both runs: its effect in each and the difference, with intervals."""

    site: str
    first: str
    second: str
    difference: str


@dataclass(frozen=True)
class Contrast:
    """Two runs compared: names, words on sites and pairs, a scatter, and the sites that differ most."""

    first: str
    second: str
    text: str
    how: str
    svg: str
    lines: tuple[Line, ...]


def check_shared(runs: Sequence[Run]) -> None:
    """Refuse runs whose effects cannot stand on one scale. Raises BadInput."""
    if len(runs) < 2 or len({name for name, _ in runs}) < len(runs):
        raise BadInput("a comparison needs two runs or more, each with a name of its own.")
    name, first = runs[0]
    for other, effects in runs[1:]:
        if effects.metric_unit != first.metric_unit:
            units = f"{first.metric} in {_unit(first)}, {effects.metric} in {_unit(effects)}"
            raise BadInput(
                f"{name} and {other} cannot share a scale: they measure by different units ({units}). Compare runs by "
                "one metric; several metrics of one sweep are compared on its own page."
            )
        if effects.scale != first.scale:
            without = name if first.scale == "raw" else other
            raise BadInput(
                f"{name} and {other} cannot share a scale: {without} has no gap between its clean and its corrupted "
                "run, so its effects are no shares of one."
            )


def _unit(effects: Effects) -> str:
    return effects.metric_unit or "a number without a unit"


def short_name(name: str) -> str:
    """Cut a run's name in its middle: names of runs often begin alike."""
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[: half + 1]}…{name[1 - half :]}"


def same_pairs(first: Effects, second: Effects) -> bool:
    """Tell whether two runs have the same pairs in the same order, token by token."""
    return first.examples == second.examples


def contrast(one: Run, two: Run) -> Contrast | None:
    """Compare two runs at the sites that both have; None if they share none. Raises BadInput as `check_shared` does."""
    check_shared([one, two])
    (name, first), (other, second) = one, two
    place = {site: i for i, site in enumerate(second.sites)}
    kept = [(i, place[site]) for i, site in enumerate(first.sites) if site in place]
    if not kept:
        return None
    first, second = first.only([i for i, _ in kept]), second.only([j for _, j in kept])
    telling = _telling(first, second)
    told = first.only(telling), second.only(telling)
    paired = same_pairs(first, second)
    how = (
        "Both runs have the same pairs: the interval of a difference draws them together."
        if paired
        else "The runs have different pairs: the interval of a difference draws each run's own."
    )
    rows = _largest(told[0].mean() - told[1].mean(), MOST_ROWS)
    return Contrast(
        first=name,
        second=other,
        text=_words(told[0], told[1], shared=len(kept)),
        how=how,
        svg=_scatter((name, told[0]), (other, told[1])),
        lines=_lines(told[0].only(rows), told[1].only(rows), paired=paired),
    )


def _telling(first: Effects, second: Effects) -> list[int]:
    """List the sites that were run in both and do something in one of them at least."""
    both = ~np.isnan(first.mean()) & ~np.isnan(second.mean())
    return np.flatnonzero(both & ~(_still(first) & _still(second))).tolist()


def _still(effects: Effects) -> Bool[np.ndarray, " site"]:
    return (np.nan_to_num(effects.raw) == 0).all(axis=1)


def _words(first: Effects, second: Effects, *, shared: int) -> str:
    means = [effects.mean().astype(np.float64) for effects in (first, second)]
    numbers = f"Pearson {number(pearson(*means))}, Spearman {number(spearman(*means))}"
    left = shared - len(first.sites)
    rest = f" {left:,} more have no effect by construction in both, or were not run in one." if left else ""
    return f"{numbers} over the mean effects of {len(first.sites):,} sites that both runs have.{rest}"


def _largest(values: Float[np.ndarray, " site"], most: int) -> list[int]:
    return np.argsort(-np.abs(values), kind="stable")[:most].tolist()


def _scatter(one: Run, two: Run) -> str:
    means = [effects.mean().astype(np.float64) for _, effects in (one, two)]
    drawn: Sequence[int] = _largest(np.maximum(*map(np.abs, means)), MOST_POINTS)
    sites = one[1].sites
    points = [Point(float(means[0][i]), float(means[1][i]), str(sites[i]), sites[i].kind) for i in sorted(drawn)]
    more = "" if len(points) == len(sites) else f", the {MOST_POINTS} largest"
    x, y = (short_name(name) for name, _ in (one, two))
    return scatter_svg(points, x=x, y=y, title=f"mean effects of {one[0]} against {two[0]}{more}")


def _lines(first: Effects, second: Effects, *, paired: bool) -> tuple[Line, ...]:
    normalised = first.scale == "normalised"
    sets = [(each.raw, each.gap if normalised else np.ones(each.n)) for each in (first, second)]
    low, high = bootstrap_ratio_difference(sets[0], sets[1], paired=paired)
    means = [each.mean() for each in (first, second)]
    each = [_texts(effects.mean(), effects.interval()) for effects in (first, second)]
    differences = _texts(means[0] - means[1], (low, high))
    return tuple(Line(str(site), *texts) for site, *texts in zip(first.sites, *each, differences, strict=True))


def _texts(values: Float[np.ndarray, " site"], bounds: tuple[np.ndarray, np.ndarray]) -> list[str]:
    return [with_interval(*map(float, each)) for each in zip(values, *bounds, strict=True)]
