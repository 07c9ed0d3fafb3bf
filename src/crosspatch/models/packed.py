"""Run a block on tokens of many rows at once, flat, with no padding: each row may start at another position.

Linear maps, norms and MLPs see one long sequence `[1, token, d_model]`; only attention knows where rows begin and end.
A model that cannot be run so (its attention is its own code) gets whole rows, padded on the right, and its own masks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosspatch.models.anatomy import Anatomy, Point
from crosspatch.models.attention import Job, Segment
from crosspatch.models.blocks import Handed, record_blocks
from crosspatch.models.hooks import Visit, first_tensor, visiting
from crosspatch.models.weights import device_of


@dataclass(frozen=True)
class Past:
    """Keys and values of one layer in the run whose prefixes are shared."""

    keys: Float[Tensor, "pair kv pos d_head"]
    values: Float[Tensor, "pair kv pos d_head"]


@runtime_checkable
class BlockCaller(Protocol):
    """Runs one block on packed rows."""

    def __call__(
        self,
        layer: int,
        hidden: Float[Tensor, "token d_model"],
        segments: Sequence[Segment],
        *,
        past: Past | None,
        visits: Sequence[tuple[Point, Visit]],
        job: Job,
    ) -> Float[Tensor, "token d_model"]:
        """Return the block's output for every token, in the same order."""
        ...


def positions_of(segments: Sequence[Segment], device: torch.device | str = "cpu") -> Int[Tensor, " token"]:
    """Return the position of every packed token."""
    parts = [torch.arange(s.start, s.start + s.span, device=device).repeat(s.rows) for s in segments]
    return torch.cat(parts)


@dataclass(frozen=True)
class Packed:
    """Calls blocks on flat tokens. `handed` was recorded for positions 0 … length − 1, `other` for another length."""

    module: nn.Module
    anatomy: Anatomy
    handed: Sequence[Handed]
    other: Sequence[Handed]
    blocks: Sequence[nn.Module]

    def __call__(
        self,
        layer: int,
        hidden: Float[Tensor, "token d_model"],
        segments: Sequence[Segment],
        *,
        past: Past | None,
        visits: Sequence[tuple[Point, Visit]],
        job: Job,
    ) -> Float[Tensor, "token d_model"]:
        """Run block `layer`; attention of each segment sees `past` before its start."""
        at = device_of(self.blocks[layer]) or hidden.device
        hidden = hidden.to(at)
        positions = positions_of(segments, at)
        chosen = _Chosen(positions)
        here, other = self.handed[layer], self.other[layer]
        args = chosen.of(here.args, other.args)
        kwargs = chosen.of(here.kwargs, other.kwargs)
        job.segments = [s if s.pairs.device == at else replace(s, pairs=s.pairs.to(at)) for s in segments]
        job.keys, job.values = (past.keys, past.values) if past else (None, None)
        block, job.calls = self.blocks[layer], 0
        with visiting([(block, point, visit) for point, visit in visits]):
            out = first_tensor(block(hidden[None], *args, **kwargs))[0]
        if job.calls != 1:
            # Shared prefixes are one set of keys and values a block.
            raise RuntimeError(f"a block that attends {job.calls} times cannot be run on packed tokens")
        return out


@dataclass
class _Chosen:
    """Picks the packed tokens' positions out of what a block is handed.

    A tensor's position axis is the one whose size changes with the prompt's; a tensor with two such axes is a mask,
    which attention slices itself.
    """

    positions: Int[Tensor, " token"]

    def of(self, value: Any, other: Any) -> Any:
        if isinstance(value, Tensor):
            changing = [axis for axis, (a, b) in enumerate(zip(value.shape, other.shape, strict=True)) if a != b]
            return value.index_select(changing[0], self.positions.to(value.device)) if len(changing) == 1 else value
        if isinstance(value, (tuple, list)):
            return type(value)(self.of(a, b) for a, b in zip(value, other, strict=True))
        if isinstance(value, dict):
            return {key: self.of(item, other[key]) for key, item in value.items()}
        return value


@dataclass(frozen=True)
class Padded:
    """Calls blocks on whole rows, padded on the right, with the masks of the model's own forward."""

    module: nn.Module
    anatomy: Anatomy
    ids: Int[Tensor, "pair pos"]
    lengths: Int[Tensor, " pair"]
    blocks: Sequence[nn.Module]

    def __call__(
        self,
        layer: int,
        hidden: Float[Tensor, "token d_model"],
        segments: Sequence[Segment],
        *,
        past: Past | None,
        visits: Sequence[tuple[Point, Visit]],
        job: Job,
    ) -> Float[Tensor, "token d_model"]:
        """Run block `layer` on rows that all start at 0."""
        del past, job
        pairs = torch.cat([segment.pairs for segment in segments])
        lengths = self.lengths[pairs]
        width = int(lengths.max())
        real = torch.arange(width, device=hidden.device)[None] < lengths[:, None]
        rows = hidden.new_zeros(*real.shape, hidden.shape[-1])
        rows[real] = hidden
        handed = record_blocks(self.module, self.anatomy, self.ids[pairs, :width], real.long())[1][layer]
        flat = real.flatten()
        with visiting([(self.blocks[layer], point, _on_real(visit, flat)) for point, visit in visits]):
            return first_tensor(self.blocks[layer](rows, *handed.args, **handed.kwargs))[real]


def _on_real(visit: Visit, real: Tensor) -> Visit:
    """Show a visit the real tokens of a padded batch only, flat as packed tokens are."""

    return partial(_visit_real, visit, real)


def _visit_real(visit: Visit, real: Tensor, tensor: Tensor) -> Tensor | None:
    flat = tensor.reshape(-1, tensor.shape[-1])
    changed = visit(flat[real])
    if changed is None:
        return None
    out = flat.clone()
    out[real] = changed.reshape(-1, tensor.shape[-1])
    return out.reshape(tensor.shape)


def flat_visit(read_or_write: Callable[[Float[Tensor, "token width"]], Float[Tensor, "token width"] | None]) -> Visit:
    """Let a function on flat tokens `[token, width]` visit a point whatever leading axes its tensor has."""

    return partial(_visit_flat, read_or_write)


def _visit_flat(read_or_write: Callable[[Tensor], Tensor | None], tensor: Tensor) -> Tensor | None:
    changed = read_or_write(tensor.reshape(-1, tensor.shape[-1]))
    return None if changed is None else changed.reshape(tensor.shape)
