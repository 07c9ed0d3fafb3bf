"""What tests of circuits share: opened machines, random circuits, small models beside their twins, planted ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.graph import Graph
from crosspatch.circuits.machine import Machine
from crosspatch.circuits.opening import edge_sweep, graph_of
from crosspatch.engine import Ablation
from crosspatch.models.model import Model
from crosspatch.models.open import open_model
from crosspatch.tasks import Task
from naive.circuits import Body
from planted import Planted, backup, fraction, gates, induction, negative, reverse
from zoo import ZOO, fresh

BUILDERS: Mapping[str, Callable[[], Planted]] = {
    "AND": gates.build_and,
    "OR": gates.build_or,
    "ADDER": gates.build_adder,
    "induction": induction.build,
    "backup": backup.build,
    "negative": negative.build,
    "fraction": fraction.build,
    "reverse": reverse.build,
    "reverse by length": reverse.build_by_length,
}


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


@cache
def little(name: str, layers: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Model, Body]:
    """Return a family of the zoo with fewer layers, opened, and as the twin takes it; leave its module as it is."""
    beast = ZOO[name]
    key = "n_layer" if "n_layer" in beast.config else "n_layers" if "n_layers" in beast.config else "num_hidden_layers"
    fewer: dict[str, Any] = {key: layers}
    if "layer_types" in beast.config:
        fewer["layer_types"] = list(beast.config["layer_types"])[-layers:]
    module = fresh(name, dtype=dtype, **fewer)
    graph = Graph(layers, len(beast.q), len(beast.k), sequential=not beast.parallel)
    return open_model(module), Body(module, beast.blocks, beast.spots, beast.columns, graph)


@cache
def planted_model(name: str) -> tuple[Planted, Model, Task]:
    """Return a planted model by name, opened, with its task."""
    planted = BUILDERS[name]()
    return planted, open_model(planted.module), planted.task()


def names_of(circuit: Circuit) -> frozenset[str]:
    """Return the names of a circuit's edges, as planted models tell them."""
    return frozenset(map(str, circuit.edges))


def circuit_of(graph: Graph, edges: frozenset[str]) -> Circuit:
    """Return the circuit of these edges of a graph without places."""
    included = np.zeros(graph.shape, dtype=bool)
    for index in np.argwhere(graph.full()).tolist():
        included[tuple(index)] = str(graph.edge(tuple(index))) in edges
    assert included.sum() == len(edges)
    return Circuit(graph, included)


@dataclass
class Stopper:
    """Listens to a search, and ends it after some batches as Ctrl-C would; 0: lets it run."""

    after: int = 0
    total: int = 0
    seen: list[int] = field(default_factory=list)

    def start(self, total: int, unit: str) -> None:
        """Note how much there is to do."""
        del unit
        self.total = total

    def advance(self, done: int, note: str = "") -> None:
        """Note what was done; end the search."""
        del note
        self.seen.append(done)
        if len(self.seen) == self.after:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Do nothing."""
