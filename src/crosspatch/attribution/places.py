"""Where the sites of an estimate lie among the packed tokens, and how a table of all nodes is read off there."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.engine.cells import Cell
from crosspatch.engine.writing import CARRIER
from crosspatch.models.anatomy import Anatomy
from crosspatch.models.runs import Running

STREAMS = ("embed", "resid.pre", "resid.post")
STREAM = "stream"  # all of them: what enters a block, or leaves the last one
Table = Float[Tensor, "drop token unit"]


class Key(NamedTuple):
    """One table: a kind in one layer. `joint`: cells that write several keys of a head at once."""

    kind: str
    layer: int
    joint: bool = False


@dataclass(frozen=True)
class Spots:
    """Entries of one table that cells read: cell, token (of a joint table: pair) and unit (−1 for all) of each."""

    cells: Int[Tensor, " entry"]
    tokens: Int[Tensor, " entry"]
    units: Int[Tensor, " entry"]

    def read(self, table: Table) -> tuple[Int[Tensor, " cell"], Float[Tensor, "drop cell"]]:
        """Return the cells of this table and their values; entries of one cell are added up."""
        full = torch.cat([table, table.sum(-1, keepdim=True)], dim=-1)
        entries = full[:, self.tokens.to(table.device), self.units.to(table.device)]
        cells, place = self.cells.unique(return_inverse=True)
        out = entries.new_zeros(len(table), len(cells))
        return cells, out.index_add_(1, place.to(out.device), entries)


def token_index(lane: Running) -> Int[Tensor, "pair pos"]:
    """Return where each position of each pair is among a lane's packed tokens; −1 for those that are not run."""
    index = torch.full(lane.run.stream[0].shape[:2], -1, dtype=torch.long, device=lane.pairs.device)
    index[lane.pairs, lane.positions] = torch.arange(lane.tokens, device=lane.pairs.device)
    return index


def kind_of(kind: str) -> str:
    """Return the kind under which a table is kept."""
    return STREAM if kind in STREAMS else kind


def places_of(cells: Sequence[Cell], lane: Running, *, joint_keys: bool) -> Mapping[Key, Spots]:
    """Locate each cell's one site; keys of several positions stand apart if they act jointly."""
    where = token_index(lane).tolist()
    found: dict[Key, list[tuple[int, int, int]]] = defaultdict(list)
    for number, cell in enumerate(cells):
        (part,) = cell.parts
        unit = -1 if part.unit is None else part.unit
        joint = joint_keys and part.kind == "attn.k" and len(part.positions) > 1
        key = Key(kind_of(part.kind), part.layer, joint)
        tokens = [cell.pair] if joint else [where[cell.pair][position] for position in part.positions]
        found[key] += [(number, token, unit) for token in tokens]
    return {key: Spots(*torch.tensor(rows, dtype=torch.long).unbind(1)) for key, rows in found.items()}


def by_unit(anatomy: Anatomy, kind: str, product: Float[Tensor, "drop token width"]) -> Table:
    """Add products up over each unit's columns; over the whole width for a kind without units."""
    point = None if kind == STREAM or kind in CARRIER else anatomy.points[kind]
    if point is None or not point.starts:
        return product.sum(-1, keepdim=True)
    return product[..., point.columns(None)].unflatten(-1, (len(point.starts), point.width)).sum(-1)
