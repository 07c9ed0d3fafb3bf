"""A run in which every edge has a weight between 0 and 1, differentiable by the weights."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.circuits.machine import Copies, Machine, units_of
from crosspatch.models.blocks import at_least_single
from crosspatch.models.inside import PROJECTED


def soft_run(machine: Machine, weights: Float[Tensor, "place receiver sender"]) -> Float[Tensor, "1 pair read d_model"]:
    """Return the final stream at the positions read; an edge of weight w carries w · current + (1 − w) · absent."""
    graph = machine.graph
    rows = graph.heads + 2 * graph.kv_heads + 1
    sent = [machine.change.embedded]
    weights = weights.to(sent[0].dtype)
    for layer in range(machine.layers):
        first = layer * rows
        streams = _mixed(machine, machine.absent.attention[layer], weights[:, first : first + rows - 1], sent)
        heads = _heads(machine, layer, streams)
        read = sent + heads if graph.sequential else sent
        stream = _mixed(machine, machine.absent.mlp[layer], weights[:, first + rows - 1 : first + rows], read)[0]
        added = at_least_single(machine.inside.mlp(layer, stream.to(machine.dtype), machine.lane.segments))
        sent = [*sent, *heads, added - machine.absent.mlps[layer]]
    final = _mixed(machine, machine.absent.final, weights[:, -1:], sent)
    return final[:, machine.reads]


def _mixed(
    machine: Machine,
    absent: Float[Tensor, "token d_model"],
    weights: Float[Tensor, "place receiver sender"],
    sent: Sequence[Float[Tensor, "token d_model"]],
) -> Float[Tensor, "receiver token d_model"]:
    """Return the stream of each receiver: the absent one and the weighed sum of what senders add."""
    every = torch.stack(list(sent))
    if len(weights) == 1:
        return absent + torch.einsum("ru,utd->rtd", weights[0, :, : len(sent)], every)
    out = absent.repeat(weights.shape[1], 1, 1)
    for place, tokens in enumerate(machine.tokens_of):
        part = torch.einsum("ru,utd->rtd", weights[place, :, : len(sent)], every[:, tokens])
        out = out.index_add(1, tokens, part)
    return out


def _heads(machine: Machine, layer: int, streams: Float[Tensor, "receiver token d_model"]) -> list[Tensor]:
    """Return what each head adds beyond its absence, from the streams of a layer's queries, keys and values."""
    maps, anatomy, copies = machine.maps[layer], machine.model.anatomy, Copies(machine.lane, len(streams))
    hidden = copies.packed(streams.to(machine.dtype))
    counts = [machine.graph.heads, machine.graph.kv_heads, machine.graph.kv_heads]
    parts: dict[str, Tensor]
    if maps.into is None:
        found = machine.inside.projected(layer, hidden, copies.segments)
        wide = {kind: units_of(anatomy, kind, copies.apart(found[kind])) for kind in PROJECTED}
        parts = dict(zip(PROJECTED, _diagonals(wide, counts), strict=True))
    else:
        normed = copies.apart(machine.inside.normed(layer, hidden, copies.segments)).split(counts)
        parts = {kind: maps.into[kind].each(own) for kind, own in zip(PROJECTED, normed, strict=True)}
    z = machine.inside.attended(layer, hidden[: machine.tokens].detach(), parts, machine.lane.segments)
    change = maps.scaled(z) - machine.absent.heads[layer]
    return [maps.writes(part, head) for head, part in enumerate(change.chunk(machine.graph.heads, -1))]


def _diagonals(
    wide: dict[str, Float[Tensor, "receiver token _ d_head"]], counts: Sequence[int]
) -> list[Float[Tensor, "token _ d_head"]]:
    """Take each unit's projection of its own stream."""
    found, first = [], 0
    for kind, count in zip(PROJECTED, counts, strict=True):
        own = wide[kind][first : first + count]
        found.append(torch.stack([own[unit, :, unit] for unit in range(count)], dim=1))
        first += count
    return found
