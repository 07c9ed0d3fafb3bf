"""What the page of a circuit shows, as plain data: no model, no task, no search."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from crosspatch.circuits.graph import CircuitEdge, Graph
from crosspatch.core.errors import BadInput


@dataclass(frozen=True, eq=False)
class CircuitCurve:
    """Faithfulness of circuits of growing size: the mean over examples and its interval, by number of edges.

    A `reference` (random edges, exact scores) is what methods are compared with.
    """

    name: str
    edges: Float[np.ndarray, " point"]
    mean: Float[np.ndarray, " point"]
    low: Float[np.ndarray, " point"]
    high: Float[np.ndarray, " point"]
    reference: bool = False


@dataclass(frozen=True)
class ScoreLine:
    """One line of the table of scores; NaN bounds where there is no interval."""

    name: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    note: str = ""


@dataclass(frozen=True, eq=False)
class CircuitContent:
    """All that the page of a circuit shows.

    `edges` stand in the order in which the slider adds them (`order` says which, as in "by |score|"), with their
    `scores` (NaN where there is none); the first `size` are the circuit. `signed` scores are above zero where the edge
    helps the metric. The curve whose name is `method` tells the faithfulness of the first edges. `kl` is the divergence
    from the whole model's output of each example. `provenance` may hold the command, under "command".
    Raises BadInput for numbers that do not fit each other.
    """

    finding: str
    graph: Graph
    edges: tuple[CircuitEdge, ...]
    scores: Float[np.ndarray, " edge"]
    size: int
    signed: bool = False
    order: str = "by |score|"
    method: str = ""
    model: str = ""
    task: str = ""
    chips: tuple[tuple[str, str], ...] = ()
    curves: tuple[CircuitCurve, ...] = ()
    lines: tuple[ScoreLine, ...] = ()
    kl: Float[np.ndarray, " example"] | None = None
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.scores):
            raise BadInput(f"{len(self.edges)} edges have {len(self.scores)} scores: give one for each edge.")
        if not 0 <= self.size <= len(self.edges):
            raise BadInput(f"a circuit of {self.size} edges cannot be the first of {len(self.edges)}.")

    @property
    def curve(self) -> CircuitCurve | None:
        """The curve of these edges, if it was measured."""
        return next((curve for curve in self.curves if curve.name == self.method and not curve.reference), None)
