"""What is known of a circuit's worth: faithfulness, completeness, minimality and the rest, each with its interval."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from crosspatch.circuits.areas import Area, FaithfulnessCurve
from crosspatch.core.stats import bootstrap_ratio
from crosspatch.draw import score_table, table_html, with_interval

if TYPE_CHECKING:
    from rich.console import Group as Stack

QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Knockout:
    """Nodes that are taken out of the circuit and of the whole model: both should lose alike (Wang et al. 2022).

    `circuit` and `model` are their faithfulness without the nodes.
    """

    name: str
    nodes: tuple[str, ...]
    circuit: float
    model: float

    @property
    def difference(self) -> float:
        """How far the two are apart, as a share of the gap."""
        return abs(self.circuit - self.model)


@dataclass(frozen=True, eq=False)
class Scorecard:
    """A circuit's scores on some pairs.

    `values`, `full`, `empty` are the metric of the circuit, of the model, and of no edges at all; `complement` that of
    all edges but the circuit's; `kl` each example's divergence of the circuit's prediction from the model's; `drawn`
    the faithfulness of random circuits of the same size; `minimality` what the circuit's faithfulness loses without
    each of its nodes. `curves` are of growing circuits by the scores:
    by magnitude ("absolute") and, where scores have a sign, by it ("signed").
    """

    size: int
    of: int
    values: Float[np.ndarray, " example"]
    full: Float[np.ndarray, " example"]
    empty: Float[np.ndarray, " example"]
    complement: Float[np.ndarray, " example"]
    kl: Float[np.ndarray, " example"]
    drawn: Float[np.ndarray, " draw"]
    completeness: tuple[Knockout, ...] = ()
    minimality: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, FaithfulnessCurve] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def faithfulness(self) -> Area:
        """(metric of the circuit − metric without edges) / (metric of the model − metric without edges), of means."""
        return self._share(self.values)

    @cached_property
    def rest(self) -> Area:
        """The same of all edges but the circuit's: near 0 if the circuit is all that matters."""
        return self._share(self.complement)

    def _share(self, values: Float[np.ndarray, " example"]) -> Area:
        raw, gap = (values - self.empty).astype(np.float64), (self.full - self.empty).astype(np.float64)
        low, high = bootstrap_ratio(raw[None], gap)
        return Area(float(raw.mean() / gap.mean()), float(low[0]), float(high[0]))

    @property
    def incompleteness(self) -> float:
        """The largest difference of all knockouts; NaN without any."""
        return max((knockout.difference for knockout in self.completeness), default=float("nan"))

    @property
    def idle(self) -> tuple[str, ...]:
        """Nodes whose loss moves faithfulness by less than 1 %: the circuit could do without each of them."""
        return tuple(name for name, lost in self.minimality.items() if abs(lost) < 0.01)

    @property
    def kl_quantiles(self) -> tuple[float, float, float]:
        """The 5 %, 50 % and 95 % quantiles of the divergence over examples, in nats."""
        low, median, high = np.quantile(self.kl, QUANTILES).tolist()
        return low, median, high

    @property
    def chance(self) -> float:
        """Share of random circuits that are at least as faithful, the circuit itself counted in."""
        better = int((np.abs(1 - self.drawn) <= abs(1 - self.faithfulness.value)).sum())
        return (better + 1) / (len(self.drawn) + 1)

    @property
    def cpr(self) -> Area | None:
        """Area under faithfulness, by signed scores where there are any (MIB); None without scores."""
        curve = self.curves.get("signed", self.curves.get("absolute"))
        return None if curve is None else curve.cpr

    @property
    def cmd(self) -> Area | None:
        """Area between faithfulness and 1, by magnitudes (MIB); None without scores."""
        curve = self.curves.get("absolute")
        return None if curve is None else curve.cmd

    def rows(self) -> list[tuple[str, float, float, float]]:
        """Return the scores as rows of name, value and bounds (NaN where there are none)."""
        none = float("nan")
        found = [("faithfulness", *_flat(self.faithfulness)), ("all but the circuit", *_flat(self.rest))]
        low, median, high = self.kl_quantiles
        found.append(("KL from the model, median (5–95 %)", median, low, high))
        if self.completeness:
            found.append(("largest incompleteness", self.incompleteness, none, none))
        if self.minimality:
            found.append(("nodes it could do without", len(self.idle) / len(self.minimality), none, none))
        if len(self.drawn):
            found.append(("random circuits, best", float(self.drawn.max()), none, none))
        for name, area in (("CPR", self.cpr), ("CMD", self.cmd)):
            if area is not None:
                found.append((name, *_flat(area)))
        return found

    def save(self, folder: str | Path) -> Path:
        """Write the scores as a result folder; give it. Raises BadInput as `save_scorecard` does."""
        from crosspatch.circuits.scorecard_saving import save_scorecard

        return save_scorecard(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Scorecard":
        """Read what `save` wrote. Raises BadInput or CorruptFile as `load_scorecard` does."""
        from crosspatch.circuits.scorecard_saving import load_scorecard

        return load_scorecard(folder)

    def __repr__(self) -> str:
        return f"<Scorecard: {self}>"

    def __rich__(self) -> "Stack":
        from rich.console import Group as Stack
        from rich.text import Text

        notes = [Text(f"! {text}", style="yellow") for text in self.warnings]
        return Stack(score_table(self.rows()), *notes, Text(str(self), style="bold"))

    def _repr_html_(self) -> str:
        rows = [(name, with_interval(value, low, high, digits=3)) for name, value, low, high in self.rows()]
        notes = "".join(f"<p>{escape(text)}</p>" for text in self.warnings)
        return f"<p>{escape(str(self))}</p>{table_html(('score', 'value [95% interval]'), rows)}{notes}"

    def __str__(self) -> str:
        f = self.faithfulness
        return (
            f"{self.size:,} of {self.of:,} edges: faithfulness {f.value:.2f} [{f.low:.2f}, {f.high:.2f}], "
            f"without them {self.rest.value:.2f}, median KL {self.kl_quantiles[1]:.3f} nats on {len(self.values)} pairs"
        )


def _flat(area: Area) -> tuple[float, float, float]:
    return area.value, area.low, area.high
