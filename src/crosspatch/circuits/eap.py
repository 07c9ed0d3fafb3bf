"""Scores of all edges from gradients: EAP and its kin. A score estimates what the metric loses without the edge.

score(u → r) = Σ over tokens of D_u · ∂metric/∂(stream that r reads), with D_u what u adds beyond its absence, averaged
over pairs. The methods differ in where the gradient is taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.opened import Opened
from crosspatch.attribution.tape import Recorder
from crosspatch.circuits.machine import Machine
from crosspatch.circuits.opening import EdgeSweep
from crosspatch.circuits.slopes import TAPED, Slopes, layer_gradients, pulled_back, slopes_at, token_parts
from crosspatch.core.errors import BadInput
from crosspatch.models.runs import Run

Scores = Float[np.ndarray, "place receiver sender"]
FLAT = 1e-4  # of the gap: what a gradient makes of the whole change is no less, but for rounding


@dataclass(frozen=True)
class Points:
    """Where gradients are taken: shares of the way from the corrupt to the clean embeddings, weighed alike.

    With `activations` the way is each part's own: what it adds goes from corrupt to clean, all else is clean.
    """

    shares: tuple[float, ...]
    activations: bool = False

    @classmethod
    def of(cls, method: str, steps: int) -> "Points":
        """Return the points of a method by name.

        EAP at the clean run (Syed et al. 2023); EAP-IG over embeddings with the corrupt end and without the clean one;
        over activations the other way round (both Hanna et al. 2024); "clean-corrupted" at both ends.
        """
        if method == "eap":
            return cls((1.0,))
        if method == "eap-clean-corrupted":
            return cls((0.0, 1.0))
        if method == "eap-ig":
            return cls(tuple(step / steps for step in range(steps)))
        return cls(tuple(step / steps for step in range(1, steps + 1)), activations=True)


def opened_for_gradients(machine: Machine) -> Opened:
    """Open a machine's clean run for gradients, from the first token on at which the runs differ."""
    recorder = Recorder(machine.inside.bench, machine.lane, machine.inside.past)
    return Opened(machine.inside.bench, recorder, Run([]), machine.local, TAPED, attended=False)


def edge_scores(sweep: EdgeSweep, points: Points) -> Scores:
    """Return the score of every edge, averaged over the pairs; NaN where the graph has no edge.

    Raises:
        BadInput: the metric has no gradient, or none at these points.
        NotFinite: the metric of a run is not a number.
    """
    graph, total, slope = sweep.graph, None, 0.0
    for numbers in sweep.cuts.chunks:
        with sweep.machine(numbers) as machine:
            opened, change = opened_for_gradients(machine), _whole_change(machine)
            for share, slopes, senders in _gradients(machine, opened, points):
                found = _scored(machine, slopes, senders) * share
                total = found if total is None else total + found
                slope += float((slopes.final * change).abs().sum())
        sweep.options.progress.advance(len(numbers))
    require_slope(sweep, slope)
    assert total is not None
    scores = total.cpu().numpy() / len(sweep.pairs)
    return np.where(graph.allowed[None], scores, np.nan).astype(np.float32)


def require_slope(sweep: EdgeSweep, slope: float) -> None:
    """Check what gradients make of the whole change, all pairs and absolute parts together, against the gap.

    Raises:
        BadInput: it is nothing but rounding.
    """
    if slope <= FLAT * float(np.abs(sweep.base[0] - sweep.source[0]).sum()):
        raise BadInput(
            f"{sweep.metrics[0].name} has no slope where its gradient is taken (a divergence from the clean run is "
            "flat there), so edges cannot be scored. Use logit_diff, or by='eap-ig'."
        )


