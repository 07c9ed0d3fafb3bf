"""What is written inside one block call: which packed tokens get which values, at which points, and in attention."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.core.errors import BadInput
from crosspatch.engine.cells import Cell, Part
from crosspatch.models.anatomy import Point
from crosspatch.models.attention import Job
from crosspatch.models.hooks import Visit
from crosspatch.models.packed import flat_visit
from crosspatch.models.runs import Bench, Run

# A kind that is written through another kind's point.
CARRIER = {"resid.mid": "attn.out"}
IN_ATTENTION = ("attn.pattern", "attn.edge")  # written by the attention function itself


class Write(NamedTuple):
    """Writes that one hook can do: a kind, one unit of it each or its whole width."""

    kind: str
    whole: bool


@dataclass
class Acting:
    """The cells that write in one block, by index, with what they write; writes of the stream before it apart."""

    inside: dict[int, list[Part]] = field(default_factory=lambda: defaultdict(list))
    stream: dict[int, list[Part]] = field(default_factory=lambda: defaultdict(list))

    def add(self, index: int, part: Part) -> None:
        """Add one write of a cell."""
        (self.stream if part.reach == "stream" else self.inside)[index].append(part)

    def stream_spots(self, cells: Sequence[Cell], stretch: "Stretch", device: torch.device) -> "Spots":
        """Locate the tokens of a stretch of rows whose stream is written."""
        found = [
            (stretch.token(row, position), cells[i].taken, position, 0)
            for row, i in enumerate(stretch.cells)
            for part in self.stream.get(i, ())
            for position in part.positions
        ]
        return Spots.of(found, device)


@dataclass(frozen=True)
class Stretch:
    """Rows of one shape among the packed tokens: tokens `start … start + span - 1` of each, from token `first` on."""

    cells: Sequence[int]
    start: int
    span: int
    first: int

    def token(self, row: int, position: int) -> int:
        """Return the packed token of a row's position."""
        return self.first + row * self.span + position - self.start


@dataclass(frozen=True)
class Spots:
    """Written tokens: index among the packed tokens, row of the source, position, unit (0 for the whole width)."""

    tokens: Int[Tensor, " spot"]
    taken: Int[Tensor, " spot"]
    positions: Int[Tensor, " spot"]
    units: Int[Tensor, " spot"]

    @classmethod
    def of(cls, found: Sequence[tuple[int, int, int, int]], device: torch.device) -> "Spots":
        """Make them of rows (token, row of the source, position, unit)."""
        return cls(*torch.tensor(found, dtype=torch.long, device=device).reshape(-1, 4).unbind(1))


class Reading(NamedTuple):
    """One query of one row whose attention is written: where it is in its stretch, and what is written."""

    row: int
    query: int
    taken: int
    part: Part


