"""Run one part of a block alone: the norm before attention, attention on given queries, keys and values, or the MLP.

The block itself is called, and ended once its part has been seen; modules whose result is given are not run. So norms,
rotary embeddings, masks and kernels are the model's own, and no family needs code of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosspatch.models.anatomy import Point
from crosspatch.models.attention import Segment
from crosspatch.models.blocks import block_list, stand_ins
from crosspatch.models.hooks import Visit, with_first_tensor
from crosspatch.models.packed import Past, flat_visit
from crosspatch.models.runs import Bench

PROJECTED = ("attn.q", "attn.k", "attn.v")


class _Enough(Exception):
    """Ends a block's forward: its part has been seen."""


@dataclass(frozen=True)
class Inside:
    """Calls parts of the blocks of a model that is set up on a bench.

    `past` gives each layer's shared prefix, `widths` the columns of the module that each kind of projection leaves.
    """

    bench: Bench
    past: Sequence[Past | None]
    widths: Mapping[str, int]
    _templates: dict[type, Any] = field(default_factory=dict)

    def normed(
        self, layer: int, hidden: Float[Tensor, "token d_model"], segments: Sequence[Segment]
    ) -> Float[Tensor, "token d_model"]:
        """Return what attention reads when the block is given `hidden`."""
        return self._until("attn.in", layer, hidden, segments)

    def projected(
        self, layer: int, hidden: Float[Tensor, "token d_model"], segments: Sequence[Segment]
    ) -> dict[str, Float[Tensor, "token width"]]:
        """Return queries, keys and values, all units together, when the block is given `hidden`."""
        seen: dict[str, Tensor] = {}
        points = self.bench.anatomy.points
        visits = [(points[kind], flat_visit(partial(_keep, seen, kind))) for kind in PROJECTED]
        self._until("attn.head", layer, hidden, segments, visits=visits)
        return seen

    def attended(
        self,
        layer: int,
        hidden: Float[Tensor, "token d_model"],
        given: Mapping[str, Float[Tensor, "token unit d_head"]],
        segments: Sequence[Segment],
    ) -> Float[Tensor, "token width"]:
        """Return what the heads give, on the queries, keys and values that are given, as their projections leave them.

        `hidden` is any finite stream; what the block makes of it is not used.
        """
        anatomy, by_path = self.bench.anatomy, dict[str, list[str]]()
        for kind in given:
            by_path.setdefault(anatomy.points[kind].path, []).append(kind)
        values = [self._laid_out({kind: given[kind] for kind in kinds}) for kinds in by_path.values()]
        if anatomy.packed:
            block = block_list(self.bench.model.module, anatomy)[layer]
            with stand_ins([block.get_submodule(path) for path in by_path], lambda i, *_, **__: values[i][None]):
                return self._until("attn.head", layer, hidden, segments)
        points = [anatomy.points[kinds[0]] for kinds in by_path.values()]
        visits = [(point, flat_visit(partial(_instead, value))) for point, value in zip(points, values, strict=True)]
        return self._until("attn.head", layer, hidden, segments, visits=visits)

    def _laid_out(self, kinds: Mapping[str, Tensor]) -> Float[Tensor, "token width"]:
        """Put the kinds that leave one module into its columns."""
        first = next(iter(kinds))
        width = self.widths[first]
        flat = {kind: value.flatten(1) for kind, value in kinds.items()}
        if len(kinds) == 1 and flat[first].shape[1] == width:
            return flat[first]
        out = flat[first].new_zeros(len(flat[first]), width)
        every = torch.arange(width, device=out.device)
        for kind, value in flat.items():
            out = out.index_copy(1, every[self.bench.anatomy.points[kind].columns(None)], value)
        return out

    def mlp(
        self, layer: int, hidden: Float[Tensor, "token d_model"], segments: Sequence[Segment], *, until: str = "mlp.out"
    ) -> Float[Tensor, "token d_model"]:
        """Return what the MLP adds to the stream when it (its norm) reads `hidden`; attention adds nothing.

        `until="mlp.in"` returns what its norm makes of `hidden`.
        """
        point = self.bench.anatomy.points["attn.out"]
        silent = [(point, torch.zeros_like)] if self.bench.anatomy.sequential else []
        with self._muted(layer):
            return self._until(until, layer, hidden, segments, visits=silent)

    @contextmanager
    def _muted(self, layer: int) -> Iterator[None]:
        """Leave a block's attention out while the block lasts: zeros stand in its place."""
        block = block_list(self.bench.model.module, self.bench.anatomy)[layer]
        attention = block.get_submodule(self.bench.anatomy.attention)
        kind = type(attention)
        if kind not in self._templates or not self.bench.anatomy.packed:
            with _remembering(attention, partial(self._templates.__setitem__, kind)):
                yield
            return
        template = self._templates[kind]

        def zeros(_: int, *args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return with_first_tensor(template, torch.zeros_like(hidden))

        with stand_ins([attention], zeros):
            yield

    def _until(
        self,
        kind: str,
        layer: int,
        hidden: Tensor,
        segments: Sequence[Segment],
        *,
        visits: Sequence[tuple[Point, Visit]] = (),
    ) -> Tensor:
        """Call a block up to the point of a kind, and return what passes there."""
        seen: dict[str, Tensor] = {}
        ending = (self.bench.anatomy.points[kind], flat_visit(partial(_end, seen, kind)))
        with suppress(_Enough):
            self.bench.call(
                layer, hidden, segments, past=self.past[layer], visits=[*visits, ending], job=self.bench.job
            )
        return seen[kind]


@contextmanager
def _remembering(attention: nn.Module, keep: Any) -> Iterator[None]:
    """Keep the shape of what an attention module returns, without its tensors."""

    def after(_: nn.Module, __: Any, output: Any) -> None:
        keep(_emptied(output))

    handle = attention.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def _emptied(output: Any) -> Any:
    return type(output)([None] * len(output)) if isinstance(output, (tuple, list)) else None


def _keep(seen: dict[str, Tensor], kind: str, value: Tensor) -> None:
    seen[kind] = value


def _end(seen: dict[str, Tensor], kind: str, value: Tensor) -> None:
    seen[kind] = value
    raise _Enough


def _instead(value: Tensor, _: Tensor) -> Tensor:
    return value
