"""The parts of attention at some targets: each head's share of each source token, and its proximity to the sum.

A part is α · (value_j W_O^h) ⊙ factor. Its proximity is at most sign(y) · part, which needs no part: the sign is pulled
back through W_O once per target and multiplied with the values. That bound decides which parts are worked out at all.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from crosspatch.flow.output import Output
from crosspatch.flow.proximity import EPSILON, proximity_of, sign_of
from crosspatch.flow.reading import Reading

CHUNK = 1 << 19  # numbers of parts that are worked out at once: what a processor's cache holds

PerPart = Float[Tensor, "pair target head pos"]
Marks = Bool[Tensor, "pair target head pos"]


@dataclass(frozen=True)
class Heads:
    """Attention of one layer at some targets of each prompt: what its parts are made of.

    `pattern` α; `values` `[pair, kv, pos, d_head]`; `written` is what the projection gives without bias, `factor` what
    everything is multiplied by on its way into the stream; both `[pair, target, d_model]`.
    """

    pattern: PerPart
    values: Float[Tensor, "pair kv pos d_head"]
    output: Output
    written: Float[Tensor, "pair target d_model"]
    factor: Float[Tensor, "pair target d_model"]

    @property
    def repeats(self) -> int:
        """Number of heads that share a value."""
        return self.pattern.shape[2] // self.values.shape[1]

    @property
    def added(self) -> Float[Tensor, "pair target d_model"]:
        """What all parts add to the stream, without the projection's bias."""
        return self.factor * self.written

    @property
    def bias(self) -> Float[Tensor, "pair target d_model"]:
        """What the projection's bias adds to the stream."""
        return self.factor * self.output.bias

    def part(
        self, at: Int[Tensor, "part 4"], rows: Float[Tensor, "row d_model"], index: Int[Tensor, "pair head pos"]
    ) -> Float[Tensor, "part d_model"]:
        """Return parts by (pair, target, head, source), given values that were mapped already."""
        pair, target, head, source = at.unbind(1)
        return (
            rows[index[pair, head, source]] * self.factor[pair, target] * self.pattern[pair, target, head, source, None]
        )

    def mapped(
        self, needed: Bool[Tensor, "pair head pos"]
    ) -> tuple[Float[Tensor, "row d_model"], Int[Tensor, "pair head pos"]]:
        """Map the values that are needed through their head's columns, and say in which row each is."""
        index = torch.zeros_like(needed, dtype=torch.long)
        rows, count = [], 0
        for head in range(needed.shape[1]):
            pair, source = needed[:, head].nonzero(as_tuple=True)
            rows.append(self.values[pair, head // self.repeats, source] @ self.output.weight[head])
            index[pair, head, source] = torch.arange(count, count + len(pair), device=index.device)
            count += len(pair)
        return torch.cat(rows), index


def heads_at(
    reading: Reading,
    layer: int,
    output: Output,
    *,
    where: Int[Tensor, "pair target"],
    real: Bool[Tensor, "pair target"],
    tolerance: float,
) -> Heads:
    """Gather what the parts of a layer's attention are made of, and check that they add up to what it adds.

    `where` are positions, of which only those that are `real` are targets.

    Raises:
        NotProved: they do not.
    """
    pattern, values = reading.pattern(layer, where), reading.values(layer)
    pairs = torch.arange(len(where), device=where.device)[:, None]
    heads = _weighed(pattern, values)
    written = torch.einsum("pnhc,hcd->pnd", heads, output.weight)
    added = reading.added("attn.out", layer)[pairs, where]
    factor = torch.ones_like(written)
    factor[real] = output.factor((written + output.bias)[real], added[real], tolerance=tolerance)
    return Heads(pattern, values, output, written, factor)


def _weighed(pattern: PerPart, values: Float[Tensor, "pair kv pos d_head"]) -> Float[Tensor, "pair target head d_head"]:
    """Weigh values by patterns, several heads reading one set of values."""
    grouped = pattern.unflatten(2, (values.shape[1], -1)).transpose(1, 2).flatten(2, 3)
    return (grouped @ values).unflatten(2, (pattern.shape[1], -1)).transpose(1, 2).flatten(2, 3)


def _products(
    directions: Float[Tensor, "pair target head d_head"], values: Float[Tensor, "pair kv pos d_head"]
) -> PerPart:
    """Multiply each target's and head's direction with the values of all sources."""
    targets, kv = directions.shape[1], values.shape[1]
    grouped = directions.unflatten(2, (kv, -1)).transpose(1, 2).flatten(2, 3)
    return (grouped @ values.transpose(2, 3)).unflatten(2, (targets, -1)).transpose(1, 2).flatten(2, 3)


@dataclass(frozen=True)
class Judged:
    """Proximities at some targets of each prompt: of the parts of attention, and of the `others` beside them.

    `parts` is ε where a part was not worked out because it is sure to have no more, and 0 where there is no part or,
    with "route", where it was skipped. The sum of all proximities lies between `low` and `high`; they differ
    only with "route". `clipped` counts parts known to have proximity ε, `skipped` those that were not worked out.
    """

    parts: Float64[Tensor, "pair target head pos"]
    others: Float64[Tensor, "pair target other"]
    low: Float64[Tensor, "pair target"]
    high: Float64[Tensor, "pair target"]
    clipped: Int[Tensor, "pair target"]
    evaluated: Int[Tensor, "pair target"]
    skipped: Int[Tensor, "pair target"]


@dataclass(frozen=True)
class Judge:
    """Works out proximities of attention's parts to the sum at each target.

    `exists` marks the parts there are: sources up to the target. `others` are the proximities of what else is summed.
    """

    heads: Heads
    total: Float[Tensor, "pair target d_model"]
    exists: Marks
    others: Float64[Tensor, "pair target other"]
    threshold: float

    def run(self, prune: str) -> Judged:
        """Work out the parts that matter.

        "none": all. "exact": not those whose bound is ε or less, for their proximity is ε then. "route": nor those
        whose bound cannot exceed the threshold's share of a lower bound of the sum; where a decision is not certain
        without them, all are worked out after all.
        """
        sure = self.exists & (self.bound <= EPSILON) if prune != "none" else torch.zeros_like(self.exists)
        chosen = self.exists & ~sure
        if prune == "route":
            least = self.others.sum(-1) + EPSILON * self.exists.sum((2, 3))
            chosen = chosen & (self.bound.double() > self.threshold * least[..., None, None])
        known = self.proximities(chosen)
        low, high = self.sums(known, chosen, sure)
        if prune == "route":
            # Sums of both kinds are rounded, so a decision within a millionth is no decision.
            every = torch.cat([known.flatten(2), self.others], dim=2)
            floor, ceiling = self.threshold * low * (1 - 1e-6), self.threshold * high * (1 + 1e-6)
            open_still = ((every > floor[..., None]) & (every <= ceiling[..., None])).any(-1)
            more = self.exists & ~sure & ~chosen & open_still[..., None, None]
            known, chosen = known + self.proximities(more), chosen | more
            low, high = self.sums(known, chosen, sure)
        parts = torch.where(sure, EPSILON, known)
        clipped = sure | (chosen & (known <= EPSILON))
        return Judged(
            parts=parts,
            others=self.others,
            low=low,
            high=high,
            clipped=clipped.sum((2, 3)) + (self.others <= EPSILON).sum(-1),
            evaluated=chosen.sum((2, 3)),
            skipped=(self.exists & ~chosen).sum((2, 3)),
        )

    @cached_property
    def bound(self) -> PerPart:
        """Return what no proximity exceeds: sign(y) · part, with room for rounding."""
        weight, directions = self.heads.output.weight, sign_of(self.total) * self.heads.factor
        pulled = torch.einsum("pnd,hcd->pnhc", directions, weight)
        size = torch.einsum("pnd,hcd->pnhc", self.heads.factor.abs(), weight.abs())
        values, width = self.heads.values, weight.shape[1] + weight.shape[2]
        rounding = torch.finfo(weight.dtype).eps * width
        return self.heads.pattern * (_products(pulled, values) + rounding * _products(size, values.abs()))

    def sums(self, known: Float64[Tensor, "pair target head pos"], chosen: Marks, sure: Marks) -> tuple[Tensor, Tensor]:
        """Bound the sum of all proximities from what is known and the bounds of what is not."""
        rest = self.exists & ~chosen
        low = known.sum((2, 3)) + EPSILON * rest.sum((2, 3)) + self.others.sum(-1)
        unknown = rest & ~sure
        if not bool(unknown.any()):
            return low, low
        more = torch.where(unknown, (self.bound.double() - EPSILON).clamp_min(0), 0.0)
        return low, low + more.sum((2, 3))

    def proximities(self, chosen: Marks) -> Float64[Tensor, "pair target head pos"]:
        """Work out the proximities of the chosen parts; 0 elsewhere."""
        found = torch.zeros(chosen.shape, dtype=torch.float64, device=chosen.device)
        if not bool(chosen.any()):
            return found
        sign, size = sign_of(self.total), self.total.abs()
        rows, index = self.heads.mapped(chosen.any(1))
        at = chosen.nonzero()
        for few in at.split(max(1, CHUNK // rows.shape[1])):
            pair, target = few[:, 0], few[:, 1]
            towards = self.heads.part(few, rows, index) * sign[pair, target]
            found[tuple(few.unbind(1))] = proximity_of(towards, size[pair, target])
        return found
