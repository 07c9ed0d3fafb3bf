"""Information-flow routes as scores of edges: how much of a prediction flows from a sender into a receiver.

A route splits each stream among the parts that make it up (Ferrando & Voita 2024). Going down from the prediction, what
flows into a head's value or an MLP is kept apart by that receiver until it meets the sender it comes from. Queries and
keys carry no information in this sense, so edges into them have no score. This reading of routes as edges is ours.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from crosspatch.circuits.graph import Graph
from crosspatch.circuits.opening import EdgeSweep
from crosspatch.core.errors import BadInput
from crosspatch.flow import Route, RouteEdge, routes
from crosspatch.sites import Site
from crosspatch.tasks import Task

THRESHOLD = 0.01  # parts of a stream that carry less are left out

Mass = dict[tuple[int, int], np.ndarray]  # what flows into a stream (stage, position), by the receiver that reads it


def route_scores(sweep: EdgeSweep, task: Task) -> Float[np.ndarray, "place receiver sender"]:
    """Return the flow along each edge, averaged over the task's clean prompts; NaN into queries and keys.

    Raises:
        BadInput: places were asked for, or the model's attention is its own code.
    """
    graph = sweep.graph
    if graph.places:
        raise BadInput("routes tell edges apart by layer and head, not by place: leave the places out.")
    found = routes(sweep.model, task, threshold=THRESHOLD)
    total = sum(flows(graph, route) for route in found) / len(found)
    unseen = np.array([site.kind in ("attn.q", "attn.k") for site in graph.receivers])
    return np.where(graph.allowed & ~unseen[:, None], total, np.nan)[None]


def flows(graph: Graph, route: Route) -> Float[np.ndarray, "receiver sender"]:
    """Return the flow of one route along each edge; all that reaches the embedding, and what biases add, adds to 1."""
    out = np.zeros(graph.shape[1:])
    senders = {str(site): number for number, site in enumerate(graph.senders)}
    receivers = {site: number for number, site in enumerate(graph.receivers)}
    mass: Mass = defaultdict(lambda: np.zeros(len(graph.receivers)))
    mass[2 * graph.layers, route.end][receivers[Site("logits")]] = 1.0
    for edge, stage, target, source, layer in _edges(route):
        here = mass[stage, target] * edge.weight
        if edge.component == "resid":
            mass[stage - 1 if graph.sequential else 2 * layer, target] += here
        elif edge.component in senders:
            sender = graph.senders[senders[edge.component]]
            out[:, senders[edge.component]] += here
            reader, stage_read = _reader(graph, sender)
            mass[stage_read, source][receivers[reader]] += here.sum()
    for (stage, _), here in mass.items():
        if stage == 0:
            out[:, 0] += here
    return out


def _edges(route: Route) -> Iterator[tuple[RouteEdge, int, int, int, int]]:
    """Yield edges from the last stage down, each with its stage, target, source and layer."""
    columns = (route.edges[name].tolist() for name in ("stage", "target", "source", "layer"))
    yield from sorted(zip(route, *columns, strict=True), key=lambda row: -row[1])


def _reader(graph: Graph, sender: Site) -> tuple[Site, int]:
    """Return the receiver that feeds a sender with information, and the stage that it reads."""
    layer = sender.layer or 0
    if sender.kind == "mlp.out":
        return Site("mlp.in", layer), 2 * layer + 1 if graph.sequential else 2 * layer
    return Site("attn.v", layer, (sender.unit or 0) // (graph.heads // graph.kv_heads)), 2 * layer
