"""Learn masks: each edge (or node) gets a gate, and gates are trained to be few and to keep the metric.

Gates are hard concrete (Louizos et al. 2018): stretched, clipped sigmoids of noise, exactly 0 or 1 most of the time.
Edge masks are driven to a target size by a Lagrangian (Bhaskar et al. 2024, 2406.16778); node masks by a price on open
nodes, as in subnetwork probing (Cao et al. 2021, as Conmy et al. 2023 run it).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.circuits.graph import Graph
from crosspatch.circuits.machine import Machine
from crosspatch.circuits.soft import soft_run
from crosspatch.core.errors import NotFinite

LOW, HIGH, HEAT = -0.1, 1.1, 2 / 3
OPEN = 0.9  # share of the noise for which a gate starts open


@dataclass(frozen=True)
class Training:
    """How masks are trained: `target` is the share of edges that is to be left, `price` what an open node costs.

    `warm` is the share of steps over which the target is approached.
    """

    steps: int = 400
    rate: float = 0.1
    target: float = 0.05
    price: float = 0.0
    warm: float = 0.6
    seed: int = 0


def open_share(gates: Float[Tensor, " gate"]) -> Float[Tensor, " gate"]:
    """Return how likely each gate is not closed."""
    return torch.sigmoid(gates - HEAT * math.log(-LOW / HIGH))


def drawn(gates: Float[Tensor, " gate"], noise: Float[Tensor, " gate"]) -> Float[Tensor, " gate"]:
    """Return gates for uniform noise in (0, 1)."""
    at = torch.sigmoid((noise.log() - (-noise).log1p() + gates) / HEAT)
    return (at * (HIGH - LOW) + LOW).clamp(0, 1)


def settled(gates: Float[Tensor, " gate"]) -> Float[Tensor, " gate"]:
    """Return gates without noise."""
    return (torch.sigmoid(gates) * (HIGH - LOW) + LOW).clamp(0, 1)


@dataclass
class Trainer:
    """Trains the gates of one machine; `spread` lays gates out as weights of edges."""

    machine: Machine
    how: Training
    gates: Tensor
    spread: Callable[[Tensor], Tensor]
    gap: float
    step: int = 0

    def __post_init__(self) -> None:
        self.gates.requires_grad_()
        self.multipliers = torch.zeros(2, device=self.gates.device, requires_grad=True)
        self.optimiser = torch.optim.Adam([{"params": [self.gates]}], lr=self.how.rate)
        self.ascent = torch.optim.Adam([self.multipliers], lr=self.how.rate, maximize=True)
        self.noise = torch.Generator().manual_seed(self.how.seed)

    def loss(self, weights: Float[Tensor, "place receiver sender"]) -> Float[Tensor, ""]:
        """Return how far the metric is from the clean run's, in gaps, averaged over pairs.

        Raises:
            NotFinite: it is not a number.
        """
        pairs = torch.arange(len(self.machine.local.numbers), device=self.gates.device)
        clean = self.machine.before[0]
        values = self.machine.scorer(soft_run(self.machine, weights)[0], pairs)[0]
        found = ((values - clean).abs() / self.gap).mean()
        if not bool(torch.isfinite(found)):
            raise NotFinite(f"the loss is {float(found)} at step {self.step}: lower the rate, or use dtype float32.")
        return found

    def run_step(self) -> float:
        """Train one step; return the loss."""
        noise = torch.rand(self.gates.shape, generator=self.noise).clamp(1e-6, 1 - 1e-6).to(self.gates.device)
        with torch.enable_grad():
            loss = self.loss(self.spread(drawn(self.gates, noise)))
            share = open_share(self.gates).mean()
            missing = share - self.target
            cost = self.multipliers[0] * missing + self.multipliers[1] * missing**2
            whole = loss + (self.how.price * share if self.how.price else cost)
            for optimiser in (self.optimiser, self.ascent):
                optimiser.zero_grad()
            whole.backward()
        self.optimiser.step()
        if not self.how.price:
            self.ascent.step()
        self.step += 1
        return float(loss.detach())

    @property
    def target(self) -> float:
        """The share of open gates that this step aims at: from all down to the target."""
        way = min(1.0, self.step / max(1, int(self.how.warm * self.how.steps)))
        return 1.0 + way * (self.how.target - 1.0)

    def state(self) -> dict[str, Tensor]:
        """Return all that training goes on from."""
        found = {"gates": self.gates.detach(), "multipliers": self.multipliers.detach()}
        found["noise"] = self.noise.get_state()
        for name, optimiser in (("optimiser", self.optimiser), ("ascent", self.ascent)):
            for number, each in optimiser.state_dict()["state"].items():
                found |= {f"{name}.{number}.{key}": value for key, value in each.items()}
        return found | {"step": torch.tensor(self.step)}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        with torch.no_grad():
            self.gates.copy_(kept["gates"])
            self.multipliers.copy_(kept["multipliers"])
        self.noise.set_state(kept["noise"])
        self.step = int(kept["step"])
        for name, optimiser in (("optimiser", self.optimiser), ("ascent", self.ascent)):
            whole: dict[str, Any] = optimiser.state_dict()
            for key, value in kept.items():
                head, _, rest = key.partition(".")
                if head == name:
                    number, _, inner = rest.partition(".")
                    whole["state"].setdefault(int(number), {})[inner] = value
            optimiser.load_state_dict(whole)


def edge_gates(graph: Graph, device: torch.device) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return a gate for each edge and how gates lie in the graph."""
    allowed = torch.from_numpy(graph.full()).to(device)
    start = math.log(OPEN / (1 - OPEN))

    def spread(gates: Tensor) -> Tensor:
        return torch.zeros(graph.shape, device=device).masked_scatter(allowed, gates)

    return torch.full((graph.size,), start, device=device), spread


def node_gates(graph: Graph, device: torch.device) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return a gate for each sender at each place, which all of its edges share."""
    allowed = torch.from_numpy(graph.full()).to(device)
    start = math.log(OPEN / (1 - OPEN))

    def spread(gates: Tensor) -> Tensor:
        return gates.view(graph.rooms, 1, -1) * allowed

    return torch.full((graph.rooms * len(graph.senders),), start, device=device), spread


def gate_scores(trainer: Trainer) -> Float[np.ndarray, "place receiver sender"]:
    """Return the gates as scores of edges: their log odds, NaN where the graph has no edge."""
    graph = trainer.machine.graph
    odds = trainer.gates.detach()
    scores = trainer.spread(odds).cpu().numpy().astype(np.float32)
    return np.where(graph.allowed[None], scores, np.nan)