@dataclass(frozen=True)
class Writing:
    """The writes of one block call, between the rows' own stream `hidden` and the run that the values come from."""

    bench: Bench
    source: Run
    layer: int
    hidden: Float[Tensor, "token d_model"]
    acting: Acting
    cells: Sequence[Cell]

    def begin(self, stretches: Sequence[Stretch], job: Job) -> list[tuple[Point, Visit]]:
        """Return the hooks of this call, and tell attention what it has to write."""
        spots: dict[Write, list[tuple[int, int, int, int]]] = defaultdict(list)
        readings: dict[int, list[Reading]] = defaultdict(list)
        for number, stretch in enumerate(stretches if self.acting.inside else ()):
            for row, i in enumerate(stretch.cells):
                for part in self.acting.inside.get(i, ()):
                    for at in part.positions:
                        if part.kind in IN_ATTENTION:
                            readings[number].append(Reading(row, at - stretch.start, self.cells[i].taken, part))
                        else:
                            spot = (stretch.token(row, at), self.cells[i].taken, at, part.unit or 0)
                            spots[Write(part.kind, part.unit is None)].append(spot)
        if readings:
            job.edit_mask, job.edit_heads = partial(self._cut, readings), partial(self._weigh, readings)
        device = self.hidden.device
        return [self._visit(write, Spots.of(found, device)) for write, found in sorted(spots.items())]

    def _visit(self, write: Write, spots: Spots) -> tuple[Point, Visit]:
        point = self.bench.anatomy.points[CARRIER.get(write.kind, write.kind)]
        columns = self._columns(point, write, spots)
        values = self._values(write, spots, columns)
        return point, flat_visit(partial(_put, (spots.tokens[:, None], columns), values))

    def _columns(self, point: Point, write: Write, spots: Spots) -> Int[Tensor, "spot_or_1 column"]:
        """Return the columns written at each spot: its unit's, or those of all units, or the whole width."""
        device = self.hidden.device
        if not point.starts:
            return torch.arange(self.bench.anatomy.d_model, device=device)[None]
        starts = torch.tensor(list(point.starts), device=device)
        columns = starts[:, None] + torch.arange(point.width, device=device)
        return columns.flatten()[None] if write.whole else columns[spots.units]

    def _values(self, write: Write, spots: Spots, columns: Tensor) -> Float[Tensor, "spot column"]:
        """Return what the source has at the spots."""
        source, layer = self.source, self.layer
        if write.kind == "resid.mid":
            added = source.seen["attn.out"][layer]
            mid = source.stream[layer].to(added.device) + added
            return mid[spots.taken, spots.positions] - self.hidden[spots.tokens]
        return source.seen[write.kind][layer][spots.taken[:, None], spots.positions[:, None], columns]

    def _cut(
        self, readings: dict[int, list[Reading]], stretch: int, mask: Tensor, shape: tuple[int, int]
    ) -> Float[Tensor, "row head query key"]:
        """Return the mask `[1, 1, query, key]` of a stretch with cut edges set to −∞, for `shape` rows and heads."""
        cut = [reading for reading in readings.get(stretch, ()) if reading.part.kind == "attn.edge"]
        if not cut:
            return mask
        rows, heads = shape
        heads = heads if any(reading.part.unit is not None for reading in cut) else 1
        never = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        mask = mask.expand(rows, heads, *mask.shape[2:]).clone()
        for row, query, _, part in cut:
            head = slice(None) if part.unit is None or heads == 1 else part.unit
            mask[row, head, query, [key for key in part.keys if key < mask.shape[3]]] = never
            if bool((mask[row, head, query] <= never / 2 if never else ~mask[row, head, query]).all(-1).any()):
                raise BadInput(
                    f"cutting the edges from position {part.positions[0]} to {list(part.keys)} in layer {self.layer} "
                    "leaves nothing to attend to. Leave it one key at least, such as the first token."
                )
        return mask

    def _weigh(self, readings: dict[int, list[Reading]], stretch: int, out: Tensor, values: Tensor) -> None:
        """Write what heads give under the source's pattern and the row's own values into `out` [row, query, head, d].

        `values` are `[row, kv, key, d_head]`, the ones before the row's start included.
        """
        chosen = [reading for reading in readings.get(stretch, ()) if reading.part.kind == "attn.pattern"]
        for whole in (True, False):
            found = [(r.row, r.query, r.taken, r.part.unit or 0) for r in chosen if (r.part.unit is None) == whole]
            if not found:
                continue
            rows, queries, taken, units = torch.tensor(found, device=out.device).long().reshape(-1, 4).unbind(1)
            keys, group = values.shape[2], out.shape[2] // values.shape[1]
            positions = queries + keys - out.shape[1]
            pattern = self.source.patterns[self.layer].to(out.dtype)
            if whole:
                own = values[rows].repeat_interleave(group, dim=1)
                out[rows, queries] = torch.einsum("nhk,nhkd->nhd", pattern[taken, :, positions, :keys], own)
            else:
                own = values[rows, units // group]
                out[rows, queries, units] = torch.einsum("nk,nkd->nd", pattern[taken, units, positions, :keys], own)


def _put(
    where: tuple[Tensor, Tensor], values: Float[Tensor, "spot column"], flat: Float[Tensor, "token width"]
) -> Tensor:
    flat = flat.clone()
    flat[where] = values.to(flat.dtype)
    return flat


def needed_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the activations that the source run must keep for a sweep of these kinds."""
    own = {"embed", "resid.pre", "resid.post", "attn.edge"}
    return tuple(sorted({"attn.out" if kind == "resid.mid" else kind for kind in kinds if kind not in own}))
