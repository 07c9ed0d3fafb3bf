"""The exact sweep from task to numbers: its question, its runs, and how its work is cut into units."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from crosspatch.core.errors import NotFinite
from crosspatch.core.journal import UNIT, Columns
from crosspatch.core.progress import Progress, SilentProgress
from crosspatch.engine.ablation import Ablation, Means, zeros_like_run
from crosspatch.engine.attempt import Timer
from crosspatch.engine.cells import Cell, Extents, cells_of, first_difference
from crosspatch.engine.corrupting import Corrupter
from crosspatch.engine.local import Local, Pass, final_reads
from crosspatch.engine.memory import Sizes, read_bytes, read_weights, unembedding_bytes
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
from crosspatch.engine.readout import Scorer, forced, read_positions, require_finite, targets_of
from crosspatch.engine.units import BASE, SOURCE, Cuts, Unit
from crosspatch.engine.walk import Walk
from crosspatch.engine.writing import needed_kinds
from crosspatch.executors import Crew
from crosspatch.metrics import Metric
from crosspatch.models.model import Model
from crosspatch.models.runs import Bench, Lane, Overlay, Prompts, Run, run_lanes, workbench
from crosspatch.sites import Address, members_of
from crosspatch.tasks import Corruption, Pair, key_positions

FEW = 1 << 17  # cells that are kept from the plan to the runs; more are made again, which costs time and no memory


@dataclass(frozen=True)
class Options:
    """How a sweep runs; none of it changes the numbers, but for their last bits.

    `memory` is a budget in bytes beside the weights (None: 2 GiB, or 60 % of what is free on the GPU). `tokens` caps
    the tokens of a pack. `progress` is told of every finished row. `journal` names a folder that finished units are
    written to as they come: nothing in it is lost or run again, also after Ctrl-C or a killed process. It belongs to
    one question, in which a metric of your own is told by its name, and keeps the cuts that its work was begun with.
    `crew` says who runs the units: this process, others of this machine, Ray, SLURM, the ranks of a launcher. `threads`
    are those of the processor that a unit runs with (None: torch's own number, shared out among local workers).
    """

    memory: int | None = None
    tokens: int | None = None
    progress: Progress = field(default_factory=SilentProgress)
    journal: Path | None = None
    crew: Crew = field(default_factory=Crew)
    threads: int | None = None


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
    cuts: Cuts = field(init=False)
    opener: ClassVar[str] = "crosspatch.engine.shipping:open_job"  # opens it in another process
    tracked: bool = False  # whether calls on an opened pass may be differentiated
    first: int | None = None  # the block that processes which run packs of their own begin at, in step
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
        self._kept: list[tuple[int, int, Cell | None]] | None = None
        self.cuts = Cuts(tuple(map(tuple, self._chunks())), self._pack_tokens(), self._threads())
        self._packs: dict[int, list[list[Cell]]] = {}

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
        like = torch.empty(0, dtype=next(self.model.module.parameters()).dtype, device=self.model.device)
        return self.corrupter.overlay([(n, self.pairs[n]) for n in numbers], like) if self.corrupter else None

    def packs_in(self, chunk: int) -> list[list[Cell]]:
        """Return the packs of a chunk, whose cells number its pairs from 0; the last chunk asked for is remembered."""
        if chunk not in self._packs:
            numbers = self.cuts.chunks[chunk]
            local = Local.of(self.extents, self.targets, numbers)
            cells = [cell for *_, cell in self.found(local) if cell is not None]
            packs = packs_of(cells, local.extents, self.model.anatomy, self.cuts.tokens)
            self._packs = {chunk: list(packs)}
        return self._packs[chunk]

    @cached_property
    def units(self) -> list[Unit]:
        """The units of work in order: of each chunk the two runs, then its packs."""
        found = []
        for chunk, numbers in enumerate(self.cuts.chunks):
            local = Local.of(self.extents, self.targets, numbers)
            sizes = replace(self.sizes, extents=local.extents)
            held = sizes.runs(range(len(numbers)))
            found.append(Unit(chunk, None, 0, runs_work(local.extents, self.model.anatomy), held))
            for number, pack in enumerate(self.packs_in(chunk)):
                memory = max(sizes.pack(pack), sizes.read(pack))
                found.append(Unit(chunk, number, len(pack), self.work(pack, local), memory))
        return found

    @property
    def units_by_chunk(self) -> list[list[int]]:
        """The numbers of the units of each chunk."""
        groups: list[list[int]] = [[] for _ in self.cuts.chunks]
        for number, unit in enumerate(self.units):
            groups[unit.chunk].append(number)
        return groups

    def plan(self) -> Plan:
        """Return what a run would do, without running the model."""
        anatomy, extents, pairs = self.model.anatomy, self.extents, len(self.pairs)
        units, weights = self.units, read_weights(self.model, self.targets, self.metrics)
        work, rows = sum(unit.work for unit in units), sum(unit.rows for unit in units)
        found = [(number, cell is None) for _, number, cell in self.found()]
        naive = 2 * sum(extents.lengths) + sum(extents.lengths[pair] for pair, _ in found)
        held, call = max(map(len, self.cuts.chunks)), max(unit.memory for unit in units)
        return Plan(
            patches=len(self.sites) * pairs,
            zero=sum(zero for _, zero in found),
            absent=len(self.sites) * pairs - len(found),
            rows=rows,
            token_blocks=work,
            naive_token_blocks=naive * anatomy.layers,
            forward_token_blocks=anatomy.layers * sum(extents.lengths) / pairs,
            flops=2 * (work * block_weights(self.model) + (rows + 2 * pairs) * weights),
            packs=sum(unit.pack is not None for unit in units),
            chunks=len(self.cuts.chunks),
            peak_bytes=self.sizes.peak(pairs=held, call=call, cells=rows),
        )

    @property
    def sizes(self) -> Sizes:
        """What the sweep holds at once, in bytes."""
        read = read_bytes(self.model, self.targets, self.metrics)
        copy = unembedding_bytes(self.model, self.metrics)
        return Sizes(self.model, self.extents, self.bytes_per_pair(), read, "attn.pattern" in self.kinds, copy)

    def bytes_per_pair(self) -> int:
        """Return the memory that the two runs of the longest pair keep."""
        longest = max(self.extents.lengths)
        return longest * bytes_per_prompt_token(self.model, (*self.kinds, *self.base_kinds), longest)

    def _chunks(self) -> list[list[int]]:
        apart = self.model.anatomy.by_length
        return chunk_pairs(self.extents.lengths, self.bytes_per_pair(), self._budget(), by_length=apart)

    def _budget(self) -> int:
        """Return the bytes for chunks and packs: processes that cut them otherwise would wait for each other."""
        return self.model.agreed(memory_budget(self.options.memory, self.model.device))

    def _pack_tokens(self) -> int:
        """Return the most tokens of one pack: what the other half of the budget holds, and no more than helps."""
        if self.options.tokens is not None:
            return self.options.tokens
        room = self._budget() // 2 // bytes_per_token(self.model)
        return max(1, min(room, TOKENS_AT_ONCE.get(self.model.device.type, TOKENS_AT_ONCE["cpu"])))

    def _threads(self) -> int:
        """Return the threads of a unit: as asked, or torch's own number, shared out among workers of this machine."""
        sharers = self.options.crew.workers or 1
        return self.options.threads or max(1, torch.get_num_threads() // sharers)

    def adopt(self, cuts: Mapping[str, Any]) -> None:
        """Cut the work as it was cut before; for before anything is run. Raises KeyError or TypeError for no cuts."""
        self.cuts = Cuts.from_json(cuts)
        self._packs.clear()
        self.__dict__.pop("units", None)

    def take(self, rows: Columns) -> None:
        """Fill in finished units; `complete` if nothing is missing then."""
        done = set(np.unique(rows[UNIT]).tolist()) if rows else set()
        self.complete = len(done) == len(self.units)
        if not rows:
            return
        for site, number, cell in self.found():
            if cell is None:
                self.raw[:, site, number] = 0.0
        values = np.stack([rows[name] for name in self._names])
        patched = rows["site"] >= 0
        self.raw[:, rows["site"][patched], rows["example"][patched]] = values[:, patched]
        for store, mark in ((self.base, BASE), (self.source, SOURCE)):
            own = rows["site"] == mark
            store[:, rows["example"][own]] = values[:, own]

    @property
    def _names(self) -> list[str]:
        return [f"{number} {metric.name}" for number, metric in enumerate(self.metrics)]

    def columns(
        self, sites: Int[np.ndarray, " row"], examples: Int[np.ndarray, " row"], values: Float[np.ndarray, "row metric"]
    ) -> Columns:
        """Lay rows of results out as a journal keeps them."""
        values = values.astype(np.float32).reshape(-1, len(self.metrics))
        named = {name: values[:, number] for number, name in enumerate(self._names)}
        return {"site": sites.astype(np.int32), "example": examples.astype(np.int32), **named}

    @contextmanager
    def opened(self, numbers: Sequence[int]) -> Iterator[Pass]:
        """Run the two runs of some pairs and hold them for patching, while the block lasts.

        Raises:
            NotFinite: the metric of a run is not a number.
        """
        local = Local.of(self.extents, self.targets, numbers)
        if self.pools and self.means is None:
            with self.timed("reference"):
                self.means = Means.of(self.model, self.pools, self.kinds)
        base_lane = self.lane("base", numbers)
        with workbench(self.model, base_lane.prompts, tracked=self.tracked) as bench:
            with self.timed("runs"):
                base, source, written = self._runs(bench, base_lane, local)
                scorer = self._scorer(local, base, source)
                before, after = (self._scored(local, scorer, *run) for run in (("base", base), ("source", source)))
            yield Pass(bench, base, written, local, scorer, before, after)

    def found(self, local: Local | None = None) -> Iterable[tuple[int, int, Cell | None]]:
        """Return the cells of all pairs, or of a chunk with its own numbers; where they are few, they are made once."""
        every = [*range(len(self.pairs))]
        numbers, extents = (local.numbers, local.extents) if local else (every, self.extents)
        if numbers == every and self._kept is not None:
            return self._kept
        found = cells_of(self.sites, [self.pairs[n] for n in numbers], extents, self.model.anatomy)
        if numbers == every and len(self.sites) * len(every) <= FEW:
            found = self._kept = list(found)
        return found

    def _runs(self, bench: Bench, base_lane: Lane, local: Local) -> tuple[Run, Run, Run]:
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

    def walk(self, pack: Sequence[Cell], this: Pass) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield indices into `pack` and their final streams `[row, read, d_model]`."""
        return Walk(this.bench, this.base, this.written, this.local.extents, pack, self.first).run()

    def measured(self, pack: Sequence[Cell], this: Pass) -> Iterator[tuple[Cell, list[float]]]:
        """Yield each cell of a pack with its effect on every metric.

        Raises:
            NotFinite: the metric of a patched run is not a number.
        """
        for indices, stream in self.walk(pack, this):
            pairs = torch.tensor([pack[i].pair for i in indices], device=self.model.device)
            effects: Float[Tensor, "metric row"] = this.scorer(stream, pairs) - this.before[:, pairs]
            for index, effect in zip(indices, effects.T.tolist(), strict=True):
                cell = pack[index]
                if not np.isfinite(effect).all():
                    site, example = self.sites[cell.site], this.local.numbers[cell.pair]
                    raise NotFinite(_not_finite(self.metrics, site, example, effect))
                yield cell, effect

    @property
    def steps(self) -> bool:
        """Whether packs can be run in step with other processes' packs."""
        return True

    def more(self) -> Mapping[str, Any]:
        """Say what other processes need to know beside the question of a plain sweep."""
        return {}

    def how(self) -> str:
        """Say what sets this kind of sweep apart from others of the same sites and pairs."""
        return "patch"

    def work(self, pack: Sequence[Cell], local: Local) -> int:
        """Return the token-blocks of a pack of these pairs."""
        return pack_work(pack, local.extents, self.model.anatomy)

    def _scorer(self, local: Local, base: Run, source: Run) -> Scorer:
        clean = source if self.direction == "denoise" else base
        plain = Scorer(self.model, self.metrics, local.targets)
        reference = self._logprobs(plain, local, clean) if any(m.needs_reference for m in self.metrics) else None
        before = self._logprobs(plain, local, base) if any(m.needs_base for m in self.metrics) else None
        return replace(plain, reference=reference, base=before)

    def _logprobs(self, scorer: Scorer, local: Local, run: Run) -> Float[Tensor, "pair vocab"] | None:
        every = torch.arange(len(local.numbers), device=self.model.device)
        logits = scorer.logits(final_reads(run, local, every)[:, 0], local.targets.right[:, 0])[0]
        return None if logits is None else logits.log_softmax(-1)

    def _scored(self, local: Local, scorer: Scorer, name: str, run: Run) -> Float32[Tensor, "metric pair"]:
        every = torch.arange(len(local.numbers), device=self.model.device)
        values = scorer(final_reads(run, local, every), every)
        for metric, row in zip(self.metrics, values, strict=True):
            require_finite(row, name, metric=metric, numbers=local.numbers)
        return values

    def timed(self, phase: str) -> Timer:
        """Time a block as part of a phase."""
        return Timer(self.seconds, phase)


def _not_finite(metrics: Sequence[Metric], site: Address, example: int, values: Sequence[float]) -> str:
    name, value = next((m.name, v) for m, v in zip(metrics, values, strict=True) if not np.isfinite(v))
    return (
        f"{name} is {value} after patching {site} on example {example}: the patched run overflows. "
        "Try dtype float32; the base and source runs are finite."
    )
