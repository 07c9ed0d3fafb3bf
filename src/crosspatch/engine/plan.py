"""Plan a sweep before it runs: which patches need a row, how rows are packed, what it costs in work and memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from crosspatch.core.errors import BadInput
from crosspatch.draw import Display, Displayed
from crosspatch.engine.cells import Cell, Extents
from crosspatch.models.anatomy import Anatomy
from crosspatch.models.model import Model
from crosspatch.models.weights import count

GIB = 1 << 30
# Beyond this many tokens a matrix product on a processor gains nothing, and memory is only spent.
TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 1 << 18}


@dataclass(frozen=True, repr=False)
class Plan(Displayed):
    """What a sweep will do.

    `patches` is sites × pairs; of these `zero` are known to have exactly no effect, `absent` have no such position in
    their prompt, and `rows` are run. Work is counted in token-blocks: one token through one block.
    """

    patches: int
    zero: int
    absent: int
    rows: int
    token_blocks: int
    naive_token_blocks: int
    forward_token_blocks: float
    flops: int
    packs: int
    chunks: int
    peak_bytes: int

    @property
    def forwards(self) -> float:
        """The work in plain forwards of one prompt of average length (blocks only)."""
        return self.token_blocks / self.forward_token_blocks if self.forward_token_blocks else 0.0

    @property
    def forwards_saved(self) -> float:
        """Plain forwards that one forward a patch would have cost beyond this plan."""
        return self.naive_token_blocks / self.forward_token_blocks - self.forwards if self.forward_token_blocks else 0.0

    def display(self) -> Display:
        """Say what is run, what it costs and what it saves."""
        rows = [
            ("patches (sites × pairs)", f"{self.patches:,}"),
            ("run", f"{self.rows:,}"),
            ("exactly zero", f"{self.zero:,}"),
            ("absent", f"{self.absent:,}"),
            ("work in forwards", f"{self.forwards:,.1f}"),
            ("forwards saved", f"{self.forwards_saved:,.0f}"),
            ("packs", f"{self.packs:,}"),
            ("memory besides the weights", f"{self.peak_bytes / GIB:.2f} GiB"),
        ]
        return Display("Plan of a sweep", ("what", "how much"), rows)

    def __str__(self) -> str:
        return (
            f"{self.patches:,} patches: {self.rows:,} run, {self.zero:,} exactly zero, {self.absent:,} absent; "
            f"work of {self.forwards:,.1f} forwards, {self.forwards_saved:,.0f} saved; "
            f"{self.packs:,} packs, about {self.peak_bytes / GIB:.2f} GiB besides the weights"
        )


def runs_work(extents: Extents, anatomy: Anatomy) -> int:
    """Return the token-blocks of a chunk's base runs and source runs, which share prefixes where they can."""
    if not anatomy.packed:
        return 2 * len(extents.lengths) * max(extents.lengths) * anatomy.layers
    shared = sum(extents.differ) if anatomy.causal else 0
    return (2 * sum(extents.lengths) - shared) * anatomy.layers


def pack_work(pack: Sequence[Cell], extents: Extents, anatomy: Anatomy) -> int:
    """Return the token-blocks of a pack; where rows are padded, all are as long as the longest in their block."""
    if anatomy.packed:
        return sum(row_work(cell, extents, anatomy) for cell in pack)
    widths = [[extents.lengths[cell.pair] for cell in pack if cell.layer <= i] for i in range(anatomy.layers)]
    return sum(len(row) * max(row, default=0) for row in widths)


def row_work(cell: Cell, extents: Extents, anatomy: Anatomy) -> int:
    """Return the token-blocks of a packed row: its own block, then all blocks above, from its start to the end."""
    tokens = extents.lengths[cell.pair] - cell.start
    above = anatomy.layers - cell.layer
    if cell.reach == "local":
        return cell.end - cell.start + (above - 1) * tokens
    return above * tokens


def width_of(cell: Cell, extents: Extents, anatomy: Anatomy) -> int:
    """Return the tokens that a row occupies in a pack."""
    return extents.lengths[cell.pair] - (cell.start if anatomy.packed else 0)


def block_weights(model: Model) -> int:
    """Return the number of matrix weights of one block: multiply-adds a token (a mixture of experts uses fewer)."""
    blocks = model.module.get_submodule(model.anatomy.blocks)
    return sum(count(p) for p in blocks.parameters() if p.ndim > 1) // model.anatomy.layers


def bytes_per_token(model: Model) -> int:
    """Return the working memory of one packed token: the block's widest activations, and copies of shared keys."""
    anatomy = model.anatomy
    item = next(model.module.parameters()).element_size()
    attention = 3 * anatomy.heads * anatomy.d_head + 4 * anatomy.kv_heads * anatomy.d_head
    return item * (8 * anatomy.d_model + 4 * (anatomy.d_mlp or 4 * anatomy.d_model) + attention)


def bytes_per_prompt_token(model: Model, kinds: Sequence[str], length: int) -> int:
    """Return the memory that a base and a source run keep for one token of one prompt."""
    anatomy = model.anatomy
    item = next(model.module.parameters()).element_size()
    streams = 2 * (anatomy.layers + 1) * anatomy.d_model
    keys = 2 * anatomy.layers * anatomy.kv_heads * anatomy.d_head
    seen = sum(kept_width(kind, anatomy, length) for kind in kinds) * anatomy.layers
    return item * (streams + keys + seen)


def kept_width(kind: str, anatomy: Anatomy, length: int) -> int:
    """Return the width of what a source run keeps of one kind at one token."""
    if kind == "attn.pattern":
        return anatomy.heads * length
    point = anatomy.points.get(kind)
    return len(point.starts) * point.width if point and point.starts else anatomy.d_model


def memory_budget(asked: int | None, device: torch.device) -> int:
    """Return the bytes that a sweep may use besides the weights.

    Raises:
        BadInput: the budget is not positive.
    """
    if asked is not None:
        if asked <= 0:
            raise BadInput(
                f"memory budget {asked} bytes: give a positive number of bytes, or None to let crosspatch choose."
            )
        return asked
    if device.type == "cuda":
        return int(0.6 * torch.cuda.mem_get_info(device)[0])
    return 2 * GIB


def chunk_pairs(lengths: Sequence[int], per_pair: int, budget: int, *, by_length: bool = False) -> list[list[int]]:
    """Split pairs into chunks whose two runs fit into half of the budget; a chunk has one pair at least.

    With `by_length` the prompts of a chunk have one length.
    """
    size = max(1, (budget // 2) // max(per_pair, 1))
    every = range(len(lengths))
    groups = [[i for i in every if lengths[i] == n] for n in sorted(set(lengths))] if by_length else [list(every)]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def packs_of(cells: Sequence[Cell], extents: Extents, anatomy: Anatomy, tokens: int) -> Iterator[list[Cell]]:
    """Cut the cells into packs of at most `tokens` tokens (one row at least), later layers first.

    Rows of one layer stay together, so that a pack is wide from its first block on.
    """
    pack: list[Cell] = []
    width = 0
    for cell in sorted(cells, key=lambda c: (-c.layer, c.start, c.pair)):
        more = width_of(cell, extents, anatomy)
        if pack and width + more > tokens:
            yield pack
            pack, width = [], 0
        pack.append(cell)
        width += more
    if pack:
        yield pack
