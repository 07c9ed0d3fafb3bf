"""Measure circuits: every metric of each circuit on each pair, so many circuits at once as memory allows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.circuits.machine import Machine, State
from crosspatch.circuits.opening import EdgeSweep
from crosspatch.circuits.variants import Stale, Variants
from crosspatch.core.errors import NotFinite

MOST = 256  # circuits of one pass: more help no product
TOLD = 64  # circuits after which a listener hears of them

Masks = Bool[np.ndarray, "circuit place receiver sender"]


@dataclass
class Count:
    """What was run: passes over the layers, each of one or more circuits."""

    calls: int = 0
    circuits: int = 0


@dataclass(frozen=True)
class Gauge:
    """Measures circuits on one machine's pairs; counts what it runs. `budget` is the memory of a pass, in bytes."""

    machine: Machine
    budget: int
    count: Count = field(default_factory=Count)

    def room(self, known: State, masks: Masks) -> int:
        """Return how many such circuits fit into one pass beside a known run."""
        graph, machine = self.machine.graph, self.machine
        slots = max(1, len(Stale.of(machine.reach, known, masks).slots))
        # What stale senders add, and the streams of one layer's receivers with what norms make of them.
        token = machine.clean.sent.shape[-1] * 4 * (slots + 4 * (graph.heads + 2 * graph.kv_heads))
        return max(1, min(MOST, self.budget // (token * machine.tokens)))

    def variants(self, known: State, masks: Masks) -> tuple[Variants, Float[np.ndarray, "metric circuit pair"]]:
        """Run circuits in one pass and return them with their metrics.

        Raises:
            NotFinite: a metric is not a number.
        """
        self.count.calls += 1
        self.count.circuits += len(masks)
        variants = Variants.of(self.machine, known, masks)
        values = self.machine.scores(variants.run()).cpu().numpy()
        _require_finite(values, self.machine)
        return variants, values

    def measure(self, known: State, masks: Masks) -> Float[np.ndarray, "metric circuit pair"]:
        """Return the metrics of circuits, in as many passes as memory asks for."""
        at_once = self.room(known, masks)
        parts = [self.variants(known, masks[i : i + at_once])[1] for i in range(0, len(masks), at_once)]
        return np.concatenate(parts, axis=1)

    def alone(self, mask: Bool[np.ndarray, "place receiver sender"]) -> Float[np.ndarray, "metric pair"]:
        """Measure one circuit by itself, from the clean run: what is returned hangs on nothing that was run before."""
        return self.variants(self.machine.clean, mask[None])[1][:, 0]


def _require_finite(values: Float[np.ndarray, "metric circuit pair"], machine: Machine) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        metric, _, pair = bad[0].tolist()
        name = machine.scorer.metrics[metric].name
        raise NotFinite(
            f"{name} is {values[tuple(bad[0])]} in a run with some edges only, on example "
            f"{machine.local.numbers[pair]}: the run overflows. Try dtype float32; the clean and corrupt runs are "
            "finite."
        )


def gauges(sweep: EdgeSweep, count: Count) -> Iterator[Gauge]:
    """Yield a gauge for each chunk of pairs whose runs are held at once."""
    for numbers in sweep.cuts.chunks:
        with sweep.machine(numbers) as machine:
            yield Gauge(machine, sweep.room, count)


@dataclass(frozen=True)
class Measured:
    """Metrics of circuits on every pair, and of the runs with all edges and with none."""

    values: Float[np.ndarray, "metric circuit pair"]
    full: Float[np.ndarray, "metric pair"]
    empty: Float[np.ndarray, "metric pair"]
    calls: int


def measure(sweep: EdgeSweep, masks: Sequence[Bool[np.ndarray, "place receiver sender"]]) -> Measured:
    """Run circuits on all pairs, beside the clean and the corrupt run.

    `empty` is what is left without any edge: the corrupt run, or, with zeros or means in the place of absent edges, a
    run of its own.
    Raises:
        NotFinite: a metric is not a number.
    """
    count, parts, full, empty = Count(), [], [], []
    none = np.zeros((1, *sweep.graph.shape), dtype=bool)
    for gauge in gauges(sweep, count):
        machine = gauge.machine
        # Without any edge a run is the corrupt one, where that is what absent edges carry.
        ends = [end.cpu().numpy() for end in machine.ends]
        full.append(ends[0])
        empty.append(ends[1] if sweep.ablation is None else gauge.measure(machine.clean, none)[:, 0])
        found = []
        for first in range(0, len(masks), TOLD):
            block = np.stack(masks[first : first + TOLD])
            found.append(gauge.measure(machine.clean, block))
            sweep.options.progress.advance(len(block) * len(machine.local.numbers))
        parts.append(np.concatenate(found, axis=1))
    values, clean, without = (np.concatenate(each, axis=-1) for each in (parts, full, empty))
    return Measured(values, clean, without, count.calls)
