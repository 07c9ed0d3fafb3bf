"""Short rows attend together: those of one pair share the keys and values before them, taken once for all.

A bundle lays rows of one pair side by side, whatever their starts, as one long row: behind the shared keys stand those
of all its rows, and the model's own mask shows each row what it would see alone. So the model's own kernel is called
as ever, once for all shapes, and a prefix is copied once a bundle and not once a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

# Tokens from which a bundle begins another: the least, and the share of the longest prefix. Each token meets the keys
# of the whole bundle, in vain but for its row's own; that must stay small beside the prefix, or small in itself.
LEAST, SHARE = 32, 4


@runtime_checkable
class Rows(Protocol):
    """Rows of one shape; `owners` names the pair of each."""

    @property
    def start(self) -> int:
        """First position of each row."""
        ...

    @property
    def span(self) -> int:
        """Tokens of each row."""
        ...

    @property
    def owners(self) -> Sequence[int]:
        """The pair of each row."""
        ...


def width_for(longest: int) -> int:
    """Return how many tokens fill a bundle, where the longest prefix is so long; longer rows attend alone."""
    return max(LEAST, longest // SHARE)


@dataclass(frozen=True)
class Bundles:
    """Which packed token stands where in which bundle; places beyond a bundle's rows belong to row −1 and are dropped.

    `places[t]` is where packed token t stands among the places of all bundles.
    """

    pairs: Int[Tensor, " bundle"]
    tokens: Int[Tensor, "bundle place"]
    rows: Int[Tensor, "bundle place"]
    starts: Int[Tensor, "bundle place"]
    positions: Int[Tensor, "bundle place"]
    places: Int[Tensor, " token"]
    prefix: int

    @classmethod
    def of(cls, shapes: Sequence[Rows], device: torch.device) -> "Bundles":
        """Bundle packed rows by the pair that owns them, in order."""
        counts = torch.tensor([len(s.owners) for s in shapes])
        starts, spans = (torch.tensor(each) for each in zip(*((s.start, s.span) for s in shapes), strict=True))
        owners = torch.tensor([pair for s in shapes for pair in s.owners])
        starts, spans = starts.repeat_interleave(counts), spans.repeat_interleave(counts)
        prefix = int(starts.max())
        firsts = spans.cumsum(0) - spans
        order = owners.argsort(stable=True)
        owners, starts, spans, firsts = owners[order], starts[order], spans[order], firsts[order]
        before = spans.cumsum(0) - spans
        inside = before - _of_first(before, owners)
        full = inside // width_for(prefix)
        key = owners * (int(full.max()) + 1) + full
        offset = before - _of_first(before, key)
        bundle = key.unique_consecutive(return_inverse=True)[1]
        size, width = int(bundle[-1]) + 1, int((offset + spans).max())
        row = torch.arange(len(spans)).repeat_interleave(spans)
        within = torch.arange(len(row)) - before[row]
        place = bundle[row] * width + offset[row] + within
        token = firsts[row] + within
        table = torch.tensor([0, -1, 0, 0]).repeat(size * width, 1)
        table[place] = torch.stack([token, row, starts[row], starts[row] + within], dim=1)
        places = torch.empty_like(token).index_copy_(0, token, place)
        pairs = torch.empty(size, dtype=torch.long).index_copy_(0, bundle, owners)
        tokens, rows, begins, positions = table.view(size, width, 4).to(device).unbind(-1)
        return cls(pairs.to(device), tokens, rows, begins, positions, places.to(device), prefix)

    def laid_out(self, packed: Shaped[Tensor, "head token d_head"]) -> Shaped[Tensor, "bundle head place d_head"]:
        """Return the packed tokens' queries, keys or values by bundle."""
        # Models hold a token's heads side by side, so that this copies whole tokens.
        return packed.transpose(0, 1)[self.tokens].transpose(1, 2)

    def behind(
        self, past: Shaped[Tensor, "pair kv pos d_head"], own: Shaped[Tensor, "kv token d_head"]
    ) -> Shaped[Tensor, "bundle kv key d_head"]:
        """Put the rows' keys or values behind the ones that they share."""
        return torch.cat([past[:, :, : self.prefix][self.pairs], self.laid_out(own)], dim=2)

    def mask(self, mask: Shaped[Tensor, "1 1 pos pos"]) -> Shaped[Tensor, "bundle 1 place key"]:
        """Return the model's mask for the bundles: a row sees the keys before its start, and its own."""
        whole, queries = mask[0, 0], self.positions
        never = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        before = torch.arange(self.prefix, device=mask.device) < self.starts[..., None]
        shared = torch.where(before, whole[:, : self.prefix][queries], never)
        same = self.rows[:, :, None] == self.rows[:, None]
        own = torch.where(same, whole[queries[:, :, None], queries[:, None]], never)
        return torch.cat([shared, own], dim=-1)[:, None]

    def apart(self, result: Shaped[Tensor, "bundle place head d_head"]) -> Shaped[Tensor, "token head d_head"]:
        """Return what attention gave, token by token."""
        return result.flatten(0, 1)[self.places]


def _of_first(values: Int[Tensor, " row"], groups: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Return each row's value at the first row of its run of equal groups."""
    _, number, counts = groups.unique_consecutive(return_inverse=True, return_counts=True)
    return values[counts.cumsum(0) - counts][number]
