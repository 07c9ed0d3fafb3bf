"""Completeness and minimality: circuits with nodes knocked out, and what that says of them (Wang et al. 2022, §4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.scorecard import Knockout
from crosspatch.sites import Site

if TYPE_CHECKING:
    from crosspatch.circuits.scoring import Scoring

SHARE = 0.5  # of the circuit's nodes in a random set
GREEDY, TRIED = 3, 8  # nodes of the greedy set, and candidates tried for each

Included = Bool[np.ndarray, "place receiver sender"]
Run = Callable[[Sequence[Included]], Float[np.ndarray, " circuit"]]


@dataclass(frozen=True)
class Knocking:
    """The sets of nodes that are knocked out of one circuit; a node goes with all edges out of it."""

    circuit: Circuit
    how: "Scoring"
    rng: np.random.Generator

    @cached_property
    def sets(self) -> dict[str, tuple[Site, ...]]:
        """Sets by class (the circuit's own groups, or MLPs and each layer's heads) and random ones, by name."""
        nodes = [node for node in self.circuit.nodes if node.kind != "embed"]
        if not self.how.knockouts or not nodes:
            return {}
        found = {name: tuple(n for n in nodes if str(n) in named) for name, named in self._classes(nodes).items()}
        for number in range(self.how.knockouts):
            chosen = self.rng.random(len(nodes)) < SHARE
            found[f"random {number + 1}"] = tuple(n for n, taken in zip(nodes, chosen, strict=True) if taken)
        return {name: chosen for name, chosen in found.items() if chosen}

    def _classes(self, nodes: Sequence[Site]) -> dict[str, set[str]]:
        groups = self.circuit.details.get("groups")
        if groups:
            return {str(name): {str(node) for node in members} for name, members in groups.items()}
        found: dict[str, set[str]] = {}
        for node in nodes:
            name = "MLPs" if node.kind == "mlp.out" else f"heads of layer {node.layer}"
            found.setdefault(name, set()).add(str(node))
        return found

    def without(self, included: Included, nodes: Sequence[Site]) -> Included:
        """Return the edges that are not out of these nodes."""
        gone = np.array([sender in nodes for sender in self.circuit.graph.senders])
        return included & ~gone

    def asked(self) -> dict[str, list[Included]]:
        """Return the circuits to run, by what they are for."""
        own, full = self.circuit.included, self.circuit.graph.full()
        found = {
            "knocked circuit": [self.without(own, nodes) for nodes in self.sets.values()],
            "knocked model": [self.without(full, nodes) for nodes in self.sets.values()],
        }
        if self.how.minimality:
            found["minimality"] = [self.without(own, [node]) for node in self.circuit.nodes]
        return found

    @property
    def later(self) -> int:
        """Number of circuits that are run to grow the greedy set."""
        count = len([node for node in self.circuit.nodes if node.kind != "embed"])
        return sum(2 * min(TRIED, count - step) for step in range(min(GREEDY, count))) if self.sets else 0

    def minimality(self, shares: Mapping[str, Float[np.ndarray, " circuit"]]) -> dict[str, float]:
        """Return what faithfulness loses without each node."""
        if not self.how.minimality:
            return {}
        whole = float(shares["circuit"][0])
        lost = (whole - shares["minimality"]).tolist()
        return {str(node): each for node, each in zip(self.circuit.nodes, lost, strict=True)}

    def knockouts(self, shares: Mapping[str, Float[np.ndarray, " circuit"]], run: Run) -> tuple[Knockout, ...]:
        """Return what circuit and model keep without each set, and without one grown greedily to tell them apart."""
        rows = zip(self.sets.items(), shares["knocked circuit"], shares["knocked model"], strict=True)
        found = [Knockout(name, tuple(map(str, nodes)), float(own), float(model)) for (name, nodes), own, model in rows]
        if self.sets:
            found.append(self._greedy(run))
        return tuple(found)

    def _greedy(self, run: Run) -> Knockout:
        """Add the node, of a few drawn at random, that drives circuit and model apart most, time and again."""
        nodes = [node for node in self.circuit.nodes if node.kind != "embed"]
        taken: list[Site] = []
        best = Knockout("greedy", (), float("nan"), float("nan"))
        own, full = self.circuit.included, self.circuit.graph.full()
        for _ in range(min(GREEDY, len(nodes))):
            left = [node for node in nodes if node not in taken]
            tried = [left[i] for i in self.rng.permutation(len(left))[:TRIED]]
            sets = [[*taken, node] for node in tried]
            shares = run([self.without(mask, each) for mask in (own, full) for each in sets])
            apart = np.abs(shares[: len(sets)] - shares[len(sets) :])
            chosen = int(apart.argmax())
            taken.append(tried[chosen])
            names = tuple(map(str, taken))
            best = Knockout("greedy", names, float(shares[chosen]), float(shares[len(sets) + chosen]))
        return best
