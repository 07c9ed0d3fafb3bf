"""The exact sweep from task to numbers: runs, packs, out-of-memory halving, interruption, progress."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from crosspatch.core.errors import MemoryShortage, NotFinite
from crosspatch.core.progress import Progress, SilentProgress
from crosspatch.engine.cells import Cell, Extents, cells_of, first_difference
from crosspatch.engine.effects import Effects
from crosspatch.engine.plan import (
    TOKENS_AT_ONCE,
    Plan,
    block_weights,
    bytes_per_prompt_token,
    bytes_per_token,
    chunk_pairs,
    memory_budget,
    pack_work,
    packs_of,
    runs_work,
)
from crosspatch.engine.readout import Scorer, Targets, forced, read_positions, require_finite, targets_of
from crosspatch.engine.walk import Walk, needed_kinds
from crosspatch.metrics import Metric
from crosspatch.models.model import Model
from crosspatch.models.runs import Bench, Lane, Prompts, Run, run_lanes, workbench
from crosspatch.sites import Site
from crosspatch.tasks import Pair


@dataclass(frozen=True)
class Options:
    """How a sweep runs; none of it changes the numbers.

    `memory` is a budget in bytes beside the weights (None: 2 GiB, or 60 % of what is free on the GPU). `tokens` caps
    the tokens of a pack. `progress` is told of every finished row. `resume` holds the effects of an interrupted sweep
    of the same question, whose finished patches are not run again.
    """

    memory: int | None = None
    tokens: int | None = None
    progress: Progress = field(default_factory=SilentProgress)
    resume: Effects | None = None


@dataclass
class Sweep:
    """One sweep: its question, and the numbers as they come in. NaN marks what has not been run.

    `raw` is `[site, example]`, `base` and `source` `[example]`; `done` is False where the user interrupted.
    """

    model: Model
    pairs: Sequence[Pair]
    sites: Sequence[Site]
    metric: Metric
    direction: str
    options: Options
    raw: np.ndarray = field(init=False)
    base: np.ndarray = field(init=False)
    source: np.ndarray = field(init=False)
    complete: bool = False
    packs: int = 0
    halvings: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.raw = np.full((len(self.sites), len(self.pairs)), np.nan, np.float32)
        self.base, self.source = (np.full(len(self.pairs), np.nan, np.float32) for _ in range(2))
        self.targets = targets_of(self.pairs, self.model.device)
        self.extents = Extents(
            lengths=tuple(len(forced(p.clean, p, self.targets.reads)) for p in self.pairs),
            differ=tuple(first_difference(p) for p in self.pairs),
            reads=tuple(read_positions(p, self.targets.reads) for p in self.pairs),
        )
        self.kinds = needed_kinds(sorted({site.kind for site in self.sites}))

    def prompts(self, which: str, numbers: Sequence[int]) -> Prompts:
        """Return the base or source prompts of some pairs, followed by a forced answer if it is long."""
        clean = (which == "source") == (self.direction == "denoise")
        chosen = [self.pairs[n].clean if clean else self.pairs[n].corrupt for n in numbers]
        tokens = [forced(ids, self.pairs[n], self.targets.reads) for ids, n in zip(chosen, numbers, strict=True)]
        return Prompts.of(tokens, self.model.device)

    def plan(self) -> Plan:
        """Return what `run` would do, without running the model."""
        anatomy, extents = self.model.anatomy, self.extents
        found = list(cells_of(self.sites, self.pairs, extents, anatomy))
        cells = [cell for _, _, cell in found if cell is not None]
        patches, chunks, most = len(self.sites) * len(self.pairs), self.chunks(), self.pack_tokens()
        packs = [p for c in chunks for p in packs_of([x for x in cells if x.pair in c], extents, anatomy, most)]
        work = runs_work(extents, anatomy, chunks) + sum(pack_work(pack, extents, anatomy) for pack in packs)
        naive = 2 * sum(extents.lengths) + sum(extents.lengths[pair] for _, pair, _ in found)
        kept = max(map(len, chunks)) * self.bytes_per_pair()
        return Plan(
            patches=patches,
            zero=len(found) - len(cells),
            absent=patches - len(found),
            rows=len(cells),
            token_blocks=work,
            naive_token_blocks=naive * anatomy.layers,
            forward_token_blocks=anatomy.layers * sum(extents.lengths) / len(self.pairs),
            flops=2 * work * block_weights(self.model),
            packs=len(packs),
            chunks=len(chunks),
            peak_bytes=kept + min(most, max(work, 1)) * bytes_per_token(self.model),
        )

    def bytes_per_pair(self) -> int:
        """Return the memory that the two runs of the longest pair keep."""
        longest = max(self.extents.lengths)
        return longest * bytes_per_prompt_token(self.model, self.kinds, longest)

    def chunks(self) -> list[list[int]]:
        """Return the pairs that are held at once."""
        budget = memory_budget(self.options.memory, self.model.device)
        apart = self.model.anatomy.by_length
        return chunk_pairs(self.extents.lengths, self.bytes_per_pair(), budget, by_length=apart)

    def pack_tokens(self) -> int:
        """Return the most tokens of one pack: what the other half of the budget holds, and no more than helps."""
        if self.options.tokens is not None:
            return self.options.tokens
        room = memory_budget(self.options.memory, self.model.device) // 2 // bytes_per_token(self.model)
        return max(1, min(room, TOKENS_AT_ONCE.get(self.model.device.type, TOKENS_AT_ONCE["cpu"])))

    def run(self) -> None:
        """Fill in the numbers. Ctrl-C ends early and keeps what is done.

        Raises:
            NotFinite: the metric of a base, source or patched run is not a number.
            MemoryShortage: a single row, or the runs of a single pair, do not fit.
        """
        found = cells_of(self.sites, self.pairs, self.extents, self.model.anatomy)
        self.options.progress.start(sum(cell is not None for _, _, cell in found), "patches")
        try:
            for chunk in self.chunks():
                self.run_chunk(chunk)
            self.complete = True
        except KeyboardInterrupt:
            self.complete = False
        finally:
            self.options.progress.close()

    def run_chunk(self, numbers: Sequence[int]) -> None:
        """Run the sweep on some pairs; halves them when memory is short."""
        with Attempt() as attempt:
            self._run_chunk(numbers)
        if attempt.short:
            self._halve(numbers, self.run_chunk, "the runs of one pair")

    def _run_chunk(self, numbers: Sequence[int]) -> None:
        base_prompts, source_prompts = (self.prompts(which, numbers) for which in ("base", "source"))
        pairs = [self.pairs[n] for n in numbers]
        local = Local.of(self, numbers)
        with workbench(self.model, base_prompts) as bench:
            with self._timed("runs"):
                starts = local.extents.differ if self.model.anatomy.causal else None
                base, source = run_lanes(bench, [Lane(base_prompts), Lane(source_prompts, self.kinds, starts)])
                scorer = self._scorer(local, base, source)
                self._score_runs(numbers, local, scorer, base, source)
            cells = []
            for site, pair, cell in cells_of(self.sites, pairs, local.extents, self.model.anatomy):
                if cell is None:
                    self.raw[site, numbers[pair]] = 0.0
                else:
                    cells.append(cell)
            for pack in packs_of(cells, local.extents, self.model.anatomy, self.pack_tokens()):
                # A resumed sweep has the packs of the interrupted one, so that its numbers are the same to the bit.
                if any(np.isnan(self.raw[cell.site, numbers[cell.pair]]) for cell in pack):
                    with self._timed("patches"):
                        self._run_pack(pack, Pass(bench, base, source, local, scorer, numbers))
                else:
                    self.options.progress.advance(len(pack))

    def _run_pack(self, pack: Sequence[Cell], this: "Pass") -> None:
        """Walk one pack; halves it when memory is short."""
        values: list[tuple[Cell, float]] = []
        with Attempt() as attempt:
            values = list(self._walk(pack, this))
        if attempt.short:
            self._halve(pack, lambda part: self._run_pack(part, this), "one row")
            return
        for cell, value in values:
            self.raw[cell.site, this.numbers[cell.pair]] = value
        self.packs += 1
        self.options.progress.advance(len(pack))

    def _walk(self, pack: Sequence[Cell], this: "Pass") -> Iterator[tuple[Cell, float]]:
        walk = Walk(this.bench, this.base, this.source, this.local.extents, pack)
        device = self.model.device
        for indices, stream in walk.run():
            pairs = torch.tensor([pack[i].pair for i in indices], device=device)
            effects = this.scorer(stream, pairs) - torch.from_numpy(self.base[this.numbers]).to(device)[pairs]
            for index, effect in zip(indices, effects.tolist(), strict=True):
                cell = pack[index]
                if not np.isfinite(effect):
                    raise NotFinite(_not_finite(self.metric, self.sites[cell.site], this.numbers[cell.pair], effect))
                yield cell, effect

    def _scorer(self, local: "Local", base: Run, source: Run) -> Scorer:
        scorer = Scorer(self.model, self.metric, local.targets)
        if not self.metric.needs_reference:
            return scorer
        clean = source if self.direction == "denoise" else base
        numbers = torch.arange(len(local.extents.lengths), device=self.model.device)
        logits = scorer.logits(final_reads(clean, base, local, numbers)[:, 0], local.targets.right[:, 0])[0]
        reference = None if logits is None else logits.log_softmax(-1)
        return Scorer(self.model, self.metric, local.targets, reference)

    def _score_runs(self, numbers: Sequence[int], local: "Local", scorer: Scorer, base: Run, source: Run) -> None:
        every = torch.arange(len(numbers), device=self.model.device)
        for name, run, store in (("base", base, self.base), ("source", source, self.source)):
            values = scorer(final_reads(run, base, local, every), every)
            require_finite(values, name, metric=self.metric, numbers=numbers)
            store[list(numbers)] = values.cpu().numpy()

    def _halve(self, items: Sequence, again: Callable[[Sequence], None], smallest: str) -> None:
        if len(items) <= 1:
            raise MemoryShortage(
                f"out of memory even for {smallest}: use shorter prompts, a smaller dtype (bfloat16), or a device with "
                "more memory."
            )
        self.halvings += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(items) // 2
        again(items[:middle])
        again(items[middle:])

    def _timed(self, phase: str) -> "_Timer":
        return _Timer(self.seconds, phase)


@dataclass(frozen=True)
class Local:
    """What is known of the pairs of one chunk, numbered from 0."""

    extents: Extents
    targets: Targets

    @classmethod
    def of(cls, sweep: Sweep, numbers: Sequence[int]) -> "Local":
        """Pick the pairs out of the whole sweep."""
        every, rows, whole = sweep.extents, list(numbers), sweep.targets
        extents = Extents(
            lengths=tuple(every.lengths[n] for n in rows),
            differ=tuple(every.differ[n] for n in rows),
            reads=tuple(every.reads[n] for n in rows),
        )
        masks = whole.right_mask[rows], whole.wrong_mask[rows]
        return cls(extents, Targets(whole.right[rows], whole.wrong[rows], *masks))


@dataclass(frozen=True)
class Pass:
    """What the packs of one chunk share."""

    bench: Bench
    base: Run
    source: Run
    local: Local
    scorer: Scorer
    numbers: Sequence[int]


def final_reads(run: Run, base: Run, local: Local, pairs: Tensor) -> Tensor:
    """Return a run's final stream at the positions read `[pair, read, d_model]`."""
    del base
    reads = torch.tensor(local.extents.reads, device=pairs.device)[pairs]
    return run.stream[-1][pairs[:, None], reads]


def _not_finite(metric: Metric, site: Site, example: int, value: float) -> str:
    return (
        f"{metric.name} is {value} after patching {site} on example {example}: the patched run overflows. "
        "Try dtype float32; the base and source runs are finite."
    )


class Attempt:
    """Swallows the out-of-memory errors of Python and torch, on GPU and processor, and notes that there was one.

    The next attempt starts when the error is gone, and with it the tensors that its traceback held.
    """

    def __init__(self) -> None:
        self.short = False

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        self.short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
            isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        )
        self.short = self.short and not isinstance(error, MemoryShortage)
        return self.short


class _Timer:
    """Adds the seconds of a block to a phase."""

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self.seconds, self.phase, self.began = seconds, phase, 0.0

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + time.perf_counter() - self.began
