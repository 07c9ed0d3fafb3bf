"""Run a model with only some edges of its graph: what each receiver reads is put together from what senders add.

For every sender u, D_u is what it adds beyond what it adds when it is absent (in the corrupt run, say). A receiver
reads the absent stream plus the sum of D_u over the edges into it that are kept. Each receiver's own stream goes
through the model's own norm and its slice of the projection; the model's own attention and MLP do the rest
(ARCHITECTURE.md, "Circuits"). Only what hangs on an edge that differs from a known run is computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Shaped
from torch import Tensor

from crosspatch.circuits.graph import Graph
from crosspatch.circuits.maps import Maps, as_slice, check_maps, maps_of
from crosspatch.engine.local import Local, Pass
from crosspatch.engine.readout import Scorer
from crosspatch.models.anatomy import Anatomy
from crosspatch.models.attention import Segment
from crosspatch.models.blocks import at_least_single
from crosspatch.models.inside import PROJECTED, Inside
from crosspatch.models.model import Model
from crosspatch.models.runs import Run, Running, past_of

# What must be known of the two runs.
KINDS = ("attn.in", "attn.q", "attn.k", "attn.v", "attn.head", "attn.out", "mlp.out")


CHECKED = 32  # tokens on which maps are compared with a run, at least


@dataclass(frozen=True)
class Copies:
    """The tokens of a lane, several times over: `[copy, token, …]` for us, packed rows of equal shapes for a block."""

    lane: Running
    count: int

    @cached_property
    def segments(self) -> list[Segment]:
        """The segments of all copies together."""
        return [
            Segment(s.start, s.span, s.pairs.repeat(self.count), s.pairs.tolist() * self.count)
            for s in self.lane.segments
        ]

    def packed(self, values: Float[Tensor, "copy token *rest"]) -> Float[Tensor, "packed *rest"]:
        """Lay copies out as the segments have them."""
        if len(self.lane.segments) == 1:
            return values.flatten(0, 1)
        parts = values.split([s.tokens for s in self.lane.segments], dim=1)
        return torch.cat([part.flatten(0, 1) for part in parts])

    def apart(self, packed: Float[Tensor, "packed *rest"]) -> Float[Tensor, "copy token *rest"]:
        """Undo `packed`."""
        if len(self.lane.segments) == 1:
            return packed.unflatten(0, (self.count, -1))
        parts = packed.split([self.count * s.tokens for s in self.lane.segments])
        return torch.cat([part.unflatten(0, (self.count, -1)) for part in parts], dim=1)


@dataclass(frozen=True)
class Absent:
    """What is there without any edge: the stream at each reading, and what each sender adds then.

    `attention[l]`, `mlp[l]` are the streams that receivers of layer l read `[token, d_model]`, `final` that of the
    logits. `heads[l]` are scaled head outputs `[token, head * d_head]`, `mlps[l]` what MLPs add. `is_run`: these are
    from one run of the model, so that a node without any edge into it adds just that.
    """

    attention: Sequence[Tensor]
    mlp: Sequence[Tensor]
    final: Tensor
    heads: Sequence[Tensor]
    mlps: Sequence[Tensor]
    is_run: bool


@dataclass(frozen=True)
class State:
    """A run with some edges: what each sender adds beyond absence `[sender, token, d_model]`, and its projections.

    `projected[l][kind]` is `[token, unit, d_head]`; `masks` are the edges it was run with. What hangs on a receiver
    that is not `valid` was left as it was, since nothing reads it.
    """

    masks: Bool[np.ndarray, "place receiver sender"]
    valid: Bool[np.ndarray, " receiver"]
    sent: Float[Tensor, "sender token d_model"]
    projected: Sequence[Mapping[str, Tensor]]

    def copy(self) -> "State":
        """Return a state that may be changed in place."""
        projected = [{kind: value.clone() for kind, value in layer.items()} for layer in self.projected]
        return State(self.masks.copy(), self.valid.copy(), self.sent.clone(), projected)


@dataclass(frozen=True)
class Change:
    """What the clean run's senders add beyond absence, compactly: heads as scaled outputs, not yet in the stream."""

    embedded: Float[Tensor, "token d_model"]
    heads: Sequence[Tensor]
    mlps: Sequence[Tensor]


