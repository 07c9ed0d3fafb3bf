"""How faithful circuits of growing size are, and the two areas that MIB ranks methods by, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from crosspatch.core.errors import BadInput, NotFinite
from crosspatch.core.stats import bootstrap_ratio, percentile_interval, resample_weights
from crosspatch.draw import Display, Displayed, with_interval

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
Fractions = Float[np.ndarray, " fraction"]


@dataclass(frozen=True)
class Area:
    """An area and its 95 % bootstrap interval over examples (NaN of a single example)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCurve(Displayed):
    """Faithfulness f of circuits that hold a share of the edges, with 95 % bootstrap intervals over examples.

    `cpr` is the area under f (higher is better: which edges drive the metric up), `cmd` the area under |1 − f| (lower
    is better: how near the circuits come to the model). Both go from the first fraction to the last on a linear scale.
    Source: Mueller et al. 2025 (MIB, 2504.13151), section 3.
    """

    fractions: Fractions
    faithfulness: Fractions
    low: Fractions
    high: Fractions
    cpr: Area
    cmd: Area

    def display(self) -> Display:
        """List faithfulness by share of the edges, under both areas."""
        columns = (self.fractions, self.faithfulness, self.low, self.high)
        rows = [
            (f"{share:.1%}", with_interval(value, low, high, digits=3))
            for share, value, low, high in zip(*(column.tolist() for column in columns), strict=True)
        ]
        areas = ", ".join(
            f"{name} {with_interval(area.value, area.low, area.high)}"
            for name, area in (("CPR", self.cpr), ("CMD", self.cmd))
        )
        return Display(f"Faithfulness by size: {areas}", ("edges kept", "faithfulness [95%]"), rows)


def faithfulness_curve(
    values: Float[np.ndarray, "fraction example"],
    *,
    full: Float[np.ndarray, " example"],
    empty: Float[np.ndarray, " example"],
    fractions: Sequence[float] = MIB_FRACTIONS,
    draws: int = 2000,
    seed: int = 0,
) -> FaithfulnessCurve:
    """Make the curve f = (mean values − mean empty) / (mean full − mean empty), and its areas CPR and CMD.

    `values` are the metric of each circuit on each example, `full` that of the whole model, `empty` that of the model
    with all edges corrupted. As in MIB the areas are sums of trapezoids between the fractions given (|1 − f| is taken
    at the fractions themselves), with nothing added at 0. Examples are resampled jointly for all circuits and both
    ends. |1 − f| is never negative, so where f is near 1 its interval can lie above the value itself.

    Raises:
        BadInput: fractions do not rise within (0, 1], shapes differ, or full and empty have the same mean.
        NotFinite: a value is NaN or infinite.
    """
    at = np.asarray(fractions, dtype=np.float64)
    _check(values, full, empty, at)
    raw, gap = (values - empty).astype(np.float64), (full - empty).astype(np.float64)
    if gap.mean() == 0:
        raise BadInput("the whole model and the empty circuit have the same mean: faithfulness has no scale.")
    faithfulness = raw.mean(1) / gap.mean()
    low, high = bootstrap_ratio(raw, gap, draws=draws, seed=seed)
    weights = resample_weights(len(gap), draws=draws, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw whose gap is 0
        drawn = (raw @ weights.T) / (gap @ weights.T)
    share = _trapezoid_weights(at)
    return FaithfulnessCurve(
        fractions=at,
        faithfulness=faithfulness,
        low=low,
        high=high,
        cpr=_area(share, faithfulness, drawn, examples=len(gap)),
        cmd=_area(share, np.abs(1 - faithfulness), np.abs(1 - drawn), examples=len(gap)),
    )


def _check(
    values: Float[np.ndarray, "fraction example"],
    full: Float[np.ndarray, " example"],
    empty: Float[np.ndarray, " example"],
    fractions: Float[np.ndarray, " size"],
) -> None:
    if len(fractions) < 2 or not (np.diff(fractions) > 0).all() or fractions[0] <= 0 or fractions[-1] > 1:
        raise BadInput(f"fractions are two or more shares of the edges that rise within (0, 1], not {list(fractions)}.")
    if values.shape != (len(fractions), len(full)) or full.shape != empty.shape or not len(full):
        raise BadInput(
            f"values are [fraction, example], full and empty [example]: {values.shape}, {full.shape} and {empty.shape} "
            f"do not fit {len(fractions)} fractions."
        )
    for name, given in (("values", values), ("full", full), ("empty", empty)):
        if not np.isfinite(given).all():
            raise NotFinite(f"{name} of a faithfulness curve hold NaN or infinity: leave such examples out everywhere.")


def _trapezoid_weights(fractions: Fractions) -> Fractions:
    """Give each point half the way to its neighbours: their weighted sum is the sum of trapezoids."""
    steps = np.diff(fractions)
    return (np.append(steps, 0) + np.insert(steps, 0, 0)) / 2


def _area(share: Fractions, heights: Fractions, drawn: Float[np.ndarray, "fraction draw"], *, examples: int) -> Area:
    low, high = percentile_interval((share @ drawn)[None], 0.95)
    known = examples > 1
    return Area(float(share @ heights), float(low[0]) if known else np.nan, float(high[0]) if known else np.nan)
