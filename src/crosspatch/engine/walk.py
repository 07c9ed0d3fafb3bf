"""The exact sweep: one pass over the blocks with a batch that grows by the rows that are patched there.

A row is one patched run. It starts at its first patched position, against the base run's keys and values before it, and
at its patched block, from the base run's stream. So nothing is computed that the base run has computed already
(ARCHITECTURE.md, "The walk"). Rows of all pairs, layers and starts share each call of a block. A row may be patched
again in later blocks: that is how sites are patched together.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.engine.cells import Cell, Extents
from crosspatch.engine.narrow import narrowed, read_tokens
from crosspatch.engine.writing import Acting, Stretch, Writing
from crosspatch.models.attention import Segment
from crosspatch.models.runs import Bench, Run, past_of

Shape = tuple[int, int]  # first position and length of a row


@dataclass
class Rows:
    """Running rows of one shape: their cells, their pairs and their stream `[row, pos, d_model]`."""

    cells: list[int] = field(default_factory=list)
    pairs: list[Tensor] = field(default_factory=list)
    hidden: Tensor | None = None

    def join(self, cells: Sequence[int], pairs: Tensor, hidden: Tensor) -> None:
        """Add rows that start to run."""
        self.cells.extend(cells)
        self.pairs.append(pairs)
        self.hidden = hidden if self.hidden is None else torch.cat([self.hidden, hidden])


@dataclass(frozen=True)
class Entry:
    """Cells that enter one block with the same shape; only the first `span` tokens of their rows differ from base."""

    start: int
    length: int
    span: int
    stream: bool
    cells: tuple[int, ...]


@dataclass(frozen=True)
class Walk:
    """One pass for a pack of cells, between a base run and the source of what is written, on the same bench.

    With `first`, each block from that one on is called exactly once, on an idle token where no row runs: processes that
    gather each block's weights together (FSDP) can so run packs of their own, in step, or none. They must share the
    bench's prompts and both runs, and agree on `first`: no later than the block where any of their rows enters.
    """

    bench: Bench
    base: Run
    source: Run
    extents: Extents
    cells: Sequence[Cell]
    first: int | None = None

    def run(self) -> Iterator[tuple[Sequence[int], Float[Tensor, "row read d_model"]]]:
        """Yield indices into `cells` and their final stream at the positions read, group by group."""
        last = self.bench.anatomy.layers
        entering = self._entering()
        rows: dict[Shape, Rows] = defaultdict(Rows)
        for layer in range(min(entering) if self.first is None else self.first, last + 1):
            entries = entering.get(layer, [])
            for entry in entries:
                if entry.stream:
                    pairs = self._pairs(entry.cells)
                    stream = self.base.stream[layer]
                    hidden = stream[pairs.to(stream.device), entry.start : entry.length]
                    rows[entry.start, entry.length].join(entry.cells, pairs, hidden)
            self._write_stream(layer, rows)
            if layer < last:
                self._step(layer, [entry for entry in entries if not entry.stream], rows)
        for shape, group in sorted(rows.items()):
            yield group.cells, self._read(shape, group)

    def _entering(self) -> dict[int, list[Entry]]:
        """Group the cells by the block they enter and by shape."""
        groups: dict[tuple[int, bool, int, int, int], list[int]] = defaultdict(list)
        packed = self.bench.anatomy.packed
        for index, cell in enumerate(self.cells):
            length = self.extents.lengths[cell.pair]
            start = cell.start if packed else 0
            end = cell.end if cell.reach == "local" and packed else length
            groups[cell.layer, cell.reach == "stream", start, length, end - start].append(index)
        entering: dict[int, list[Entry]] = defaultdict(list)
        for (layer, stream, start, length, span), cells in sorted(groups.items()):
            entering[layer].append(Entry(start, length, span, stream, tuple(cells)))
        return entering

    @cached_property
    def _acting(self) -> Mapping[int, Acting]:
        """What is written in each block: its cells with their writes, those of the stream apart."""
        acting: dict[int, Acting] = defaultdict(Acting)
        for index, cell in enumerate(self.cells):
            for part in cell.parts:
                acting[part.layer].add(index, part)
        return acting

    def _owners(self, cells: Sequence[int]) -> list[int]:
        return [self.cells[i].pair for i in cells]

    def _pairs(self, cells: Sequence[int]) -> Int[Tensor, " row"]:
        return torch.tensor(self._owners(cells), device=self.base.stream[0].device)

    def _write_stream(self, layer: int, rows: Mapping[Shape, Rows]) -> None:
        """Write the rows whose stream itself is patched before this block."""
        if layer not in self._acting or not self._acting[layer].stream:
            return
        for (start, length), group in rows.items():
            if group.hidden is None:
                continue
            stretch = Stretch(group.cells, start, length - start, 0)
            spots = self._acting[layer].stream_spots(self.cells, stretch, group.hidden.device)
            if len(spots.tokens):
                flat = group.hidden.flatten(0, 1)  # the rows' own: nothing else holds it
                flat[spots.tokens] = self.source.stream[layer][spots.taken, spots.positions]
                group.hidden = flat.view_as(group.hidden)

    def _step(self, layer: int, entries: Sequence[Entry], rows: dict[Shape, Rows]) -> None:
        """Run one block on all running rows and on the rows that are patched inside it."""
        running = [(shape, group) for shape, group in sorted(rows.items()) if group.hidden is not None]
        if not running and not entries:
            if self.first is not None:
                self._idle(layer)
            return
        parts, segments, stream, after = [], [], self.base.stream[layer], self.base.stream[layer + 1]
        for (start, length), group in running:
            segments.append(Segment(start, length - start, torch.cat(group.pairs), self._owners(group.cells)))
            parts.append(group.hidden.flatten(0, 1))  # pyright: ignore[reportOptionalMemberAccess]
        for entry in entries:
            pairs = self._pairs(entry.cells)
            segments.append(Segment(entry.start, entry.span, pairs, self._owners(entry.cells)))
            parts.append(stream[pairs.to(stream.device), entry.start : entry.start + entry.span].flatten(0, 1))
        cells = [group.cells for _, group in running] + [entry.cells for entry in entries]
        split = self._call(layer, torch.cat(parts), segments, cells)
        for (_, group), part in zip(running, split, strict=False):
            group.hidden = part
        for entry, part, segment in zip(entries, split[len(running) :], segments[len(running) :], strict=True):
            tail = after[segment.pairs.to(after.device), entry.start + entry.span : entry.length]
            rows[entry.start, entry.length].join(entry.cells, segment.pairs, torch.cat([part, tail], dim=1))

    def _idle(self, layer: int) -> None:
        """Call a block on a token of the first pair (its whole row, where rows are padded) for the call alone."""
        stream, span = self.base.stream[layer], 1 if self.bench.anatomy.packed else self.extents.lengths[0]
        pairs = torch.zeros(1, dtype=torch.long, device=stream.device)
        self._call(layer, stream[0, :span], [Segment(0, span, pairs)], [[]])

    def _call(
        self, layer: int, hidden: Tensor, segments: Sequence[Segment], cells: Sequence[Sequence[int]]
    ) -> list[Float[Tensor, "row pos d_model"]]:
        """Call a block on packed segments, with the writes of their cells; return its output segment by segment."""
        hidden = hidden.to(self.base.stream[layer + 1].device)  # where the block is, with layers on several devices
        firsts = torch.tensor([0] + [segment.tokens for segment in segments]).cumsum(0).tolist()
        stretches = [Stretch(c, s.start, s.span, f) for c, s, f in zip(cells, segments, firsts, strict=False)]
        writing = Writing(self.bench, self.source, layer, hidden, self._acting.get(layer, Acting()), self.cells)
        job = self.bench.job
        visits = writing.begin(stretches, job)
        anatomy = self.bench.anatomy
        if layer == anatomy.layers - 1 and anatomy.packed:
            read = read_tokens(stretches, self.cells, self.extents, hidden.device)
            visits += narrowed(anatomy, visits, read, len(hidden))
        try:
            out = self.bench.call(layer, hidden, segments, past=past_of(self.base, layer), visits=visits, job=job)
        finally:
            job.edit_mask = job.edit_heads = None
        flat = out.split([segment.tokens for segment in segments])
        return [part.unflatten(0, (s.rows, s.span)) for part, s in zip(flat, segments, strict=True)]

    def _read(self, shape: Shape, group: Rows) -> Float[Tensor, "row read d_model"]:
        pairs = torch.cat(group.pairs)
        reads = torch.tensor(self.extents.reads, device=pairs.device)[pairs] - shape[0]
        rows = torch.arange(len(pairs), device=pairs.device)[:, None]
        hidden: Tensor = group.hidden  # pyright: ignore[reportAssignmentType]
        return hidden[rows.to(hidden.device), reads.to(hidden.device)].to(pairs.device)
