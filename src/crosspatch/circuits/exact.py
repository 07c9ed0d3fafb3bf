"""Exact scores: what the metric loses when one edge is cut and all others are left, edge by edge, many a pass."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from crosspatch.circuits.graph import Graph
from crosspatch.circuits.measuring import Count, Gauge, gauges
from crosspatch.circuits.opening import EdgeSweep
from crosspatch.core.journal import Journal, Notes

AT_ONCE = 1024  # edges whose results are written down together


def leave_one_out(sweep: EdgeSweep, notes: Journal | Notes, count: Count) -> Float[np.ndarray, "place receiver sender"]:
    """Return metric(all edges) − metric(all but this one), averaged over the pairs; NaN where there is no edge.

    Finished edges are taken over from `notes`, new ones are written there.
    Raises:
        NotFinite: the metric of some run is not a number.
    """
    graph, done = sweep.graph, notes.done()
    unit = 0
    for gauge in gauges(sweep, count):
        parts = list(_parts(graph))
        left = [(unit + number, edges) for number, edges in enumerate(parts) if unit + number not in done]
        unit += len(parts)
        if not left:
            continue
        full = gauge.measure(gauge.machine.clean, graph.full()[None])[0, 0]
        for number, edges in left:
            lost = full[None] - _without(gauge, edges)
            flat = np.ravel_multi_index(tuple(edges.T), graph.shape)
            notes.append(number, {"edge": np.asarray(flat), "lost": lost.sum(1, dtype=np.float64)})
            sweep.options.progress.advance(len(edges))
    rows, total = notes.read(), np.zeros(graph.shape)
    np.add.at(total.reshape(-1), rows["edge"], rows["lost"])
    return np.where(graph.allowed[None], total / len(sweep.pairs), np.nan).astype(np.float32)


def _parts(graph: Graph) -> Iterator[Int[np.ndarray, "edge 3"]]:
    """Yield the edges of one layer's attention, or MLP, after the other: below them all runs are the clean one."""
    edges = np.argwhere(graph.full())
    steps = np.array([_step(graph, receiver) for receiver in range(len(graph.receivers))])[edges[:, 1]]
    order = np.argsort(steps, kind="stable")
    edges, steps = edges[order], steps[order]
    for same in np.split(edges, np.flatnonzero(np.diff(steps)) + 1):
        yield from np.split(same, range(AT_ONCE, len(same), AT_ONCE))


def _step(graph: Graph, receiver: int) -> int:
    site = graph.receivers[receiver]
    return 2 * graph.layers if site.layer is None else 2 * site.layer + (site.kind == "mlp.in")


def _without(gauge: Gauge, edges: Int[np.ndarray, "edge 3"]) -> Float[np.ndarray, "edge pair"]:
    graph = gauge.machine.graph
    masks = np.repeat(graph.full()[None], len(edges), axis=0)
    masks[np.arange(len(edges)), *edges.T] = False
    return gauge.measure(gauge.machine.clean, masks)[0]
