"""The exact sweep from task to numbers: runs, packs, out-of-memory halving, interruption, progress."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.core.errors import MemoryShortage, NotFinite
from crosspatch.core.journal import Journal
from crosspatch.core.progress import Progress, SilentProgress
from crosspatch.engine.ablation import Ablation, Means, zeros_like_run
from crosspatch.engine.attempt import Attempt, Timer
from crosspatch.engine.cells import Cell, Extents, cells_of, first_difference
from crosspatch.engine.corrupting import Corrupter
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
from crosspatch.engine.walk import Walk
from crosspatch.engine.writing import needed_kinds
from crosspatch.metrics import Metric
from crosspatch.models.model import Model
from crosspatch.models.runs import Bench, Lane, Overlay, Prompts, Run, run_lanes, workbench
from crosspatch.sites import Address, members_of
from crosspatch.tasks import Corruption, Pair, key_positions

FEW = 1 << 17  # cells that are kept from the plan to the runs; more are made again, which costs time and no memory


@dataclass(frozen=True)
class Options:
    """How a sweep runs; none of it changes the numbers.

    `memory` is a budget in bytes beside the weights (None: 2 GiB, or 60 % of what is free on the GPU). `tokens` caps
    the tokens of a pack. `progress` is told of every finished row. `resume` holds the effects of an interrupted sweep
    of the same question, whose finished patches are not run again. `journal` names a folder that finished packs are
    written to as they come: nothing in it is lost or run again, also after a killed process. It belongs to one
    question, in which a metric of your own is told by its name.
    """

    memory: int | None = None
    tokens: int | None = None
    progress: Progress = field(default_factory=SilentProgress)
    resume: Effects | None = None
    journal: Path | None = None


@dataclass
class Sweep:
    """One sweep: its question, and the numbers as they come in. NaN marks what has not been run.

    With several noise draws `pairs` holds each pair that many times in a row. With an `ablation` the base run is the
    clean one, and the source is what the ablation writes; the corrupt run still gives the metric's other end.
    `raw` is `[metric, site, example]`, `base` and `source` `[metric, example]`; `complete` is False where the user
    interrupted.
    """

    model: Model
    pairs: Sequence[Pair]
    sites: Sequence[Address]
    metrics: Sequence[Metric]
    direction: str
    options: Options
    corruption: Corruption = field(default_factory=Corruption)
    ablation: Ablation | None = None
    raw: np.ndarray = field(init=False)
    base: np.ndarray = field(init=False)
    source: np.ndarray = field(init=False)
    complete: bool = False
    packs: int = 0
    halvings: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.raw = np.full((len(self.metrics), len(self.sites), len(self.pairs)), np.nan, np.float32)
        self.base, self.source = (np.full((len(self.metrics), len(self.pairs)), np.nan, np.float32) for _ in range(2))
        self.targets = targets_of(self.pairs, self.model.device)
        self.extents = Extents(
            lengths=tuple(len(forced(p.clean, p, self.targets.reads)) for p in self.pairs),
            differ=tuple(self._differ(n) for n in range(len(self.pairs))),
            reads=tuple(read_positions(p, self.targets.reads) for p in self.pairs),
        )
        self.kinds = needed_kinds(sorted({member.kind for site in self.sites for member in members_of(site)}))
        self.base_kinds: tuple[str, ...] = ()
        self.corrupter = self._corrupter()
        by = self.ablation.by if self.ablation else ""
        self.drawn = self.ablation.drawn(self.pairs) if self.ablation and by == "resample" else []
        self.pools = self.ablation.needed_pools(self.pairs) if self.ablation and by == "mean" else {}
        self.means: Means | None = None
        self.journal: Journal | None = None
        self._kept: list[tuple[int, int, Cell | None]] | None = None

    def _differ(self, number: int) -> int:
        return 0 if self.ablation is not None else self._first_differing(number)

    def _corrupter(self) -> Corrupter | None:
        distinct = self.pairs[:: self.corruption.draws]
        return Corrupter.of(self.model, distinct, self.corruption) if self.corruption.of_embeddings else None

    def lane(self, which: str, numbers: Sequence[int]) -> Lane:
        """Return the base or the source run of some pairs, followed by a forced answer if it is long."""
        clean = (which == "source") == (self.direction == "denoise")
        overlay = None if clean else self._overlay(numbers)
        chosen = [self.pairs[n].clean if clean or overlay else self.pairs[n].corrupt for n in numbers]
        tokens = [forced(ids, self.pairs[n], self.targets.reads) for ids, n in zip(chosen, numbers, strict=True)]
        prompts = Prompts.of(tokens, self.model.device)
        if overlay is not None and prompts.ids.shape[1] > overlay.shift.shape[1]:
            overlay = overlay.to_length(prompts.ids.shape[1])
        return Lane(prompts, overlay=overlay)

    def _overlay(self, numbers: Sequence[int]) -> Overlay | None:
        like = next(self.model.module.parameters())
        return self.corrupter.overlay([(n, self.pairs[n]) for n in numbers], like) if self.corrupter else None

    def plan(self) -> Plan:
        """Return what `run` would do, without running the model."""
        anatomy, extents = self.model.anatomy, self.extents
        found = list(self._found())
        cells = [cell for _, _, cell in found if cell is not None]
        patches, chunks, most = len(self.sites) * len(self.pairs), self.chunks(), self.pack_tokens()
        packs = [p for c in chunks for p in packs_of([x for x in cells if x.pair in c], extents, anatomy, most)]
        work = runs_work(extents, anatomy, chunks) + sum(self.work(pack) for pack in packs)
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
            flops=2 * (work * block_weights(self.model) + (len(cells) + 2 * len(self.pairs)) * self._read_weights()),
            packs=len(packs),
            chunks=len(chunks),
            peak_bytes=kept + min(most, max(work, 1)) * bytes_per_token(self.model),
        )

    def _read_weights(self) -> int:
        """Return the weights that one readout multiplies: the answers' rows of the unembedding, or all of them."""
        anatomy = self.model.anatomy
        whole = not anatomy.readout.direct or any(metric.needs == "vocab" for metric in self.metrics)
        answers = self.targets.right.shape[2] + self.targets.wrong.shape[2]
        return self.targets.reads * anatomy.d_model * (anatomy.vocab if whole else answers)

    def bytes_per_pair(self) -> int:
        """Return the memory that the two runs of the longest pair keep."""
        longest = max(self.extents.lengths)
        return longest * bytes_per_prompt_token(self.model, (*self.kinds, *self.base_kinds), longest)

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
        self.options.progress.start(sum(cell is not None for _, _, cell in self._found()), "patches")
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
        local = Local.of(self, numbers)
        if self.pools and self.means is None:
            with self._timed("reference"):
                self.means = Means.of(self.model, self.pools, self.kinds)
        base_lane = self.lane("base", numbers)
        with workbench(self.model, base_lane.prompts) as bench:
            with self._timed("runs"):
                base, source, written = self._runs(bench, base_lane, local)
                scorer = self._scorer(local, base, source)
                self._score_runs(local, scorer, base, source)
            cells = []
            for site, pair, cell in self._found(local):
                if cell is None:
                    self.raw[:, site, numbers[pair]] = 0.0
                else:
                    cells.append(cell)
            for pack in packs_of(cells, local.extents, self.model.anatomy, self.pack_tokens()):
                # A resumed sweep has the packs of the interrupted one, so that its numbers are the same to the bit.
                if any(np.isnan(self.raw[:, cell.site, numbers[cell.pair]]).any() for cell in pack):
                    with self._timed("patches"):
                        self._run_pack(pack, Pass(bench, base, written, local, scorer))
                else:
                    self.options.progress.advance(len(pack))

    def _found(self, local: "Local | None" = None) -> Iterable[tuple[int, int, Cell | None]]:
        """Return the cells of all pairs, or of a chunk with its own numbers; where they are few, they are made once."""
        every = [*range(len(self.pairs))]
        numbers, extents = (local.numbers, local.extents) if local else (every, self.extents)
        if numbers == every and self._kept is not None:
            return self._kept
        found = cells_of(self.sites, [self.pairs[n] for n in numbers], extents, self.model.anatomy)
        if numbers == every and len(self.sites) * len(every) <= FEW:
            found = self._kept = list(found)
        return found

    def _runs(self, bench: Bench, base_lane: Lane, local: "Local") -> tuple[Run, Run, Run]:
        """Return the base run, the run at the metric's other end, and the one that patches are taken from."""
        causal, numbers, ablation = self.model.anatomy.causal, local.numbers, self.ablation
        first = tuple(self._first_differing(n) for n in numbers) if causal else None
        source_lane = replace(self.lane("source", numbers), starts=first, kinds=() if ablation else self.kinds)
        lanes = [replace(base_lane, kinds=self.base_kinds), source_lane]
        if ablation and ablation.by == "resample":
            drawn = [forced(self.drawn[n], self.pairs[n], self.targets.reads) for n in numbers]
            lanes.append(Lane(Prompts.of(drawn, self.model.device), self.kinds))
        base, source, *more = run_lanes(bench, lanes)
        if not ablation:
            return base, source, source
        pairs = [self.pairs[n] for n in numbers]
        if ablation.by == "zero":
            return base, source, zeros_like_run(self.model, base, self.kinds)
        return base, source, more[0] if self.means is None else self.means.rows(pairs, base)

    def _first_differing(self, number: int) -> int:
        """Return where the two unpatched runs of a pair part."""
        pair = self.pairs[number]
        return key_positions(pair, self.corruption)[0] if self.corruption.of_embeddings else first_difference(pair)

    def _run_pack(self, pack: Sequence[Cell], this: "Pass") -> None:
        """Walk one pack; halves it when memory is short."""
        values: list[tuple[Cell, list[float]]] = []
        with Attempt() as attempt:
            values = list(self._walk(pack, this))
        if attempt.short:
            self._halve(pack, lambda part: self._run_pack(part, this), "one row")
            return
        for cell, value in values:
            self.raw[:, cell.site, this.local.numbers[cell.pair]] = value
        self._commit(values, this.local.numbers)
        self.packs += 1
        self.options.progress.advance(len(pack))

    def take_over(self, journal: Journal) -> None:
        """Fill in what a journal holds, and write to it from now on."""
        rows = journal.read()
        if rows:
            self.raw[:, rows["site"], rows["example"]] = np.stack([rows[name] for name in self._columns])
        self.journal = journal

    @property
    def _columns(self) -> list[str]:
        return [f"{number} {metric.name}" for number, metric in enumerate(self.metrics)]

    def _commit(self, values: Sequence[tuple[Cell, list[float]]], numbers: Sequence[int]) -> None:
        """Write finished cells to the journal, if there is one."""
        if self.journal is None or not values:
            return
        places = np.array([(cell.site, numbers[cell.pair]) for cell, _ in values], np.int32)
        effects = np.array([effect for _, effect in values], np.float32)
        named = {name: effects[:, i] for i, name in enumerate(self._columns)}
        self.journal.append({"site": places[:, 0], "example": places[:, 1], **named})

    def _walk(self, pack: Sequence[Cell], this: "Pass") -> Iterator[tuple[Cell, list[float]]]:
        device = self.model.device
        unpatched = torch.from_numpy(self.base[:, this.local.numbers]).to(device)
        for indices, stream in self.walk(pack, this):
            pairs = torch.tensor([pack[i].pair for i in indices], device=device)
            effects = this.scorer(stream, pairs) - unpatched[:, pairs]
            for index, effect in zip(indices, effects.T.tolist(), strict=True):
                cell = pack[index]
                if not np.isfinite(effect).all():
                    raise NotFinite(
                        _not_finite(self.metrics, self.sites[cell.site], this.local.numbers[cell.pair], effect)
                    )
                yield cell, effect

    def walk(self, pack: Sequence[Cell], this: "Pass") -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield indices into `pack` and their final streams `[row, read, d_model]`."""
        return Walk(this.bench, this.base, this.written, this.local.extents, pack).run()

    def how(self) -> str:
        """Say what sets this kind of sweep apart from others of the same sites and pairs."""
        return "patch"

    def work(self, pack: Sequence[Cell]) -> int:
        """Return the token-blocks of a pack."""
        return pack_work(pack, self.extents, self.model.anatomy)

    def _scorer(self, local: "Local", base: Run, source: Run) -> Scorer:
        clean = source if self.direction == "denoise" else base
        plain = Scorer(self.model, self.metrics, local.targets)
        reference = self._logprobs(plain, local, clean) if any(m.needs_reference for m in self.metrics) else None
        before = self._logprobs(plain, local, base) if any(m.needs_base for m in self.metrics) else None
        return replace(plain, reference=reference, base=before)

    def _logprobs(self, scorer: Scorer, local: "Local", run: Run) -> Float[Tensor, "pair vocab"] | None:
        every = torch.arange(len(local.numbers), device=self.model.device)
        logits = scorer.logits(final_reads(run, local, every)[:, 0], local.targets.right[:, 0])[0]
        return None if logits is None else logits.log_softmax(-1)

    def _score_runs(self, local: "Local", scorer: Scorer, base: Run, source: Run) -> None:
        every = torch.arange(len(local.numbers), device=self.model.device)
        for name, run, store in (("base", base, self.base), ("source", source, self.source)):
            values = scorer(final_reads(run, local, every), every)
            for metric, row in zip(self.metrics, values, strict=True):
                require_finite(row, name, metric=metric, numbers=local.numbers)
            store[:, local.numbers] = values.cpu().numpy()

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

    def _timed(self, phase: str) -> Timer:
        return Timer(self.seconds, phase)


@dataclass(frozen=True)
class Local:
    """What is known of the pairs of one chunk, numbered from 0."""

    numbers: list[int]
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
        return cls(rows, extents, Targets(whole.right[rows], whole.wrong[rows], *masks))


@dataclass(frozen=True)
class Pass:
    """What the packs of one chunk share."""

    bench: Bench
    base: Run
    written: Run
    local: Local
    scorer: Scorer


def final_reads(run: Run, local: Local, pairs: Tensor) -> Float[Tensor, "pair read d_model"]:
    """Return a run's final stream at the positions read."""
    reads = torch.tensor(local.extents.reads, device=pairs.device)[pairs]
    return run.stream[-1][pairs[:, None], reads]


def _not_finite(metrics: Sequence[Metric], site: Address, example: int, values: Sequence[float]) -> str:
    name, value = next((m.name, v) for m, v in zip(metrics, values, strict=True) if not np.isfinite(v))
    return (
        f"{name} is {value} after patching {site} on example {example}: the patched run overflows. "
        "Try dtype float32; the base and source runs are finite."
    )
