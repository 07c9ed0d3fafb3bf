"""A circuit: some edges of a model's graph, how strongly each was scored, and how they were found."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.circuits.graph import CircuitEdge, Graph
from crosspatch.core.errors import BadInput
from crosspatch.draw import NetworkLook, edge_table, lay_out_network, network_html
from crosspatch.sites import Site

if TYPE_CHECKING:
    from rich.console import Group as Stack

    from crosspatch.circuits.scorecard import Scorecard

SHOWN = 200  # edges of a notebook's picture
LISTED = 10  # edges of a terminal's table


@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges of a graph, as marks and scores of the graph's shape.

    `scores` are the method's own, NaN where it gives none (edges that the graph does not have are never read); with
    `signed` a positive score says that the edge helps the metric. `settings` say how it was found, `details` keep what
    a method has to tell beside (the order of tests, losses).
    """

    graph: Graph
    included: Bool[np.ndarray, "place receiver sender"]
    scores: Float[np.ndarray, "place receiver sender"] | None = None
    signed: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.included.shape != self.graph.shape:
            raise BadInput(f"a circuit of this graph is an array {self.graph.shape}, not {self.included.shape}.")
        if bool((self.included & ~self.graph.allowed).any()):
            raise BadInput("a circuit holds edges that its graph does not have.")

    @property
    def size(self) -> int:
        """Number of edges."""
        return int(self.included.sum())

    @property
    def edges(self) -> tuple[CircuitEdge, ...]:
        """The edges, in the order of their receivers."""
        return tuple(self.graph.edges(self.included))

    @property
    def nodes(self) -> tuple[Site, ...]:
        """The senders with an edge to somewhere, in the order of a forward pass."""
        used: np.ndarray = np.any(self.included, axis=(0, 1))
        return tuple(site for site, there in zip(self.graph.senders, used, strict=True) if there)

    def score(self, edge: CircuitEdge) -> float:
        """Return the score of an edge; NaN where there is none."""
        return float("nan") if self.scores is None else float(self.scores[self.graph.index(edge)])

    def with_edges(self, included: Bool[np.ndarray, "place receiver sender"], **settings: Any) -> "Circuit":
        """Return a circuit of the same graph and scores with other edges."""
        return replace(self, included=included, settings={**self.settings, **settings})

    def pruned(self) -> "Circuit":
        """Return the circuit without edges that lie on no path from the embedding to the logits."""
        return replace(self, included=prune(self.graph, self.included))

    def save(self, folder: str | Path) -> Path:
        """Write the circuit as a result folder; give it. Raises BadInput as `save_circuit` does."""
        from crosspatch.circuits.saving import save_circuit

        return save_circuit(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Circuit":
        """Read what `save` wrote. Raises BadInput or CorruptFile as `load_circuit` does."""
        from crosspatch.circuits.saving import load_circuit

        return load_circuit(folder)

    def finding(self, score: "Scorecard | None" = None) -> str:
        """Say in one sentence how large the circuit is and, with its scores, how well it does."""
        from crosspatch.circuits.telling import finding

        return finding(self, score)

    def report(self, path: str | Path, score: "Scorecard | None" = None) -> Path:
        """Write one self-contained HTML page; give its path. Raises BadInput if it cannot be written."""
        from crosspatch.report import content_of_circuit, write_circuit

        return write_circuit(content_of_circuit(self, score), path)

    def __repr__(self) -> str:
        return f"<Circuit: {self.size:,} of {self.graph.size:,} edges, {len(self.nodes):,} nodes>"

    def __rich__(self) -> "Stack":
        from rich.console import Group as Stack
        from rich.text import Text

        from crosspatch.circuits.telling import in_order

        edges, scores, _ = in_order(self)
        count = min(self.size, LISTED)
        table = edge_table(edges[:count], scores[:count], most=count, total=self.size)
        return Stack(table, Text(self.finding(), style="bold"))

    def _repr_html_(self) -> str:
        from crosspatch.circuits.telling import in_order

        edges, scores, _ = in_order(self)
        count = min(self.size, SHOWN)
        more = f" The first {count:,} are drawn." if count < self.size else ""
        network = lay_out_network(self.graph, edges[:count], scores[:count])
        look = NetworkLook(f"{self.size:,} of {self.graph.size:,} edges", signed=self.signed)
        return f"<p>{escape(self.finding())}{more}</p>{network_html(network, look)}"


def prune(
    graph: Graph, included: Bool[np.ndarray, "place receiver sender"]
) -> Bool[np.ndarray, "place receiver sender"]:
    """Return only the edges that lie on a path from the embedding to the logits.

    Attention carries tokens' values to later tokens, so a node counts as one over all places.
    """
    kept = included & graph.allowed
    feeds: np.ndarray = graph.feeds
    ends: np.ndarray = ~np.any(feeds, axis=-1)  # the logits
    while True:
        somewhere: np.ndarray = np.any(kept, axis=0)
        heard: np.ndarray = np.any(somewhere, axis=0)  # senders that somebody reads
        reads: np.ndarray = np.any(somewhere, axis=-1)
        fed: np.ndarray = np.any(feeds & reads[:, None], axis=0)  # senders with an input
        fed[0] = True  # the embedding needs none
        leads: np.ndarray = ends | np.any(feeds & heard[None], axis=-1)  # the logits, and inputs of nodes that are read
        slim = kept & (fed & heard)[None, None] & leads[None, :, None]
        if bool((slim == kept).all()):
            return slim
        kept = slim


def top_edges(
    graph: Graph, scores: Float[np.ndarray, "place receiver sender"], count: int, *, absolute: bool
) -> Bool[np.ndarray, "place receiver sender"]:
    """Return the edges with the highest scores (or magnitudes); edges without a score come last, ties in order."""
    keys = np.abs(scores) if absolute else scores
    keys = np.where(np.isnan(keys), -np.inf, keys).astype(np.float64)
    flat = np.broadcast_to(graph.allowed, graph.shape).ravel()
    order = np.flatnonzero(flat)
    order = order[np.argsort(-keys.ravel()[order], kind="stable")]
    included = np.zeros(flat.shape, dtype=bool)
    included[order[:count]] = True
    return included.reshape(graph.shape)


def greedy_edges(
    graph: Graph, scores: Float[np.ndarray, "place receiver sender"], count: int, *, absolute: bool
) -> Bool[np.ndarray, "place receiver sender"]:
    """Grow a circuit from the logits: each time the best edge into a node that is in it (Hanna et al. 2024).

    Edges without a score come last. Fewer than `count` edges come back only where the graph has no more.
    """
    keys = np.where(np.isnan(scores), -np.inf, np.abs(scores) if absolute else scores)
    included = np.zeros(graph.shape, dtype=bool)
    heap: list[tuple[float, tuple[int, int, int]]] = []
    reached = np.zeros(len(graph.receivers), dtype=bool)

    def reach(receivers: np.ndarray) -> None:
        for receiver in receivers[~reached[receivers]]:
            reached[receiver] = True
            for place in range(graph.rooms):
                for sender in np.flatnonzero(graph.allowed[receiver]):
                    edge = (place, int(receiver), int(sender))
                    heappush(heap, (-float(keys[edge]), edge))

    reach(np.flatnonzero(~graph.feeds.any(1)))
    for _ in range(count):
        if not heap:
            break
        _, edge = heappop(heap)
        included[edge] = True
        reach(np.flatnonzero(graph.feeds[:, edge[2]]))
    return included
