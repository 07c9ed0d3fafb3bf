"""A sweep whose effects are estimated from gradients: the same units, journal and executors as exact patching."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float32
from torch import Tensor

from crosspatch.attribution.estimators import Estimator
from crosspatch.attribution.gradients import Estimating
from crosspatch.attribution.integrated import over_activations, over_inputs
from crosspatch.attribution.opened import Opened, opened_runs, recorded_kinds
from crosspatch.attribution.places import places_of
from crosspatch.engine.cells import Cell
from crosspatch.engine.local import Local, Pass
from crosspatch.engine.plan import bytes_per_token, kept_width
from crosspatch.engine.readout import require_finite
from crosspatch.engine.sweep import Sweep
from crosspatch.models.rules import relevance_rules
from crosspatch.models.runs import Run, workbench

OPENER = "crosspatch.attribution.shipping:open_job"


@dataclass(frozen=True)
class EstimatePass(Pass):
    """What the estimates of one chunk share: also its runs, opened for gradients."""

    opened: Opened
    gradient: Tensor


@dataclass
class EstimateSweep(Sweep):
    """A sweep whose patches are estimated; `checkpoint` keeps only the stream between blocks."""

    estimator: Estimator = field(default_factory=lambda: Estimator("atp"))
    checkpoint: bool = False

    opener: ClassVar[str] = OPENER

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recorded = recorded_kinds(self.kinds_asked, qk=self.estimator.qk)
        self.kinds = self.recorded

    @property
    def kinds_asked(self) -> set[str]:
        """The kinds of site that are estimated."""
        return {site.kind for site in self.sites}

    @property
    def steps(self) -> bool:
        """Whether packs can be run in step with other processes' packs: gradients cannot."""
        return False

    def how(self) -> str:
        """Name the estimator."""
        return f"estimate {self.estimator.settings()}"

    def more(self) -> Mapping[str, Any]:
        """Say what other processes need to know beside the sweep's question."""
        return {"estimator": self.estimator.to_json(), "checkpoint": self.checkpoint}

    def packs_in(self, chunk: int) -> list[list[Cell]]:
        """Return the one pack of a chunk: all of its estimates come from the same gradients."""
        if chunk not in self._packs:
            local = Local.of(self.extents, self.targets, self.cuts.chunks[chunk])
            cells = [cell for *_, cell in self.found(local) if cell is not None]
            self._packs = {chunk: [cells] if cells else []}
        return self._packs[chunk]

    def work(self, pack: Sequence[Cell], local: Local) -> int:
        """Return the token-blocks of a chunk's gradients: blocks that are pulled back count as much as blocks run."""
        layers, extents = self.model.anatomy.layers, local.extents
        starts = extents.differ if self.model.anatomy.packed else [0] * len(extents.lengths)
        tokens = sum(length - start for length, start in zip(extents.lengths, starts, strict=True))
        once = tokens * layers
        if self.estimator.path == "activations":
            tables = {(cell.parts[0].kind, cell.layer) for cell in pack}
            return 2 * self.estimator.steps * tokens * sum(layers - layer for _, layer in tables)
        if self.estimator.path:
            return 2 * self.estimator.steps * once
        drops = tokens * layers * (layers - 1) // 2 if self.estimator.drop else 0
        return once + drops + once * self.checkpoint

    def bytes_per_pair(self) -> int:
        """Return the memory that the runs of the longest pair keep, tapes included."""
        longest, anatomy = max(self.extents.lengths), self.model.anatomy
        plain = super().bytes_per_pair()
        scores = 4 * anatomy.heads * longest * 4 if self.estimator.qk else 0
        tape = bytes_per_token(self.model) + kept_width("attn.pattern", anatomy, longest) * 4 + scores
        kept = 1 if self.checkpoint else anatomy.layers
        drops = anatomy.layers if self.estimator.drop else 1
        return plain + longest * (tape * kept + drops * bytes_per_token(self.model) // 4)

    @contextmanager
    def opened(self, numbers: Sequence[int]) -> Iterator[EstimatePass]:
        """Run the two runs of some pairs and keep what gradients need, while the block lasts.

        Raises:
            NotFinite: the metric of a run is not a number.
            BadInput: the metric has no gradient.
        """
        local, lane = Local.of(self.extents, self.targets, numbers), self.lane("base", numbers)
        with ExitStack() as stack:
            if self.estimator.rules:
                rules = relevance_rules(self.model.module, self.model.anatomy, self.estimator.rules)
                coverage = stack.enter_context(rules)
            bench = stack.enter_context(workbench(self.model, lane.prompts, tracked=True))
            with self.timed("runs"):
                held = stack.enter_context(opened_runs(self, bench, numbers, local))
                held.forward(held.lane.entering(), keep=not self.checkpoint and not self.estimator.path)
                base = Run([held.lane.spread(held.streams[-1])])
                scorer = self._scorer(local, base, held.source)
                before, gradient = held.cotangent(scorer, held.streams[-1])
                before = before[None]
                require_finite(before[0], "base", metric=self.metrics[0], numbers=numbers)
                after = self._scored(local, scorer, "source", held.source)
            if self.estimator.rules:
                coverage.require()
            yield EstimatePass(bench, base, held.source, local, scorer, before, after, held, gradient)

    def measured(self, pack: Sequence[Cell], this: Pass) -> Iterator[tuple[Cell, list[float]]]:
        """Yield each cell with its estimate."""
        if not isinstance(this, EstimatePass):
            raise TypeError("estimates need runs that were opened for gradients")
        values = self._estimates(pack, this)
        require_finite(values, "estimated", metric=self.metrics[0], numbers=[this.local.numbers[c.pair] for c in pack])
        for cell, value in zip(pack, values.tolist(), strict=True):
            yield cell, [value]

    def _estimates(self, pack: Sequence[Cell], this: EstimatePass) -> Float32[Tensor, " cell"]:
        held, how = this.opened, self.estimator
        out = torch.zeros(len(pack), device=self.model.device)
        places = places_of(pack, held.lane, joint_keys=how.qk)
        estimating = Estimating(held, places, out, how.qk, how.drop)
        if how.path == "activations":
            over_activations(held, this.scorer, places, out, how)
        elif how.path:
            over_inputs(held, this.scorer, estimating, how)
        else:
            estimating.run(this.gradient)
        return out


def like(plain: Sweep, how: Estimator, *, checkpoint: bool) -> EstimateSweep:
    """Return the sweep that estimates what a plain one would measure."""
    given = (plain.model, plain.pairs, plain.sites, plain.metrics, plain.direction, plain.options, plain.corruption)
    return EstimateSweep(*given, estimator=how, checkpoint=checkpoint)
