"""The exact sweep: one pass over the blocks with a batch that grows by the rows that are patched there.

A row is one patched run. It starts at its first patched position, against the base run's keys and values before it, and
at its patched block, from the base run's stream. So nothing is computed that the base run has computed already
(ARCHITECTURE.md, "The walk"). Rows of all pairs, layers and starts share each call of a block.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.engine.cells import Cell, Extents
from crosspatch.models.anatomy import Point
from crosspatch.models.attention import Segment
from crosspatch.models.hooks import Visit
from crosspatch.models.packed import flat_visit
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
    cells: tuple[int, ...]


@dataclass(frozen=True)
class Walk:
    """One pass for a pack of cells, between a base and a source run on the same bench."""

    bench: Bench
    base: Run
    source: Run
    extents: Extents
    cells: Sequence[Cell]

    def run(self) -> Iterator[tuple[Sequence[int], Float[Tensor, "row read d_model"]]]:
        """Yield indices into `cells` and their final stream at the positions read, group by group."""
        last = self.bench.anatomy.layers
        entering = self._entering()
        rows: dict[Shape, Rows] = defaultdict(Rows)
        for layer in range(min(entering), last + 1):
            entries = entering.get(layer, [])
            for entry in entries:
                if self._reach(entry) == "stream":
                    self._enter_stream(layer, entry, rows)
            if layer < last:
                self._step(layer, [entry for entry in entries if self._reach(entry) != "stream"], rows)
        for shape, group in sorted(rows.items()):
            yield group.cells, self._read(shape, group)

    def _reach(self, entry: Entry) -> str:
        return self.cells[entry.cells[0]].reach

    def _entering(self) -> dict[int, list[Entry]]:
        """Group the cells by the block they enter and by shape."""
        groups: dict[tuple[int, str, int, int, int], list[int]] = defaultdict(list)
        for index, cell in enumerate(self.cells):
            length = self.extents.lengths[cell.pair]
            start = cell.positions[0] if self.bench.anatomy.packed else 0
            local = cell.reach == "local" and self.bench.anatomy.packed
            end = cell.positions[-1] + 1 if local else length
            groups[cell.layer, cell.reach, start, length, end - start].append(index)
        entering: dict[int, list[Entry]] = defaultdict(list)
        for (layer, _, start, length, span), cells in sorted(groups.items()):
            entering[layer].append(Entry(start, length, span, tuple(cells)))
        return entering

    def _pairs(self, entry: Entry) -> Int[Tensor, " row"]:
        return torch.tensor([self.cells[i].pair for i in entry.cells], device=self.base.stream[0].device)

    def _enter_stream(self, layer: int, entry: Entry, rows: dict[Shape, Rows]) -> None:
        """Start rows whose stream itself is patched."""
        pairs = self._pairs(entry)
        hidden = self.base.stream[layer][pairs, entry.start : entry.length]
        spots = Spots.of(self.cells, entry, first=0, device=pairs.device)
        flat = hidden.flatten(0, 1)
        flat[spots.tokens] = self.source.stream[layer][spots.pairs, spots.positions]
        rows[entry.start, entry.length].join(entry.cells, pairs, flat.view_as(hidden))

    def _step(self, layer: int, entries: Sequence[Entry], rows: dict[Shape, Rows]) -> None:
        """Run one block on all running rows and on the rows that are patched inside it."""
        running = [(shape, group) for shape, group in sorted(rows.items()) if group.hidden is not None]
        if not running and not entries:
            return
        parts, segments = [], []
        for (start, length), group in running:
            segments.append(Segment(start, length - start, torch.cat(group.pairs)))
            parts.append(group.hidden.flatten(0, 1))  # pyright: ignore[reportOptionalMemberAccess]
        for entry in entries:
            pairs = self._pairs(entry)
            segments.append(Segment(entry.start, entry.span, pairs))
            parts.append(self.base.stream[layer][pairs, entry.start : entry.start + entry.span].flatten(0, 1))
        hidden = torch.cat(parts)
        firsts = torch.tensor([0] + [segment.tokens for segment in segments]).cumsum(0).tolist()
        edits = Edits(self, layer, hidden, list(zip(entries, firsts[len(running) :], strict=False)))
        out = self.bench.call(
            layer, hidden, segments, past=past_of(self.base, layer), visits=edits.visits(), job=self.bench.job
        )
        flat = out.split([segment.tokens for segment in segments])
        split = [part.unflatten(0, (s.rows, s.span)) for part, s in zip(flat, segments, strict=True)]
        for (_, group), part in zip(running, split, strict=False):
            group.hidden = part
        for entry, part, segment in zip(entries, split[len(running) :], segments[len(running) :], strict=True):
            tail = self.base.stream[layer + 1][segment.pairs, entry.start + entry.span : entry.length]
            rows[entry.start, entry.length].join(entry.cells, segment.pairs, torch.cat([part, tail], dim=1))

    def _read(self, shape: Shape, group: Rows) -> Float[Tensor, "row read d_model"]:
        pairs = torch.cat(group.pairs)
        reads = torch.tensor(self.extents.reads, device=pairs.device)[pairs] - shape[0]
        rows = torch.arange(len(pairs), device=pairs.device)[:, None]
        return group.hidden[rows, reads]  # pyright: ignore[reportOptionalSubscript]


@dataclass(frozen=True)
class Spots:
    """The patched tokens of some rows: index among the packed tokens, pair, position, unit (0 for the whole width)."""

    tokens: Int[Tensor, " spot"]
    pairs: Int[Tensor, " spot"]
    positions: Int[Tensor, " spot"]
    units: Int[Tensor, " spot"]

    @classmethod
    def of(
        cls, cells: Sequence[Cell], entry: Entry, *, first: int, device: torch.device, only: "Write | None" = None
    ) -> "Spots":
        """Locate the patched tokens of an entry whose rows begin at packed token `first`; of one write if given."""
        found = [
            (first + row * entry.span + position - entry.start, cells[i].pair, position, cells[i].unit or 0)
            for row, i in enumerate(entry.cells)
            if only is None or only == Write.of(cells[i])
            for position in cells[i].positions
        ]
        return cls(*torch.tensor(found, dtype=torch.long, device=device).reshape(-1, 4).unbind(1))

    @classmethod
    def join(cls, parts: Sequence["Spots"]) -> "Spots":
        """Put the spots of several entries together."""
        names = ("tokens", "pairs", "positions", "units")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


class Write(NamedTuple):
    """Cells that one hook can write: a kind, one unit of it each or its whole width."""

    kind: str
    whole: bool

    @classmethod
    def of(cls, cell: Cell) -> "Write":
        """Return the write that a cell belongs to."""
        return cls(cell.kind, cell.unit is None)


@dataclass(frozen=True)
class Edits:
    """The writes inside one block: which packed tokens get which source values."""

    walk: Walk
    layer: int
    hidden: Float[Tensor, "token d_model"]
    entries: Sequence[tuple[Entry, int]]

    def visits(self) -> list[tuple[Point, Visit]]:
        """Return the hooks that write them."""
        writes = sorted({Write.of(self.walk.cells[i]) for entry, _ in self.entries for i in entry.cells})
        return [self._visit(write) for write in writes]

    def _visit(self, write: Write) -> tuple[Point, Visit]:
        cells, device = self.walk.cells, self.hidden.device
        spots = Spots.join([Spots.of(cells, e, first=first, device=device, only=write) for e, first in self.entries])
        point = self.walk.bench.anatomy.points[CARRIER.get(write.kind, write.kind)]
        columns = self._columns(point, write, spots)
        values = self._values(write, spots, columns)
        return point, flat_visit(partial(_put, (spots.tokens[:, None], columns), values))

    def _columns(self, point: Point, write: Write, spots: Spots) -> Int[Tensor, "spot_or_1 column"]:
        """Return the columns written at each spot: its unit's, or those of all units, or the whole width."""
        device = self.hidden.device
        if not point.starts:
            return torch.arange(self.walk.bench.anatomy.d_model, device=device)[None]
        starts = torch.tensor(list(point.starts), device=device)
        columns = starts[:, None] + torch.arange(point.width, device=device)
        return columns.flatten()[None] if write.whole else columns[spots.units]

    def _values(self, write: Write, spots: Spots, columns: Tensor) -> Float[Tensor, "spot column"]:
        """Return what the source run has at the spots."""
        source, layer = self.walk.source, self.layer
        if write.kind == "resid.mid":
            mid = source.stream[layer] + source.seen["attn.out"][layer]
            return mid[spots.pairs, spots.positions] - self.hidden[spots.tokens]
        if write.kind == "attn.pattern":
            return self._pattern_values(write, spots)
        return source.seen[write.kind][layer][spots.pairs[:, None], spots.positions[:, None], columns]

    def _pattern_values(self, write: Write, spots: Spots) -> Float[Tensor, "spot column"]:
        """Weigh the base run's values by the source run's attention: what a head gives under the source's pattern."""
        pattern = self.walk.source.patterns[self.layer][spots.pairs, :, spots.positions]
        values = self.walk.base.values[self.layer][spots.pairs]
        values = values.repeat_interleave(pattern.shape[1] // values.shape[1], dim=1)
        heads = torch.einsum("shk,shkd->shd", pattern.to(values.dtype), values)
        return heads.flatten(1) if write.whole else heads[torch.arange(len(heads), device=heads.device), spots.units]


def _put(
    where: tuple[Tensor, Tensor], values: Float[Tensor, "spot column"], flat: Float[Tensor, "token width"]
) -> Tensor:
    flat = flat.clone()
    flat[where] = values.to(flat.dtype)
    return flat


# A kind that is written through another kind's point.
CARRIER = {"resid.mid": "attn.out", "attn.pattern": "attn.head"}


def needed_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the activations that the source run must keep for a sweep of these kinds."""
    own = {"embed", "resid.pre", "resid.post"}
    return tuple(sorted({"attn.out" if kind == "resid.mid" else kind for kind in kinds if kind not in own}))
