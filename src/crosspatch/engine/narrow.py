"""The last block computes only what is read: its attention output map and its MLP run on the tokens that are scored.

Nothing comes after the last block but the readout, and a token's MLP reads its own stream alone. So the tokens that no
metric reads are taken out before these modules and put back, as zeros that nobody reads, behind them. Their keys and
values are computed as ever, since the tokens that are read attend to them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.engine.cells import Cell, Extents
from crosspatch.engine.writing import Stretch
from crosspatch.models.anatomy import Anatomy, Point
from crosspatch.models.hooks import Visit

KINDS = ("attn.head", "mlp.in")  # what enters the attention's output map, and the MLP


def narrowed(
    anatomy: Anatomy, visits: Sequence[tuple[Point, Visit]], read: Int[Tensor, " read"], tokens: int
) -> list[tuple[Point, Visit]]:
    """Return hooks that let the two modules of a block see the tokens `read` alone, of so many packed ones.

    A module that some other visit looks at, or into, sees all of them.
    """
    found: list[tuple[Point, Visit]] = []
    if not 0 < len(read) < tokens:
        return found
    seen = [point.path for point, _ in visits]
    for kind in KINDS:
        point = anatomy.points.get(kind)
        if point is None or point.side != "input" or kind in anatomy.refused:
            continue
        if not any(path == point.path or path.startswith(f"{point.path}.") for path in seen):
            found.append((Point(point.path, "input"), _Take(read)))
            found.append((Point(point.path, "output"), _PutBack(read, tokens)))
    return found


def read_tokens(
    stretches: Sequence[Stretch], cells: Sequence[Cell], extents: Extents, device: torch.device
) -> Int[Tensor, " read"]:
    """Return the packed tokens at positions that the metric reads."""
    found = [
        stretch.token(row, position)
        for stretch in stretches
        for row, i in enumerate(stretch.cells)
        for position in dict.fromkeys(extents.reads[cells[i].pair])
        if stretch.start <= position < stretch.start + stretch.span
    ]
    return torch.tensor(found, dtype=torch.long, device=device)


class _Take:
    """Leaves some tokens of `[…, token, width]`."""

    def __init__(self, read: Int[Tensor, " read"]) -> None:
        self.read = read

    def __call__(self, tensor: Float[Tensor, "*axes token width"]) -> Float[Tensor, "*axes read width"]:
        return tensor.index_select(-2, self.read)


class _PutBack:
    """Puts those tokens back where they were, zeros elsewhere."""

    def __init__(self, read: Int[Tensor, " read"], tokens: int) -> None:
        self.read, self.tokens = read, tokens

    def __call__(self, tensor: Float[Tensor, "*axes read width"]) -> Float[Tensor, "*axes token width"]:
        out = tensor.new_zeros(*tensor.shape[:-2], self.tokens, tensor.shape[-1])
        return out.index_copy_(-2, self.read, tensor)