@dataclass(frozen=True)
class Machine:
    """Two runs of some pairs, opened for running circuits. `tokens_of[g]` are the tokens of each place of the graph.

    `ends` are the metrics of the clean and the corrupt run.
    """

    model: Model
    graph: Graph
    inside: Inside
    lane: Running
    local: Local
    scorer: Scorer
    ends: tuple[Float32[Tensor, "metric pair"], Float32[Tensor, "metric pair"]]
    maps: Sequence[Maps]
    absent: Absent
    change: Change
    projected: Sequence[Mapping[str, Tensor]]
    tokens_of: Sequence[Int[Tensor, " _"]]

    @property
    def before(self) -> Float32[Tensor, "metric pair"]:
        """The metrics of the clean run."""
        return self.ends[0]

    @cached_property
    def reach(self) -> Bool[np.ndarray, "receiver sender"]:
        """Whether what a receiver reads changes what a sender adds: its own node, or its layer's heads.

        A norm behind attention has one scale for all heads, so that each of them hangs on what the others read.
        """
        found = self.graph.feeds.copy()
        heads = np.array([site.layer if site.kind == "attn.head" else -1 for site in self.graph.senders])
        for number, site in enumerate(self.graph.receivers):
            if site.layer is not None and site.kind in PROJECTED and self.maps[site.layer].coupled:
                found[number] = heads == site.layer
        return found

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.graph.layers

    @property
    def tokens(self) -> int:
        """Number of tokens of the pairs that are run."""
        return self.lane.tokens

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.lane.run.stream[0].dtype

    @cached_property
    def clean(self) -> State:
        """The run with all edges: the clean run."""
        valid = np.ones(len(self.graph.receivers), dtype=bool)
        return State(self.graph.full(), valid, self.sent_at(slice(None)), self.projected)

    def sent_at(self, tokens: slice | Int[Tensor, " token"]) -> Float[Tensor, "sender _ d_model"]:
        """Return what the clean run's senders add beyond absence at some tokens."""
        found = [self.change.embedded[tokens]]
        for layer, maps in enumerate(self.maps):
            heads = self.change.heads[layer][tokens].chunk(self.graph.heads, -1)
            found += [maps.writes(part, head) for head, part in enumerate(heads)]
            found.append(self.change.mlps[layer][tokens])
        return torch.stack(found)

    @cached_property
    def reads(self) -> Int[Tensor, "pair read"]:
        """The token of the lane at each position that the metric reads."""
        index = torch.full(self.lane.run.stream[0].shape[:2], -1, dtype=torch.long)
        index[self.lane.pairs.cpu(), self.lane.positions.cpu()] = torch.arange(self.tokens)
        rows = torch.arange(len(self.local.numbers))[:, None]
        return index[rows, torch.tensor(self.local.extents.reads)].to(self.lane.pairs.device)

    def scores(self, final: Float[Tensor, "row pair read d_model"]) -> Float[Tensor, "metric row pair"]:
        """Return every metric of each row of final streams."""
        rows, pairs = final.shape[:2]
        owners = torch.arange(pairs, device=final.device).repeat(rows)
        return self.scorer(final.flatten(0, 1), owners).unflatten(1, (rows, pairs))


