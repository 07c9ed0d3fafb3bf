"""How a circuit is put to the test: the six choices of an ablation, each named and kept with every number.

Faithfulness hangs on all of them (Miller et al. 2024, 2407.08734): what is ablated (edges or whole nodes), which kinds
of part, with what, at which tokens, whether the circuit or its complement is ablated, and how large the circuit is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.graph import Graph
from crosspatch.core.errors import UnknownName
from crosspatch.engine import Ablation

GRAINS = ("edge", "node")
DIRECTIONS = ("keep", "cut")
PARTS = {"embed": "embed", "heads": "attn.head", "mlps": "mlp.out"}

Included = Bool[np.ndarray, "place receiver sender"]


@dataclass(frozen=True)
class Regime:
    """The choices of an ablation; the sixth, the size of the circuit, is the circuit's own.

    `grain`: "edge" ablates edges, "node" all edges out of nodes that have none in the circuit, and no others.
    `parts`: senders that are ablated at all ("embed", "heads", "mlps"); the others' edges always carry the clean run.
    `value`: what ablated edges carry: "corrupt", "zero", "mean", "resample", or an `Ablation`.
    `positions`: names of positions at which edges are ablated; None for all. `direction`: "keep" runs the circuit alone
    (is it enough?), "cut" everything but the circuit (is it needed?).
    """

    grain: str = "edge"
    parts: Sequence[str] = tuple(PARTS)
    value: str | Ablation = "corrupt"
    positions: Sequence[str] | None = None
    direction: str = "keep"

    def __post_init__(self) -> None:
        for name, given, allowed in (("grain", self.grain, GRAINS), ("direction", self.direction, DIRECTIONS)):
            if given not in allowed:
                raise UnknownName.of(name, given, allowed)
        for part in self.parts:
            if part not in PARTS:
                raise UnknownName.of("part", part, tuple(PARTS))

    def settings(self, circuit: Circuit) -> dict[str, Any]:
        """Return all six choices as a result stores them."""
        return {
            "grain": self.grain,
            "parts": list(self.parts),
            "value": self.value if isinstance(self.value, str) else self.value.settings(),
            "positions": "all" if self.positions is None else list(self.positions),
            "direction": self.direction,
            "size": circuit.size,
        }

    def run_with(self, graph: Graph, included: Included) -> Included:
        """Return the edges that carry the run itself where a circuit is put to the test."""
        kept = included if self.direction == "keep" else graph.full() & ~included
        if self.grain == "node":
            nodes: np.ndarray = np.any(included, axis=1, keepdims=True)
            kept = graph.full() & (nodes if self.direction == "keep" else ~nodes)
        spared = np.array([sender.kind not in {PARTS[part] for part in self.parts} for sender in graph.senders])
        kept = kept | (graph.allowed[None] & spared)
        if self.positions is not None and graph.places:
            elsewhere = np.array([place not in self.positions for place in graph.places])
            kept = kept | (graph.allowed[None] & elsewhere[:, None, None])
        return kept
