"""ACDC: cut edges one by one, from the logits down, and keep those whose loss would move the metric too much.

The next edge's test hangs on the outcome of the one before, so the published algorithm is one forward an edge. But
nearly all edges are cut: so row j of a batch cuts the first j of the next edges, as if all of them would go. Rows are
taken over as far as each step stays under the threshold; the edge at the first surprise is kept, and the rest starts
anew. The same comparisons are made as one by one. Near ties, which the last bits of a batch could decide, are measured
again alone, in both ways.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.circuits.graph import Graph
from crosspatch.circuits.machine import State
from crosspatch.circuits.measuring import Gauge
from crosspatch.core.journal import Journal, Notes, by_unit

Index = tuple[int, int, int]
Mask = Bool[np.ndarray, "place receiver sender"]
TIE = 1e-5  # of the metric's size: closer to the threshold than this, an edge is measured alone
FIRST, WIDEST = 4, 128  # edges of the first batch, and of the widest


@dataclass(frozen=True)
class Rule:
    """When an edge is cut: the loss rises by less than `threshold`, in the metric's unit (`absolute`: moves by less).

    `order` is that of the senders of a receiver, from the last one written back ("reverse") or from the first
    ("forward"). Not `speculate`: one edge a pass, as published.
    """

    threshold: float
    absolute: bool = False
    order: str = "reverse"
    speculate: bool = True

    def cuts(self, rise: float) -> bool:
        """Tell whether an edge whose cut changes the loss so is cut."""
        return (abs(rise) if self.absolute else rise) < self.threshold

    def is_tie(self, rise: float, scale: float) -> bool:
        """Tell whether a change is so near the threshold that rounding could decide."""
        return abs((abs(rise) if self.absolute else rise) - self.threshold) < TIE * scale


@dataclass(frozen=True)
class Step:
    """The test of one edge: the loss with it cut, and whether it was kept."""

    edge: Index
    loss: float
    kept: bool


def edge_order(graph: Graph, order: str) -> list[Index]:
    """Return all edges in the order of their tests: receivers from the logits down, then senders, then places."""
    found: list[Index] = []
    for receiver in reversed(range(len(graph.receivers))):
        senders = np.flatnonzero(graph.allowed[receiver]).tolist()
        for sender in reversed(senders) if order == "reverse" else senders:
            found += [(place, receiver, sender) for place in range(graph.rooms)]
    return found


@dataclass(frozen=True)
class Guess:
    """The next edges, as if each of them were cut: their places in the order, and the edges left after each cut."""

    tested: Sequence[int]
    masks: Bool[np.ndarray, "step place receiver sender"]
    end: int
    after: Mask


@dataclass
class Search:
    """One run of ACDC on a gauge whose metric is made a loss by `sign`; `scale` is the size of the metric in a
    single run, which rounding goes with.

    `mask` are the edges not yet cut, `steps` the tests so far, which `notes` keep.
    """

    gauge: Gauge
    rule: Rule
    sign: float
    scale: float
    notes: Journal | Notes
    steps: list[Step] = field(default_factory=list)
    passed: int = 0  # edges of the order that are decided
    noted: int = 0  # steps that are in the notes
    began: float = float("nan")  # the loss with all edges

    def __post_init__(self) -> None:
        self.mask: Mask = self.graph.full()

    @property
    def graph(self) -> Graph:
        """The graph whose edges are tested."""
        return self.gauge.machine.graph

    @cached_property
    def order(self) -> list[Index]:
        """All edges in the order of their tests."""
        return edge_order(self.graph, self.rule.order)

    def run(self) -> Iterator[int]:
        """Test all edges; yield after each batch how many edges it dealt with.

        Raises:
            NotFinite: the metric is not a number in some run.
        """
        state, full = self.gauge.machine.clean.copy(), self.graph.full()
        self.began = float(self._losses(self.gauge.measure(state, full[None]))[0])
        current = self._replay(self.began)
        if self.steps:
            variants, _ = self.gauge.variants(state, self.mask[None])
            variants.adopt(0)
        width = FIRST if self.rule.speculate else 1
        while self.passed < len(self.order):
            before, guess = self.passed, self._guess(width)
            taken, current = self._judge(state, guess, current) if len(guess.tested) else (0, current)
            self._settle(guess, taken)
            width = self._adapted(width, taken, len(guess.tested))
            yield self.passed - before

    def _guess(self, width: int) -> Guess:
        """Look at the next edges of one layer's attention or MLP; edges into nodes that nobody reads go untested."""
        mask, tested, masks, number = self.mask.copy(), [], [], self.passed
        step = self._step(number)
        while number < len(self.order) and len(tested) < width and self._step(number) == step:
            edge = self.order[number]
            mask[edge] = False
            if self._is_read(edge[1], mask):
                tested.append(number)
                masks.append(mask.copy())
            number += 1
        return Guess(tested, np.stack(masks) if masks else np.zeros((0, *mask.shape), bool), number, mask)

    def _step(self, number: int) -> tuple[str, int | None]:
        site = self.graph.receivers[self.order[number][1]]
        return site.kind.partition(".")[0], site.layer

    def _is_read(self, receiver: int, mask: Mask) -> bool:
        nodes = self.gauge.machine.reach[receiver]
        return not nodes.any() or bool(mask[:, :, nodes].any())

    def _judge(self, state: State, guess: Guess, current: float) -> tuple[int, float]:
        """Return how many of the edges are cut before the first that is kept, and the loss then; take these cuts over.

        The rows of one pass are as many as fit in memory: the others are left for the next one.
        """
        room = self.gauge.room(state, guess.masks)
        variants, values = self.gauge.variants(state, guess.masks[:room])
        losses, taken = self._losses(values), 0
        for loss, number, mask in zip(losses.tolist(), guess.tested, guess.masks, strict=False):
            cut = self._cuts(loss - current, self.order[number], mask)
            self.steps.append(Step(self.order[number], loss, not cut))
            if not cut:
                break
            taken, current = taken + 1, loss
        if taken:
            variants.adopt(taken - 1)
        return taken, current

    def _cuts(self, rise: float, edge: Index, mask: Mask) -> bool:
        if not self.rule.is_tie(rise, self.scale):
            return self.rule.cuts(rise)
        before = mask.copy()
        before[edge] = True
        with_it, without = (float(self._losses(self.gauge.alone(m)[:, None])[0]) for m in (before, mask))
        return self.rule.cuts(without - with_it)

    def _losses(self, values: Float[np.ndarray, "metric circuit pair"]) -> Float[np.ndarray, " circuit"]:
        return self.sign * values[0].mean(1, dtype=np.float64)

    def _settle(self, guess: Guess, taken: int) -> None:
        """Write down what was decided and go on behind it."""
        decided = self.steps[self.noted :]
        if not decided or (taken == len(guess.tested)):
            self.mask, self.passed = guess.after, guess.end
        else:
            last = guess.tested[len(decided) - 1]
            self.mask = guess.masks[len(decided) - 1].copy()
            self.mask[self.order[last]] = decided[-1].kept
            self.passed = last + 1
        self._note(decided)

    def _note(self, decided: Sequence[Step]) -> None:
        if decided:
            flat = [int(np.ravel_multi_index(step.edge, self.graph.shape)) for step in decided]
            columns = {
                "edge": np.array(flat, dtype=np.int64),
                "loss": np.array([step.loss for step in decided], dtype=np.float64),
                "kept": np.array([step.kept for step in decided], dtype=np.int8),
            }
            self.notes.append(self.noted, columns)
            self.noted = len(self.steps)

    def _replay(self, current: float) -> float:
        """Take over the tests that were noted before; return the loss after them."""
        numbers = {edge: number for number, edge in enumerate(self.order)}
        rows = self.notes.read()
        for _, unit in by_unit(rows) if rows else ():
            for flat, loss, kept in zip(
                unit["edge"].tolist(), unit["loss"].tolist(), unit["kept"].tolist(), strict=True
            ):
                place, receiver, sender = (int(i) for i in np.unravel_index(flat, self.graph.shape))
                edge: Index = place, receiver, sender
                number = numbers[edge]
                for skipped in self.order[self.passed : number]:
                    self.mask[skipped] = False
                self.mask[edge] = bool(kept)
                self.steps.append(Step(edge, loss, bool(kept)))
                self.passed = number + 1
                current = loss if not kept else current
        self.noted = len(self.steps)
        return current

    def _adapted(self, width: int, taken: int, tested: int) -> int:
        """Return the next width: twice as many after a batch that was cut whole, else about as many as were."""
        if not self.rule.speculate:
            return 1
        return min(WIDEST, 2 * width) if taken == tested else max(FIRST, min(width, 2 * taken))
