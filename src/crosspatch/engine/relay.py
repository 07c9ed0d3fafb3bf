"""The first run of path patching: a sender's change on its way through MLPs and norms, with every head held."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosspatch.engine.cells import Cell, Extents
from crosspatch.models.anatomy import Point
from crosspatch.models.attention import Segment
from crosspatch.models.hooks import Visit
from crosspatch.models.packed import flat_visit
from crosspatch.models.runs import Bench, Run, past_of
from crosspatch.sites import Site

# Senders that are the stream itself; for each held output, the senders whose token's own output must not be held.
STREAM = ("embed", "resid.pre")
PART_OF = {"attn.head": ("attn.head",), "mlp.out": ("mlp.in", "mlp.hidden", "mlp.out")}


@dataclass(frozen=True)
class Tokens:
    """Tokens on their way, those that enter first in front: row, pair and position of each, and the block it enters."""

    rows: Int[Tensor, " token"]
    pairs: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    entry: Int[Tensor, " token"]
    sends: Bool[Tensor, " token"]


@dataclass(frozen=True)
class Relay:
    """The rows of one pack: cell r is row r, with one part, its sender.

    `alone`: each changed position is a row of one token, since with heads held no token reads another. Else whole rows
    run from the first changed position on, their attention computed and written over.
    """

    bench: Bench
    base: Run
    source: Run
    cells: Sequence[Cell]
    alone: bool
    held: Sequence[str]

    def to_the_end(self, extents: Extents) -> Float[Tensor, "row read d_model"]:
        """Return the final stream at the positions read."""
        hidden, _ = self._run(self.bench.anatomy.layers, {})
        tokens, device = self._tokens, self._device
        pairs = torch.tensor([cell.pair for cell in self.cells], device=device)
        reads = torch.tensor(extents.reads, device=device)[pairs]
        out = self.base.stream[-1][pairs[:, None], reads]
        for column in range(reads.shape[1]):
            there = tokens.positions == reads[tokens.rows, column]
            out[tokens.rows[there], column] = hidden[there]
        return out

    def to_receivers(self, receivers: Sequence[Site]) -> Run:
        """Return what the receivers would read, as a run of one row a sender."""
        kinds: dict[int, set[str]] = defaultdict(set)
        for site in receivers:
            kinds[site.layer or 0].add(site.kind)
        out = Run([])
        for layer, seen in self._run(max(kinds) + 1, kinds)[1].items():
            active = self._active(layer)
            for kind, values in seen.items():
                store = self.base.seen[kind][layer][[cell.pair for cell in self.cells]]
                store[self._tokens.rows[:active], self._tokens.positions[:active]] = values
                out.seen[kind][layer] = store
        return out

    def _run(
        self, layers: int, kinds: Mapping[int, Collection[str]]
    ) -> tuple[Float[Tensor, "token d_model"], dict[int, dict[str, Tensor]]]:
        """Run the first blocks: the tokens' stream behind them, and what they held at some kinds of some layers."""
        hidden = self.base.stream[0].new_zeros(0, self.base.stream[0].shape[-1])
        seen: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for layer in range(layers):
            hidden = self._entered(layer, hidden)
            if not len(hidden):
                continue
            points, job = self.bench.anatomy.points, self.bench.job
            readers = [(points[kind], flat_visit(partial(_keep, seen[layer], kind))) for kind in kinds.get(layer, ())]
            visits, past = [*self._writes(layer), *readers], past_of(self.base, layer)
            job.skip = self.alone
            try:
                hidden = self.bench.call(layer, hidden, self._segments(layer), past=past, visits=visits, job=job)
            finally:
                job.skip = False
        return self._entered(layers, hidden), seen

    def _entered(self, layer: int, hidden: Tensor) -> Float[Tensor, "token d_model"]:
        """Add the tokens that enter a block; a sender of the stream itself is written here."""
        tokens, new = self._tokens, slice(len(hidden), self._active(layer))
        where = tokens.pairs[new], tokens.positions[new]
        entering = self.base.stream[layer][where]
        stream = tokens.sends[new] & torch.isin(tokens.rows[new], self._rows_of(STREAM))
        if bool(stream.any()):
            entering[stream] = self.source.stream[layer][where[0][stream], where[1][stream]]
        return torch.cat([hidden.to(entering.device), entering])

    def _writes(self, layer: int) -> list[tuple[Point, Visit]]:
        """Return the hooks that hold heads (and MLPs) at the base run and write the senders of this block."""
        tokens, active, points = self._tokens, self._active(layer), self.bench.anatomy.points
        here = tokens.sends[:active] & (tokens.entry[:active] == layer)
        where = tokens.pairs[:active], tokens.positions[:active]
        visits = []
        for kind in self.held:
            own = here & torch.isin(tokens.rows[:active], self._rows_of(PART_OF[kind]))
            held = (~own).nonzero().flatten()
            values = self.base.seen[kind][layer][where[0][held], where[1][held]]
            visits.append((points[kind], flat_visit(partial(_write, held[:, None], slice(None), values))))
        for kind in sorted({cell.parts[0].kind for cell in self.cells} - set(STREAM)):
            own = (here & torch.isin(tokens.rows[:active], self._rows_of((kind,)))).nonzero().flatten()
            visits.extend(self._sender(layer, kind, own))
        return visits

    def _sender(self, layer: int, kind: str, own: Int[Tensor, " sender"]) -> list[tuple[Point, Visit]]:
        """Return the hook that writes what senders of a kind send; of a head, the base run's other heads beside it."""
        if not len(own):
            return []
        tokens, point = self._tokens, self.bench.anatomy.points[kind]
        where = tokens.pairs[own], tokens.positions[own]
        values = (self.base if kind in self.held else self.source).seen[kind][layer][where].clone()
        units = [self.cells[row].parts[0].unit for row in tokens.rows[own].tolist()]
        for index, unit in enumerate(units):
            columns = point.columns(unit)
            values[index, columns] = self.source.seen[kind][layer][where[0][index], where[1][index], columns]
        if all(unit is None for unit in units):
            return [(point, flat_visit(partial(_write, own[:, None], slice(None), values)))]
        columns = [torch.arange(values.shape[1], device=values.device)[point.columns(unit)] for unit in units]
        chosen = torch.stack(columns)
        if kind in self.held:
            return [(point, flat_visit(partial(_write, own[:, None], slice(None), values)))]
        return [(point, flat_visit(partial(_write, own[:, None], chosen, values.gather(1, chosen))))]

    @cached_property
    def _device(self) -> torch.device:
        """Where indices are: with the streams; if those are apart, on the processor, where any device finds them."""
        devices = {stream.device for stream in self.base.stream}
        return devices.pop() if len(devices) == 1 else torch.device("cpu")

    @cached_property
    def _pieces(self) -> list[tuple[int, int, int, list[int]]]:
        """Group tokens as (entry, start, span, rows): one token a changed position, or whole rows from the first on."""
        groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for row, cell in enumerate(self.cells):
            length = self.bench.prompts.lengths[cell.pair]
            if self.alone:
                for position in cell.parts[0].positions:
                    groups[cell.layer, position, 1].append(row)
            else:
                start = cell.start if self.bench.anatomy.packed else 0
                groups[cell.layer, start, length - start].append(row)
        return [(*key, rows) for key, rows in sorted(groups.items())]

    @cached_property
    def _tokens(self) -> Tokens:
        found = [
            (row, self.cells[row].pair, position, entry, position in self.cells[row].parts[0].positions)
            for entry, start, span, rows in self._pieces
            for row in rows
            for position in range(start, start + span)
        ]
        rows, pairs, positions, entry, sends = torch.tensor(found, device=self._device).unbind(1)
        return Tokens(rows, pairs, positions, entry, sends.bool())

    def _rows_of(self, kinds: Collection[str]) -> Int[Tensor, " row"]:
        found = [row for row, cell in enumerate(self.cells) if cell.parts[0].kind in kinds]
        return torch.tensor(found, dtype=torch.long, device=self._device)

    def _active(self, layer: int) -> int:
        """Return the number of tokens that have entered up to a block; they stand in front."""
        return int((self._tokens.entry <= layer).sum())

    def _segments(self, layer: int) -> list[Segment]:
        return [
            Segment(start, span, torch.tensor([self.cells[row].pair for row in rows], device=self._device))
            for entry, start, span, rows in self._pieces
            if entry <= layer
        ]


def _keep(into: dict[str, Tensor], kind: str, flat: Float[Tensor, "token width"]) -> None:
    into[kind] = flat.clone()


def _write(rows: Tensor, columns: Tensor | slice, values: Tensor, flat: Float[Tensor, "token width"]) -> Tensor:
    flat = flat.clone()
    where = (rows[:, 0], columns) if isinstance(columns, slice) else (rows, columns)
    flat[where] = values.to(flat)
    return flat
