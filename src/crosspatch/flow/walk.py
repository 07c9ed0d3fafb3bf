"""Walk from the last layer down, with the tokens that matter in each: the frontier of a route."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from crosspatch.flow.parts import Judge, Judged, heads_at
from crosspatch.flow.proximity import EPSILON, proximity
from crosspatch.flow.reading import Reading
from crosspatch.models.output import Output

HEAD, BIAS, MLP, RESID = range(4)
KINDS = ("attn.head", "attn.bias", "mlp.out", "resid")
NONE = -1  # a unit, or a source, where there is none
ROOM = 1 << 24  # parts whose bounds are held at once
# How far parts may miss what attention adds, relative to its largest entry, by bytes of the model's numbers.
TOLERANCE = {8: 1e-5, 4: 1e-5, 2: 1e-1}  # kernels take their softmax in single precision


@dataclass(frozen=True)
class Rules:
    """How parts become edges: those with more than `threshold` of a node stay, and may share its whole importance."""

    threshold: float
    renormalise: bool
    prune: str = "exact"
    everywhere: bool = False  # every token of every layer is a target, on the route or not


@dataclass(frozen=True)
class Frontier:
    """The tokens of one stage that are targets, and how much of the start's importance has reached each."""

    need: Bool[Tensor, "pair pos"]
    mass: Float64[Tensor, "pair pos"]

    def add(self, pair: Int[Tensor, " edge"], pos: Int[Tensor, " edge"], flow: Float64[Tensor, " edge"]) -> None:
        """Note that edges come from these tokens."""
        self.need[pair, pos] = True
        self.mass.index_put_((pair, pos), flow, accumulate=True)

    def targets(self, layer: int, stage: int) -> "Targets":
        """List the targets of each prompt, as many columns as the longest list has."""
        order = torch.argsort(~self.need, dim=1, stable=True)
        where = order[:, : max(1, int(self.need.sum(1).max()))]
        return Targets(layer, stage, where, self.need.gather(1, where), self.mass.gather(1, where))


@dataclass(frozen=True)
class Targets:
    """Nodes of one stage: stages count half blocks, 2l enters block l, 2l + 1 lies between attention and MLP.

    `where` are positions, `real` says which columns are targets, `mass` is their importance.
    """

    layer: int
    stage: int
    where: Int[Tensor, "pair target"]
    real: Bool[Tensor, "pair target"]
    mass: Float64[Tensor, "pair target"]

    def split(self, count: int) -> "list[Targets]":
        """Cut into parts of so many columns at most."""
        parts = (each.split(count, 1) for each in (self.where, self.real, self.mass))
        return [Targets(self.layer, self.stage, *each) for each in zip(*parts, strict=True)]

    def of(self, values: Float[Tensor, "pair pos width"]) -> Float[Tensor, "pair target width"]:
        """Return what there is at the targets."""
        return values[torch.arange(len(self.where), device=self.where.device)[:, None], self.where]