def _gradients(machine: Machine, opened: Opened, points: Points) -> Iterator[tuple[float, Slopes, range]]:
    """Yield a weight, gradients, and the senders that they are for."""
    clean = machine.lane.entering()
    corrupt = (machine.absent.attention[0]).to(clean.dtype)
    for share in points.shares:
        entering = clean if share == 1.0 else corrupt + share * (clean - corrupt)
        senders = range(1 if points.activations else len(machine.graph.senders))
        yield 1 / len(points.shares), slopes_at(machine, opened, entering), senders
    if not points.activations:
        return
    opened.forward(clean, keep=False)
    streams = opened.streams
    for layer, kind, senders in _parts(machine):
        for share in points.shares:
            opened.streams = streams
            visit = partial(_less, (1 - share) * _change(machine, layer, kind))
            opened.forward(streams[layer], keep=True, first=layer, writes={kind: visit})
            yield 1 / len(points.shares), pulled_back(machine, opened, layer), senders


def _parts(machine: Machine) -> Iterator[tuple[int, str, range]]:
    """Yield each part that adds to the stream: its layer, its kind, and the senders that it is."""
    heads = machine.graph.heads
    for layer in range(machine.layers):
        first = 1 + layer * (heads + 1)
        yield layer, "attn.out", range(first, first + heads)
        yield layer, "mlp.out", range(first + heads, first + heads + 1)


def _change(machine: Machine, layer: int, kind: str) -> Float[Tensor, "token d_model"]:
    if kind == "mlp.out":
        return machine.change.mlps[layer]
    maps, heads = machine.maps[layer], machine.change.heads[layer].chunk(machine.graph.heads, -1)
    return torch.stack([maps.writes(part, head) for head, part in enumerate(heads)]).sum(0)


def _whole_change(machine: Machine) -> Float[Tensor, "token d_model"]:
    """Return what all senders together add beyond absence."""
    return sum((_change(machine, layer, kind) for layer, kind, _ in _parts(machine)), machine.change.embedded)


def _less(change: Tensor, value: Tensor) -> Tensor:
    return value - change.to(value.dtype).reshape(value.shape)


def _scored(machine: Machine, slopes: Slopes, senders: range) -> Float[Tensor, "place receiver sender"]:
    """Multiply what senders add with the gradients at receivers, a few tokens at a time."""
    graph = machine.graph
    out = torch.zeros(graph.shape, dtype=torch.float32, device=machine.lane.pairs.device)
    rows = graph.heads + 2 * graph.kv_heads + 1
    first = machine.layers - len(slopes.layers)
    places = _place_of_tokens(machine)
    for tokens in token_parts(machine):
        sent = machine.sent_at(tokens)
        for number, slope in enumerate(slopes.layers):
            layer = first + number
            row, before = layer * rows, 1 + layer * (graph.heads + 1)
            for gradients in layer_gradients(machine, layer, slope, tokens):
                # Of its own layer, at most the heads are read, by the MLP alone; what no edge stands for is left out.
                seen = before if row < (layer + 1) * rows - 1 else before + graph.heads
                at = slice(row, row + len(gradients))
                _accumulate(out[:, at, :seen], gradients, sent[:seen], places[tokens])
                row += len(gradients)
        _accumulate(out[:, -1:], slopes.final[None, tokens], sent, places[tokens])
    kept = torch.zeros(len(graph.senders), device=out.device)
    kept[senders.start : senders.stop] = 1
    return out * kept


def _place_of_tokens(machine: Machine) -> Tensor:
    places = torch.zeros(machine.tokens, dtype=torch.long, device=machine.lane.pairs.device)
    for place, tokens in enumerate(machine.tokens_of):
        places[tokens] = place
    return places


def _accumulate(
    out: Float[Tensor, "place receiver sender"],
    gradients: Float[Tensor, "receiver token d_model"],
    sent: Float[Tensor, "sender token d_model"],
    places: Tensor,
) -> None:
    for place in range(len(out)):
        here = slice(None) if len(out) == 1 else places == place
        out[place] += gradients[:, here].flatten(1) @ sent[:, here].flatten(1).T
