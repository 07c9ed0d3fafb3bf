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
    """Maps of one layer. `into` is None where a projection is no plain linear map: then the block itself projects.

    `out[h]` takes a head to the stream, before a norm that may follow (`norm`), whose weight is `gain`.
    """

    into: Mapping[str, Into] | None
    out: Float[Tensor, "head d_head d_model"]
    bias: Float[Tensor, " d_model"] | None
    norm: nn.Module | None
    gain: Float[Tensor, " d_model"] | None

    def scale(self, z: Float[Tensor, "token width"]) -> Float[Tensor, "token 1"] | None:
        """Return the factor that the norm behind attention puts on each token; None without such a norm."""
        if self.norm is None or self.gain is None:
            return None
        whole = self.whole(z)
        weighed = at_least_single(self.gain) * at_least_single(whole)
        square = (weighed * weighed).sum(-1, keepdim=True)
        found = (at_least_single(self.norm(whole)) * weighed).sum(-1, keepdim=True)
        return torch.where(square > 0, found / square.clamp_min(1e-30), torch.zeros_like(square))

    def whole(self, z: Float[Tensor, "token width"]) -> Float[Tensor, "token d_model"]:
        """Return what the output projection gives."""
        out = z @ self.out.flatten(0, 1)
        return out if self.bias is None else out + self.bias

    def scaled(self, z: Float[Tensor, "token width"]) -> Float[Tensor, "token width"]:
        """Return head outputs with the norm's factor on them, so that what heads add is linear in them."""
        scale = self.scale(z)
        return at_least_single(z) if scale is None else at_least_single(z) * scale

    def added(self, scaled: Float[Tensor, "token width"]) -> Float[Tensor, "token d_model"]:
        """Return what attention adds with these scaled head outputs, its bias included."""
        parts = [self.writes(part, head) for head, part in enumerate(scaled.chunk(len(self.out), -1))]
        total = torch.stack(parts).sum(0)
        return total if self.bias is None else total + at_least_single(self.bias)

    def writes(self, z: Float[Tensor, "token d_head"], head: int) -> Float[Tensor, "token d_model"]:
        """Return what a head adds to the stream, from its scaled output, in float32 at least."""
        out = at_least_single(z) @ at_least_single(self.out[head])
        return out if self.gain is None else out * at_least_single(self.gain)


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
    """Read off a layer's maps; `check_maps` proves them on the layer's own activations.

    Raises:
        NotProved: heads cannot be told apart behind the output projection.
    """
    block, points = block_list(module, anatomy)[layer], anatomy.points
    output = points["attn.head"].path
    found = matrix(block.get_submodule(output))
    if found is None:
        raise NotProved(f"{output} of layer {layer} is no linear map, so what one head adds cannot be told apart.")
    weight, bias = found
    out = torch.stack([weight[points["attn.head"].columns(head)] for head in range(anatomy.heads)])
    norm = _norm_behind(block, anatomy)
    with torch.no_grad():
        gain = None if norm is None else norm(weight.new_ones(1, anatomy.d_model))[0].detach()
    return Maps(_into(block, anatomy), out, bias, norm, gain)


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


def _norm_behind(block: nn.Module, anatomy: Anatomy) -> nn.Module | None:
    """Return the module that attention's output passes before it is added, if it is one of its own."""
    path, output = anatomy.points["attn.out"].path, anatomy.points["attn.head"].path
    return None if output.startswith(path) else plain(block.get_submodule(path))


def check_maps(
    maps: Maps, dtype: torch.dtype, seen: Mapping[str, Float[Tensor, "token _"]], anatomy: Anatomy, layer: int
) -> Maps:
    """Compare a layer's maps with a run's own activations; projections that are not as they seem are left to the block.

    Raises:
        NotProved: what the heads add does not sum to what attention adds.
    """
    tolerance = TOLERANCE[dtype]
    if maps.norm is not None and maps.bias is not None and bool(maps.bias.any()):
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
            return Maps(None, maps.out, maps.bias, maps.norm, maps.gain)
    return maps