@dataclass
class Walk:
    """Collects the edges and nodes of some prompts' routes, column by column, from the last layer down."""

    reading: Reading
    rules: Rules
    frontier: Frontier
    edges: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    nodes: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))

    def run(self) -> None:
        """Walk through all layers."""
        anatomy = self.reading.anatomy
        for layer in reversed(range(anatomy.layers)):
            if anatomy.sequential:
                self.mlp(layer)
            self.attention(layer)
        self.note_nodes(self.frontier.targets(0, 0), {})

    def mlp(self, layer: int) -> None:
        """Split the stream behind a block into that before its MLP and what the MLP adds."""
        targets = self.frontier.targets(layer, 2 * layer + 2)
        added = targets.of(self.reading.added("mlp.out", layer))
        middle = targets.of(self.reading.stream(layer)) + targets.of(self.reading.added("attn.out", layer))
        others = torch.stack([proximity(part, middle + added) for part in (middle, added)], dim=2)
        self.frontier = below = self.below()
        self.settle(targets, _judged_alone(others), (RESID, MLP), below)

    def attention(self, layer: int) -> None:
        """Split the stream behind attention (behind the whole block, where the MLP is parallel) into its parts."""
        anatomy, output = self.reading.anatomy, self.reading.output(layer)
        kinds = (RESID, *(() if anatomy.sequential else (MLP,)), *((BIAS,) if output.biased else ()))
        targets = self.frontier.targets(layer, 2 * layer + (1 if anatomy.sequential else 2))
        self.frontier = below = self.below()
        for few in targets.split(max(1, ROOM // (below.need.numel() * anatomy.heads))):
            self.settle(few, self.judged(few, output), kinds, below)

    def below(self) -> Frontier:
        """Begin the frontier of the next stage."""
        need = torch.zeros_like(self.frontier.need)
        if self.rules.everywhere:
            lengths = torch.tensor(self.reading.prompts.lengths, device=need.device)
            need = torch.arange(need.shape[1], device=need.device) < lengths[:, None]
        return Frontier(need, torch.zeros_like(self.frontier.mass))

    def judged(self, targets: Targets, output: Output) -> Judged:
        """Work out the proximities of all parts at some targets of attention, those beside attention first."""
        layer, anatomy = targets.layer, self.reading.anatomy
        size = next(self.reading.model.module.parameters()).element_size()
        tolerance = TOLERANCE.get(size, TOLERANCE[2])
        heads = heads_at(self.reading, layer, output, where=targets.where, real=targets.real, tolerance=tolerance)
        others = [targets.of(self.reading.stream(layer))]
        if not anatomy.sequential:
            others.append(targets.of(self.reading.added("mlp.out", layer)))
        if output.biased:
            others.append(heads.bias)
        total = torch.stack([*others, heads.added]).sum(0)
        sources = torch.arange(heads.pattern.shape[-1], device=total.device)
        exists = (sources <= targets.where[..., None]) & targets.real[..., None]
        beside = torch.stack([proximity(part, total) for part in others], dim=2)
        marks = exists[:, :, None].expand(heads.pattern.shape)
        return Judge(heads, total, marks, beside, self.rules.threshold).run(self.rules.prune)

    def settle(self, targets: Targets, judged: Judged, kinds: Sequence[int], below: Frontier) -> None:
        """Keep the parts above the threshold as edges, and pass the targets' importance on along them."""
        least = self.rules.threshold * judged.low
        parts = judged.parts * (judged.parts > least[..., None, None])
        others = judged.others * ((judged.others > least[..., None]) & targets.real[..., None])
        kept = parts.sum((2, 3)) + others.sum(-1)
        shared = kept if self.rules.renormalise else judged.high
        for place, kind in enumerate(kinds):
            pair, column = others[..., place].nonzero(as_tuple=True)
            at, prox = targets.where[pair, column], others[pair, column, place]
            shares = prox / judged.high[pair, column], prox / shared[pair, column]
            flow = targets.mass[pair, column] * shares[1]
            source = at if kind != BIAS else torch.full_like(at, NONE)
            self.note_edges(targets, kind, (pair, torch.full_like(at, NONE), at, source), (*shares, flow))
            if kind != BIAS:
                below.add(pair, at, flow)
        pair, column, head, source = parts.nonzero(as_tuple=True)
        prox = parts[pair, column, head, source]
        shares = prox / judged.high[pair, column], prox / shared[pair, column]
        flow = targets.mass[pair, column] * shares[1]
        self.note_edges(targets, HEAD, (pair, head, targets.where[pair, column], source), (*shares, flow))
        below.add(pair, source, flow)
        self.note_nodes(
            targets,
            {
                "clipped": EPSILON * judged.clipped / judged.high,
                "dropped": 1 - kept / judged.high,
                "slack": judged.high / judged.low - 1,
                "evaluated": judged.evaluated,
                "skipped": judged.skipped,
            },
        )

    def note_edges(
        self, targets: Targets, kind: int, ends: Sequence[Int[Tensor, " edge"]], shares: Sequence[Tensor]
    ) -> None:
        """Write edges down; `ends` are pair, unit, target and source, `shares` importance, weight and flow."""
        names = ("pair", "unit", "target", "source", "importance", "weight", "flow")
        for name, column in zip(names, (*ends, *shares), strict=True):
            self.edges[name].append(column.cpu().numpy())
        for name, value in (("kind", kind), ("layer", targets.layer), ("stage", targets.stage)):
            self.edges[name].append(np.full(len(ends[0]), value, dtype=np.int64))

    def note_nodes(self, targets: Targets, found: dict[str, Tensor]) -> None:
        """Write the targets down; what was not worked out there is NaN, or 0 where it is a count."""
        pair, column = targets.real.nonzero(as_tuple=True)
        for name, values in (("pair", pair), ("position", targets.where[pair, column])):
            self.nodes[name].append(values.cpu().numpy())
        self.nodes["stage"].append(np.full(len(pair), targets.stage, dtype=np.int64))
        self.nodes["importance"].append(targets.mass[pair, column].cpu().numpy())
        for name in ("clipped", "dropped", "slack", "evaluated", "skipped"):
            count = name in ("evaluated", "skipped")
            none = np.full(len(pair), 0 if count else np.nan, dtype=np.int64 if count else np.float64)
            self.nodes[name].append(found[name][pair, column].cpu().numpy() if name in found else none)


def _judged_alone(others: Float64[Tensor, "pair target other"]) -> Judged:
    """Return what is known of nodes without attention."""
    total, none = others.sum(-1), others.new_zeros(others.shape[:2], dtype=torch.long)
    parts = others.new_zeros(*others.shape[:2], 1, 0)
    return Judged(parts, others, total, total, (others <= EPSILON).sum(-1), none, none)