def open_machine(
    model: Model, graph: Graph, this: Pass, lane: Running, places: Sequence[Int[Tensor, " _"]], *, is_run: bool
) -> Machine:
    """Set a machine up on the runs of a pass; `is_run`: what is written is from one run of the model.

    Raises:
        NotProved: what heads add cannot be told apart.
    """
    anatomy = model.anatomy
    past = [past_of(this.base, layer) if anatomy.packed else None for layer in range(anatomy.layers)]
    widths = {kind: this.base.seen[kind][0].shape[-1] for kind in PROJECTED}
    maps = [_checked(model, this.base, lane, layer) for layer in range(anatomy.layers)]
    opening = _Opening(model, lane, maps)
    absent = opening.absent(this.written) if is_run else opening.built(this.written)
    change = opening.change(this.base, absent)
    projected = [
        {kind: units_of(anatomy, kind, opening.at(this.base, kind, layer)) for kind in PROJECTED}
        for layer in range(anatomy.layers)
    ]
    inside = Inside(this.bench, past, widths)
    return Machine(
        model=model,
        graph=graph,
        inside=inside,
        lane=lane,
        local=this.local,
        scorer=this.scorer,
        ends=(this.before, this.after),
        maps=maps,
        absent=absent,
        change=change,
        projected=projected,
        tokens_of=places,
    )


def at_tokens(values: Float[Tensor, "pair pos width"], lane: Running) -> Float[Tensor, "token width"]:
    """Lay a run's activations out token by token."""
    return values[lane.pairs.to(values.device), lane.positions.to(values.device)]


def _checked(model: Model, base: Run, lane: Running, layer: int) -> Maps:
    maps = maps_of(model.module, model.anatomy, layer)
    few = slice(None, None, max(1, lane.tokens // CHECKED))
    seen = {kind: base.seen[kind][layer][lane.pairs[few], lane.positions[few]] for kind in KINDS}
    return check_maps(maps, base.stream[0].dtype, seen, model.anatomy, layer)


@dataclass(frozen=True)
class _Opening:
    """Turns whole runs into what the machine needs of them, token by token."""

    model: Model
    lane: Running
    maps: Sequence[Maps]

    def at(self, run: Run, kind: str, layer: int) -> Float[Tensor, "token width"]:
        return at_tokens(run.seen[kind][layer], self.lane)

    def stream(self, run: Run, layer: int) -> Float[Tensor, "token d_model"]:
        return at_least_single(at_tokens(run.stream[layer], self.lane))

    def sent(self, run: Run) -> tuple[list[Tensor], list[Tensor]]:
        """Return scaled head outputs and what MLPs add, layer by layer."""
        heads = [each.scaled(self.at(run, "attn.head", layer)) for layer, each in enumerate(self.maps)]
        return heads, [at_least_single(self.at(run, "mlp.out", layer)) for layer in range(len(self.maps))]

    def absent(self, run: Run) -> Absent:
        """Return what is there without any edge where that is a run of the model."""
        layers, sequential = range(len(self.maps)), self.model.anatomy.sequential
        stream = [self.stream(run, layer) for layer in range(len(self.maps) + 1)]
        added = [at_least_single(self.at(run, "attn.out", layer)) if sequential else 0 for layer in layers]
        mid = [stream[layer] + added[layer] for layer in layers]
        return Absent(stream[:-1], mid, stream[-1], *self.sent(run), is_run=True)

    def built(self, run: Run) -> Absent:
        """Return what is there without any edge where each sender's part was made by itself: zeros or means."""
        heads, mlps = self.sent(run)
        stream, attention, mid = self.stream(run, 0), [], []
        for layer, each in enumerate(self.maps):
            attention.append(stream)
            after = stream + each.added(heads[layer])
            mid.append(after if self.model.anatomy.sequential else stream)
            stream = after + mlps[layer]
        return Absent(attention, mid, stream, heads, mlps, is_run=False)

    def change(self, base: Run, absent: Absent) -> Change:
        """Return what the clean run adds beyond absence."""
        heads, mlps = self.sent(base)
        return Change(
            self.stream(base, 0) - absent.attention[0],
            [own - without for own, without in zip(heads, absent.heads, strict=True)],
            [own - without for own, without in zip(mlps, absent.mlps, strict=True)],
        )


def units_of(anatomy: Anatomy, kind: str, wide: Shaped[Tensor, "*rows width"]) -> Shaped[Tensor, "*rows unit d_head"]:
    """Split what a projection leaves into the units of a kind."""
    point = anatomy.points[kind]
    return wide[..., as_slice(point.columns(None))].unflatten(-1, (len(point.starts), point.width))
