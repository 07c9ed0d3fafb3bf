"""The linear maps of a layer's attention: from what it reads to each unit, and from each head to the stream."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosspatch.core.errors import NotProved
from crosspatch.models.anatomy import Anatomy
from crosspatch.models.blocks import at_least_single, block_list
from crosspatch.models.inside import PROJECTED
from crosspatch.models.output import Output, fitted_scale, output_of
from crosspatch.models.proof import TOLERANCE, distance
from crosspatch.models.weights import plain


@dataclass(frozen=True)
class Into:
    """A projection's columns for all units of a kind."""

    weight: Float[Tensor, "d_model column"]
    bias: Float[Tensor, " column"] | None

    def columns(self, read: Float[Tensor, "*rows d_model"], start: int, stop: int) -> Float[Tensor, "*rows column"]:
        """Project what attention reads to some columns."""
        out = read @ self.weight[:, start:stop]
        return out if self.bias is None else out + self.bias[start:stop]

    def each(self, read: Float[Tensor, "unit token d_model"]) -> Float[Tensor, "token unit d_head"]:
        """Project each unit's own reading to that unit."""
        out = (read @ self.weight.unflatten(1, (len(read), -1)).permute(1, 0, 2)).transpose(0, 1)
        return out if self.bias is None else out + self.bias.unflatten(0, (len(read), -1))

    def back(self, slopes: Float[Tensor, "token unit d_head"]) -> Float[Tensor, "unit token d_model"]:
        """Pull gradients of each unit's projection back to what attention reads, unit by unit."""
        weight = self.weight.unflatten(1, slopes.shape[1:]).permute(1, 2, 0)
        return slopes.transpose(0, 1) @ weight.to(slopes.dtype)


@dataclass(frozen=True)
class Maps:
    """Maps of one layer, in float32 at least.

    `into` is None where a projection is no plain linear map: then the block itself projects. `output` takes heads to
    the stream, before a norm that may follow.
    """

    into: Mapping[str, Into] | None
    output: Output

    @property
    def coupled(self) -> bool:
        """Whether a norm follows, whose scale hangs on all heads."""
        return self.output.norm is not None

    def scaled(self, z: Float[Tensor, "token width"]) -> Float[Tensor, "token width"]:
        """Return head outputs times each token's scale of the norm behind them, so that what heads add is linear."""
        whole, wide = self.output, at_least_single(z)
        if whole.norm is None or whole.gain is None:
            return wide
        written = wide @ whole.weight.flatten(0, 1)
        return wide * fitted_scale(whole.gain, written, at_least_single(whole.norm(written.to(z.dtype))))

    def added(self, scaled: Float[Tensor, "token width"]) -> Float[Tensor, "token d_model"]:
        """Return what attention adds with these scaled head outputs, its bias included."""
        parts = [self.writes(part, head) for head, part in enumerate(scaled.chunk(len(self.output.weight), -1))]
        return torch.stack(parts).sum(0) + self.output.bias

    def writes(self, z: Float[Tensor, "token d_head"], head: int) -> Float[Tensor, "token d_model"]:
        """Return what a head adds to the stream, from its scaled output."""
        out = z @ self.output.weight[head]
        return out if self.output.gain is None else out * self.output.gain


def matrix(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return a linear module's weight as `[in, out]`, and its bias; None for other modules."""
    module = plain(module)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    # transformers' Conv1D stores [in, out], torch's Linear [out, in].
    weight = weight if type(module).__name__ == "Conv1D" else weight.T
    return weight.detach(), bias.detach() if isinstance(bias, Tensor) else None


def maps_of(module: nn.Module, anatomy: Anatomy, layer: int) -> Maps:
    """Read off a layer's maps; `check_maps` proves them on the layer's own activations."""
    block = block_list(module, anatomy)[layer]
    with torch.no_grad():
        return Maps(_into(block, anatomy), output_of(block, anatomy))


def _into(block: nn.Module, anatomy: Anatomy) -> dict[str, Into] | None:
    found = {}
    for kind in PROJECTED:
        point = anatomy.points[kind]
        got = matrix(block.get_submodule(point.path))
        if got is None or got[0].shape[0] != anatomy.d_model:
            return None
        weight, bias = got
        columns = as_slice(point.columns(None))
        found[kind] = Into(weight[:, columns], None if bias is None else bias[columns])
    return found


def as_slice(columns: slice | list[int]) -> slice | list[int]:
    """Return neighbouring columns as a slice, which copies nothing."""
    if isinstance(columns, slice) or columns != list(range(columns[0], columns[-1] + 1)):
        return columns
    return slice(columns[0], columns[-1] + 1)


def check_maps(
    maps: Maps, dtype: torch.dtype, seen: Mapping[str, Float[Tensor, "token _"]], anatomy: Anatomy, layer: int
) -> Maps:
    """Compare a layer's maps with a run's own activations; projections that are not as they seem are left to the block.

    Raises:
        NotProved: what the heads add does not sum to what attention adds.
    """
    tolerance = TOLERANCE[dtype]
    if maps.coupled and maps.output.biased:
        raise NotProved(
            f"attention of layer {layer} ends in a norm behind a bias: what the bias adds changes with the norm's "
            "scale and belongs to no head, so edges from heads are not exact on this model."
        )
    error = distance(maps.added(maps.scaled(seen["attn.head"])), seen["attn.out"])
    if not error <= tolerance:
        raise NotProved(
            f"what the heads of layer {layer} add misses what attention adds by {error:.1e}, so edges from heads are "
            "not exact on this model."
        )
    if maps.into is None:
        return maps
    for kind, into in maps.into.items():
        found = seen["attn.in"] @ into.weight.to(seen["attn.in"].dtype)
        found = found if into.bias is None else found + into.bias
        if not distance(found, seen[kind][:, anatomy.points[kind].columns(None)]) <= tolerance:
            return Maps(None, maps.output)
    return maps
