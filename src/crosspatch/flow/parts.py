"""The parts of attention at some targets: each head's share of each source token, and its proximity to the sum.

A part is α · (value_j W_O^h) ⊙ factor. Its proximity is sign(y) · part − 2 Σ_d max(0, sign(y_d) part_d − |y_d|). The
first term needs no part: the sign is pulled back through W_O once per target and multiplied with the values. It is a
bound that decides which parts are worked out at all; and of a small part only few entries can exceed those of the sum.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from crosspatch.flow.proximity import EPSILON, proximity_of, sign_of
from crosspatch.flow.reading import Reading
from crosspatch.models.output import Output

CHUNK = 1 << 18  # numbers of parts that are worked out at once: what a processor's cache holds
FEW = (0, 16, 64, 256)  # entries of a part that are worked out, where no others can exceed those of the sum

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
            chosen = chosen & (self.bound > self.threshold * least[..., None, None])
        known = self.whole(chosen) if prune == "none" else self.short(chosen)
        low, high = self.sums(known, chosen, sure)
        if prune == "route":
            # Sums of both kinds are rounded, so a decision within a millionth is no decision.
            every = torch.cat([known.flatten(2), self.others], dim=2)
            floor, ceiling = self.threshold * low * (1 - 1e-6), self.threshold * high * (1 + 1e-6)
            open_still = ((every > floor[..., None]) & (every <= ceiling[..., None])).any(-1)
            more = self.exists & ~sure & ~chosen & open_still[..., None, None]
            known, chosen = known + self.short(more), chosen | more
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
    def towards(self) -> Float64[Tensor, "pair target head pos"]:
        """Return sign(y) · part of every part, in double precision: what proximities are without what exceeds |y|."""
        directions = (sign_of(self.total) * self.heads.factor).double()
        pulled = torch.einsum("pnd,hcd->pnhc", directions, self.heads.output.weight.double())
        return self.heads.pattern.double() * _products(pulled, self.heads.values.double())

    @cached_property
    def bound(self) -> Float64[Tensor, "pair target head pos"]:
        """Return what no proximity exceeds: sign(y) · part, with room for the rounding of parts worked out."""
        weight, values = self.heads.output.weight, self.heads.values
        size = torch.einsum("pnd,hcd->pnhc", self.heads.factor.abs(), weight.abs())
        rounding = torch.finfo(weight.dtype).eps * (weight.shape[1] + weight.shape[2])
        return self.towards + rounding * self.heads.pattern * _products(size, values.abs())

    def sums(self, known: Float64[Tensor, "pair target head pos"], chosen: Marks, sure: Marks) -> tuple[Tensor, Tensor]:
        """Bound the sum of all proximities from what is known and the bounds of what is not."""
        rest = self.exists & ~chosen
        low = known.sum((2, 3)) + EPSILON * rest.sum((2, 3)) + self.others.sum(-1)
        unknown = rest & ~sure
        if not bool(unknown.any()):
            return low, low
        more = torch.where(unknown, (self.bound - EPSILON).clamp_min(0), 0.0)
        return low, low + more.sum((2, 3))

    def whole(self, chosen: Marks) -> Float64[Tensor, "pair target head pos"]:
        """Work out the proximities of the chosen parts from all their entries; 0 elsewhere."""
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

    def short(self, chosen: Marks) -> Float64[Tensor, "pair target head pos"]:
        """Work out the same from as few entries of each part as can exceed those of the sum; 0 elsewhere.

        Entry d of a part is at most α ‖v_j‖ · factor_d · max_h ‖W_O^h[:, d]‖, so each target's entries are put in the
        order of how large a part must be to exceed them, and a part needs the first of these alone.
        """
        weight = self.heads.output.weight
        largest = self.heads.factor.abs() * weight.norm(dim=1).amax(0)
        reach, order = (self.total.abs() / largest.clamp_min(torch.finfo(weight.dtype).tiny)).sort(-1)
        norms = self.heads.values.norm(dim=-1).repeat_interleave(self.heads.repeats, dim=1)
        longest = (self.heads.pattern * norms[:, None] * (1 + 1e-4)).flatten(2).contiguous()
        needed = torch.searchsorted(reach, longest, right=True).view(chosen.shape)
        found = self.whole(chosen & (needed > FEW[-1]))
        short = chosen & (needed <= FEW[-1])
        found = torch.where(short, self.towards, found)
        rows, index = self.heads.mapped((short & (needed > 0)).any(1))
        for least, most in pairwise(FEW):
            at = (short & (needed > least) & (needed <= most)).nonzero()
            for few in at.split(max(1, CHUNK // most)):
                found[tuple(few.unbind(1))] -= 2 * self.excess(few, rows, index, order[..., :most])
        return torch.where(short, found.clamp_min(EPSILON), found)

    def excess(
        self,
        at: Int[Tensor, "part 4"],
        rows: Float[Tensor, "row d_model"],
        index: Int[Tensor, "pair head pos"],
        order: Int[Tensor, "pair target entry"],
    ) -> Float64[Tensor, " part"]:
        """Add up by how much some entries of parts exceed those of the sum."""
        pair, target, head, source = at.unbind(1)
        entries = order[pair, target]
        signed, size = sign_of(self.total) * self.heads.factor, self.total.abs()
        here = signed.gather(2, order)[pair, target] * self.heads.pattern[pair, target, head, source, None]
        parts = rows[index[pair, head, source][:, None], entries] * here
        return (parts - size.gather(2, order)[pair, target]).clamp_min(0).sum(-1).double()
