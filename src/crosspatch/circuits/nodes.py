"""Scores of nodes from estimates of patching them, laid out as scores of edges."""

import numpy as np
from jaxtyping import Float

from crosspatch.attribution import attribute
from crosspatch.circuits.graph import Graph
from crosspatch.engine import Effects, Options
from crosspatch.metrics import Metric
from crosspatch.models.model import Model
from crosspatch.tasks import Task

SITES = "embed@all, attn.head@all, mlp.out@all"

ROUNDING = 1e-6  # of the largest layer's norm: a layer with less has nothing that matters, and is not blown up

Nodes = Float[np.ndarray, " sender"]


def estimates(model: Model, task: Task, *, metric: Metric, estimator: str, options: Options | None) -> Effects:
    """Estimate the effect of noising each sender."""
    return attribute(model, task, sites=SITES, by=estimator, direction="noise", metric=metric, options=options)


def node_scores(found: Effects, graph: Graph) -> Nodes:
    """Return the mean loss of the metric that is estimated for noising each sender, along the gap."""
    effects = found.raw.mean(1, dtype=np.float64) * np.sign(found.mean_gap)
    return effects[_rows(found, graph)]


def hisp_scores(found: Effects, graph: Graph) -> Nodes:
    """Return head importance scores: mean absolute slope by each node's mask, over the root mean square of its layer.

    Source: Michel et al. 2019, as Conmy et al. 2023 (appendix D) extend it to corrupt activations.
    """
    size = np.abs(found.raw).mean(1, dtype=np.float64)[_rows(found, graph)]
    layers = np.array([-1 if sender.layer is None else sender.layer for sender in graph.senders])
    norms = np.array([np.linalg.norm(size[layers == layer]) for layer in layers])
    return size / np.where(norms > ROUNDING * norms.max(), norms, 1.0)


def _rows(found: Effects, graph: Graph) -> list[int]:
    order = {str(site).partition("@")[0]: row for row, site in enumerate(found.sites)}
    return [order[str(sender)] for sender in graph.senders]


def edges_between(graph: Graph, nodes: Nodes) -> Float[np.ndarray, "place receiver sender"]:
    """Give each edge the lower score of its two nodes: at any threshold, all edges between the nodes that are left.

    A key-value head counts as its best query head, and the logits as always there.
    """
    owners = np.where(graph.feeds, nodes[None], -np.inf).max(1)
    owners = np.where(graph.feeds.any(1), owners, np.inf)
    scores = np.minimum(owners[:, None], nodes[None])
    return np.where(graph.allowed[None], np.broadcast_to(scores, graph.shape), np.nan).astype(np.float32)
