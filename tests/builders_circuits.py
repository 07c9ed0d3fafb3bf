"""What tests of circuits share: opened machines and random circuits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from crosspatch.circuits.graph import Graph
from crosspatch.circuits.machine import Machine
from crosspatch.circuits.opening import edge_sweep, graph_of
from crosspatch.engine import Ablation
from crosspatch.models.model import Model
from crosspatch.tasks import Task


@contextmanager
def machine_of(
    model: Model,
    task: Task,
    *,
    places: Sequence[str] = (),
    metric: str = "logit_diff",
    ablation: Ablation | None = None,
    tracked: bool = False,
) -> Iterator[Machine]:
    """Open a machine for all pairs of a task; `tracked`: gradients can be pulled through it."""
    sweep = edge_sweep(model, task, graph_of(model, places), [metric], ablation=ablation)
    sweep.tracked = tracked
    with sweep.machine(range(len(task.pairs))) as machine:
        yield machine


def random_masks(graph: Graph, *shares: float, seed: int = 0) -> np.ndarray:
    """Return circuits that keep a share of the edges each, drawn at random."""
    rng = np.random.default_rng(seed)
    return np.stack([graph.full() & (rng.random(graph.shape) < share) for share in shares])
