"""Gradients of the metric at what every receiver reads, kept so that memory grows with tokens and not with edges.

Only the gradients at queries, keys, values and MLP inputs are kept from the backward pass: as much as one activation
a layer. Those at each receiver's own stream, a vector a receiver and token, are made from them for a few tokens at a
time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.attribution.opened import Opened
from crosspatch.attribution.tape import pull, vector_jacobian
from crosspatch.circuits.machine import Machine, units_of
from crosspatch.models.attention import Segment
from crosspatch.models.blocks import at_least_single
from crosspatch.models.inside import PROJECTED

TAPED = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.in")
AT_ONCE = 1 << 26  # bytes of what all senders add at the tokens that are scored together


@dataclass(frozen=True)
class Slope:
    """One layer: the streams that attention and the MLP read, and the gradients of what they make of them."""

    attention: Float[Tensor, "token d_model"]
    mlp: Float[Tensor, "token d_model"]
    projected: dict[str, Float[Tensor, "token unit d_head"]]
    read: Float[Tensor, "token d_model"]


@dataclass(frozen=True)
class Slopes:
    """All layers, and the gradient at the final stream."""

    layers: Sequence[Slope]
    final: Float[Tensor, "token d_model"]


def slopes_at(machine: Machine, opened: Opened, entering: Float[Tensor, "token d_model"], lowest: int = 0) -> Slopes:
    """Run the blocks from a stream that enters the first, and pull the metric's gradient back to `lowest`.

    Raises:
        BadInput: the metric has no gradient.
    """
    opened.forward(entering, keep=True)
    return pulled_back(machine, opened, lowest)


def pulled_back(machine: Machine, opened: Opened, lowest: int = 0) -> Slopes:
    """Pull the metric's gradient back through the tapes of a run."""
    _, final = opened.cotangent(machine.scorer, opened.streams[-1])
    cotangent, found, anatomy = final, [], machine.model.anatomy
    for layer in reversed(range(lowest, machine.layers)):
        tape = opened.tape(layer)
        stream = tape.entering.detach()
        added = tape.seen["attn.out"].detach().flatten(0, -2)
        pulled = pull(tape, cotangent[None].to(tape.leaving.device))
        projected = {kind: units_of(anatomy, kind, pulled.seen[kind][0]) for kind in PROJECTED}
        mid = stream + added if anatomy.sequential else stream
        found.append(Slope(stream, mid, projected, pulled.seen["mlp.in"][0]))
        cotangent = pulled.entering[0]
    return Slopes(found[::-1], at_least_single(final))


def token_parts(machine: Machine) -> Iterator[Int[Tensor, " token"]]:
    """Yield the lane's tokens, so few at a time that what all senders add there stays small."""
    every = torch.arange(machine.tokens, device=machine.lane.pairs.device)
    if not machine.model.anatomy.packed:  # whole rows only
        yield every
        return
    width = 4 * machine.model.anatomy.d_model * len(machine.graph.senders)
    yield from every.split(max(1, AT_ONCE // width))


def layer_gradients(
    machine: Machine, layer: int, slope: Slope, tokens: Int[Tensor, " token"]
) -> Iterator[Float[Tensor, "receiver token d_model"]]:
    """Yield the gradients at the streams of a layer's receivers: queries, keys and values together, then the MLP."""
    segments = machine.lane.segments
    if machine.model.anatomy.packed:  # norms and projections do not ask where a token stands
        segments = [Segment(0, 1, torch.zeros_like(tokens))]
    yield torch.cat(list(_through_attention(machine, layer, slope, (tokens, segments))))
    with torch.enable_grad():
        leaf = slope.mlp[tokens].requires_grad_()
        read = machine.inside.mlp(layer, leaf, segments, until="mlp.in")
    yield at_least_single(vector_jacobian(read, [leaf], slope.read[None, tokens].to(read.dtype))[0])


def _through_attention(
    machine: Machine, layer: int, slope: Slope, where: tuple[Tensor, Sequence[Segment]]
) -> Iterator[Float[Tensor, "receiver token d_model"]]:
    """Pull gradients of each unit's projection back to the stream: through its own columns, then the block's norm."""
    (tokens, segments), into = where, machine.maps[layer].into
    leaf = slope.attention[tokens].requires_grad_()
    if into is not None:
        with torch.enable_grad():
            normed = machine.inside.normed(layer, leaf, segments)
    for kind in PROJECTED:
        own = slope.projected[kind][tokens]
        if into is None:
            yield at_least_single(_through_block(machine, layer, (kind, own), (leaf, segments)))
        else:
            back = into[kind].back(own).to(normed.dtype)
            yield at_least_single(vector_jacobian(normed, [leaf], back, keep=kind != PROJECTED[-1])[0])


def _through_block(
    machine: Machine, layer: int, slope: tuple[str, Tensor], where: tuple[Tensor, Sequence[Segment]]
) -> Float[Tensor, "unit token d_model"]:
    """Pull gradients of each unit back where the projection is no plain linear map: through the block itself."""
    (kind, own), (leaf, segments) = slope, where
    with torch.enable_grad():
        wide = machine.inside.projected(layer, leaf, segments)[kind]
    columns = units_of(machine.model.anatomy, kind, torch.arange(wide.shape[-1], device=wide.device))
    cotangents = wide.new_zeros(own.shape[1], *wide.shape)
    for unit in range(own.shape[1]):
        cotangents[unit][:, columns[unit]] = own[:, unit]
    return vector_jacobian(wide, [leaf], cotangents)[0]
