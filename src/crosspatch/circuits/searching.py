"""Run one search for a circuit: its method on the runs of a task's pairs, and what is kept of it on disk."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from crosspatch.circuits.acdc import Rule, Search
from crosspatch.circuits.circuit import greedy_edges, top_edges
from crosspatch.circuits.eap import Points, edge_scores, require_slope
from crosspatch.circuits.exact import leave_one_out
from crosspatch.circuits.machine import Machine
from crosspatch.circuits.measuring import Count, Gauge
from crosspatch.circuits.method import Method
from crosspatch.circuits.nodes import edges_between, estimates, hisp_scores, node_scores
from crosspatch.circuits.opening import EdgeSweep
from crosspatch.circuits.pruning import Trainer, Training, edge_gates, gate_scores, node_gates
from crosspatch.core.errors import BadInput, CorruptFile, MemoryShortage
from crosspatch.core.journal import Journal, Notes
from crosspatch.core.store import write_whole
from crosspatch.engine.keeping import question_hash
from crosspatch.tasks import Task

SAVE_EVERY = 25  # steps of training
KEPT = "training.safetensors"
PRICE = 0.5  # of all nodes open, in gaps of the metric

Scores = Float[np.ndarray, "place receiver sender"]
Included = Bool[np.ndarray, "place receiver sender"]


@dataclass
class Searching:
    """One method at work on one task. `details` gather what it has to tell beside scores, `count` what it ran."""

    sweep: EdgeSweep
    task: Task
    how: Method
    details: dict[str, Any] = field(default_factory=dict)
    count: Count = field(default_factory=Count)

    def run(self) -> tuple[Scores, Included]:
        """Return the scores of all edges and the edges that are taken.

        Raises:
            BadInput: the runs do not differ in the metric, or the journal is that of another search.
            NotFinite, NotProved, MemoryShortage: as `find` says.
        """
        by, progress = self.how.by, self.sweep.options.progress
        progress.start(self._total(), "steps" if by.endswith("masks") else "pairs" if by != "acdc" else "edges")
        try:
            if by == "acdc":
                return self._acdc()
            if by.startswith("eap"):
                self.sweep.tracked = True
                scores = edge_scores(self.sweep, Points.of(by, self.how.steps or 5)) * self._sign()
            elif by == "exact":
                with self._journal() as journal:
                    scores = leave_one_out(self.sweep, journal, self.count) * self._sign()
            elif by.endswith("masks"):
                scores = self._masks()
            else:
                scores = self._nodes() if by in ("nodes", "hisp") else self._routes()
        finally:
            progress.close()
        return scores.astype(np.float32), self._taken(scores)

    def _total(self) -> int:
        pairs, graph = len(self.sweep.pairs), self.sweep.graph
        totals = {"acdc": graph.size, "exact": graph.size * len(self.sweep.cuts.chunks)}
        totals |= dict.fromkeys(("edge-masks", "node-masks"), self.how.steps or Training.steps)
        return totals.get(self.how.by, pairs)

    def _taken(self, scores: Scores) -> Included:
        graph, count = self.sweep.graph, self.how.count(self.sweep.graph.size)
        if self.how.select == "greedy":
            return greedy_edges(graph, scores, count, absolute=self.how.signed)
        return top_edges(graph, scores, count, absolute=self.how.signed)

    def _sign(self) -> float:
        """Return 1 if the metric is higher in clean runs, −1 if it is lower: a loss is what moves it to the corrupt."""
        return gap_of(self.sweep)[0]

    @contextmanager
    def _whole(self) -> Iterator[Machine]:
        """Open all pairs at once, as searches need them whose every step looks at the mean over pairs."""
        if len(self.sweep.cuts.chunks) > 1:
            raise MemoryShortage(
                f"by={self.how.by!r} holds the runs of all {len(self.sweep.pairs)} pairs at once, and "
                f"{max(map(len, self.sweep.cuts.chunks))} fit into the memory allowed. Take fewer pairs, or allow more "
                "memory (Options(memory=…), --memory)."
            )
        with self.sweep.machine(range(len(self.sweep.pairs))) as machine:
            yield machine

    @contextmanager
    def _journal(self) -> Iterator[Journal | Notes]:
        folder = self.sweep.options.journal
        plan = {"cuts": self.sweep.cuts.to_json(), "units": 0}
        if folder is None:
            yield Notes(plan)
            return
        with Journal.open(folder, question_hash(self.sweep, self.task), plan=plan) as journal:
            journal.begin()  # even a search that keeps its state elsewhere claims the folder for its question
            self.sweep.adopt(journal.plan["cuts"])
            yield journal

    def _acdc(self) -> tuple[Scores, Included]:
        how = self.how
        rule = Rule(how.threshold or 0.0, how.absolute, how.order, how.speculate)
        with self._journal() as journal, self._whole() as machine:
            sign, _ = gap_of(self.sweep)
            scale = max(float(np.abs(values[0]).mean()) for values in (self.sweep.base, self.sweep.source))
            search = Search(Gauge(machine, self.sweep.room, self.count), rule, -sign, scale, journal)
            resumed = False
            for passed in search.run():
                self.sweep.options.progress.advance(passed if resumed else search.passed)
                resumed = True
        rises = np.full(self.sweep.graph.shape, np.nan)
        current = search.began
        for step in search.steps:
            rises[step.edge] = step.loss - current
            current = current if step.kept else step.loss
        self.details["steps"] = np.array([(*step.edge, step.kept) for step in search.steps], dtype=np.int32)
        self.details["losses"] = np.array([step.loss for step in search.steps], dtype=np.float64)
        return rises.astype(np.float32), search.mask

    def _nodes(self) -> Scores:
        sweep, by = self.sweep, self.how.by
        if sweep.ablation is not None:
            raise BadInput(f"by={by!r} estimates patches from the corrupt run: leave the ablation out.")
        estimator = "atp" if by == "hisp" else self.how.estimator
        how = {"metric": sweep.metrics[0], "estimator": estimator, "options": sweep.plain_options}
        found = estimates(sweep.model, self.task, **how)
        for store, values in ((sweep.base, found.base), (sweep.source, found.source)):
            store[0] = np.repeat(values, sweep.corruption.draws)
        gap_of(sweep)
        require_slope(sweep, float(np.abs(found.raw).sum()))
        nodes = hisp_scores(found, sweep.graph) if by == "hisp" else np.abs(node_scores(found, sweep.graph))
        self.details["nodes"] = nodes.astype(np.float32)
        return edges_between(sweep.graph, nodes)

    def _routes(self) -> Scores:
        from crosspatch.circuits.routing import route_scores

        return route_scores(self.sweep, self.task)

    def _masks(self) -> Scores:
        self.sweep.tracked = True
        with self._journal(), self._whole() as machine:
            gates, spread = (edge_gates if self.how.by == "edge-masks" else node_gates)(
                machine.graph, self.sweep.model.device
            )
            size = machine.graph.size
            how = Training(
                steps=self.how.steps or Training.steps,
                rate=self.how.rate,
                target=self.how.count(size) / size,
                price=PRICE if self.how.by == "node-masks" else 0.0,
                seed=self.how.seed,
            )
            gap_of(self.sweep)
            gap = float(np.abs(self.sweep.base[0] - self.sweep.source[0]).mean())  # of each pair: means may cancel
            trainer = Trainer(machine, how, gates, spread, gap)
            self.details["losses"] = np.array(self._trained(trainer), dtype=np.float32)
            return gate_scores(trainer)

    def _trained(self, trainer: Trainer) -> list[float]:
        """Train to the end, from what was kept of an earlier try; return the losses of the steps run now."""
        folder, losses, progress = self.sweep.options.journal, [], self.sweep.options.progress
        if folder is not None and (folder / KEPT).exists():
            trainer.restore(_loaded(folder / KEPT))
        progress.advance(trainer.step)
        while trainer.step < trainer.how.steps:
            losses.append(trainer.run_step())
            self.count.calls += 1
            progress.advance(1, f"loss {losses[-1]:.3f}")
            if folder is not None and (trainer.step % SAVE_EVERY == 0 or trainer.step == trainer.how.steps):
                write_whole(folder / KEPT, save({name: value.contiguous() for name, value in trainer.state().items()}))
        return losses


def _loaded(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CorruptFile(
            f"{str(path)!r} is no safetensors file: {error}. Remove it, and training starts anew."
        ) from None


def gap_of(sweep: EdgeSweep) -> tuple[float, float]:
    """Return the sign and the size of the gap of the metric's mean between the clean and the corrupt runs.

    Raises:
        BadInput: there is none.
    """
    clean, corrupt = (float(np.nanmean(values[0])) for values in (sweep.base, sweep.source))
    gap = float(clean - corrupt)
    if abs(gap) < 1e-6 * max(abs(float(clean)), abs(float(corrupt)), 1e-6):
        raise BadInput(
            f"{sweep.metrics[0].name} is {clean:.4g} in the clean and {corrupt:.4g} in the corrupt runs: no behaviour "
            "to look for. Use another metric, or pairs that the model tells apart."
        )
    return float(np.sign(gap)), abs(gap)
