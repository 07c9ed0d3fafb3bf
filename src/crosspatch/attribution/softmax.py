"""The fix of queries and keys: what a changed query or key does through the softmax itself, linear only behind it.

A saturated softmax has no gradient, though another query or key would move it (Kramár et al. 2024, "AtP*", section
3.1.1). So attention is run again with the source's queries; and for keys, where one score of each row changes, the new
row follows from the old one in closed form.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.opened import Opened
from crosspatch.attribution.places import Table
from crosspatch.attribution.tape import Tape
from crosspatch.models.attention import Attended, Segment, attend_again
from crosspatch.models.blocks import at_least_single
from crosspatch.models.scores import Scores, masked, raw_scores, require_scores

Heads = Float[Tensor, "drop row query head d_head"]


def query_table(opened: Opened, layer: int, tape: Tape, heads: Mapping[int, Tensor]) -> Table:
    """Return the effect of each query `[drop, token, head]`: attention with the source's query at each position.

    Every query has a row of the softmax of its own, so all of them are changed in one call of the model's own kernel.
    `heads` are the gradients of what attention gave.
    """
    parts = []
    for index, seen in tape.attended.items():
        segment, job = opened.lane.segments[index], opened.bench.job
        query = _own(opened.source.queries[layer], segment)
        moved = at_least_single(attend_again(job, seen, query=query)) - at_least_single(seen.out.detach())
        effect = torch.einsum("krqhd,rqhd->krqh", at_least_single(heads[index]), moved)
        parts.append(effect.flatten(1, 2))
    return torch.cat(parts, dim=1)


def key_table(opened: Opened, layer: int, tape: Tape, heads: Mapping[int, Tensor]) -> Table:
    """Return the effect of each key `[drop, token, kv]`, one at a time, on all queries that attend to it.

    Raises:
        NotProved: the scores of this family's attention are not understood.
    """
    parts = []
    for index, seen in ((index, _detached(seen)) for index, seen in tape.attended.items()):
        segment = opened.lane.segments[index]
        raw = raw_scores(seen)
        scores = masked(seen, raw)
        require_scores(opened.bench.job, seen, scores)
        own = slice(segment.start, segment.start + segment.span)
        change = raw_scores(seen, key=_own(opened.source.turned[layer], segment)) - raw[..., own]
        groups = seen.query.shape[1] // seen.key.shape[1]
        values = at_least_single(seen.value).repeat_interleave(groups, dim=1)
        slope = torch.einsum("krqhd,rhjd->krhqj", at_least_single(heads[index]), values)
        effect = key_effects(scores, change, slope).unflatten(2, (-1, groups)).sum(3)
        parts.append(effect.transpose(2, 3).flatten(1, 2))
    return torch.cat(parts, dim=1)


def joint_key_table(opened: Opened, layer: int, tape: Tape, heads: Mapping[int, Tensor]) -> Table:
    """Return the effect of all changed keys of a head at once `[drop, pair, kv]`: attention with the source's keys."""
    kv = opened.source.turned[layer].shape[1]
    drops, pairs = len(next(iter(heads.values()))), len(opened.local.numbers)
    table = next(iter(heads.values())).new_zeros(drops, pairs, kv, dtype=torch.float32)
    for index, seen in tape.attended.items():
        segment, job = opened.lane.segments[index], opened.bench.job
        key = _own(opened.source.turned[layer], segment)
        key = torch.cat([seen.key.detach()[:, :, : segment.start], key], dim=2)
        moved = at_least_single(attend_again(job, seen, key=key)) - at_least_single(seen.out.detach())
        effect = torch.einsum("krqhd,rqhd->krh", at_least_single(heads[index]), moved)
        table = table.to(effect.dtype)
        table[:, segment.pairs.to(table.device)] = effect.unflatten(2, (kv, -1)).sum(3)
    return table


def key_effects(
    scores: Scores,
    change: Float[Tensor, "row head query own"],
    slope: Float[Tensor, "drop row head query key"],
) -> Float[Tensor, "drop row head own"]:
    """Return, for each of the last keys alone, Σ over queries and keys of (new − old pattern) · slope.

    Where one score of a row moves by δ, the other keys keep their proportions: with l = log(p / (1 − p)) the key's own
    share goes from σ(l) to σ(l + δ), at the cost of the mean of the rest, so the row's sum of slopes moves by
    (σ(l + δ) − σ(l)) · (slope − mean slope of the others). `change` is δ; `slope` is the gradient of the pattern. This
    is equation 10 of the paper in closed form, in terms that stay exact where one key has nearly all the attention.
    """
    keys, own = scores.of.shape[-1], change.shape[-1]
    every = scores.all
    slope = slope if scores.sink is None else torch.cat([slope, slope.new_zeros(*slope.shape[:-1], 1)], dim=-1)
    best = every.argmax(-1, keepdim=True)
    rest = every.scatter(-1, best, -torch.inf)  # all but the key with most attention
    rest_lse = rest.logsumexp(-1, keepdim=True)
    pattern = every.softmax(-1)
    is_best = torch.zeros_like(every, dtype=torch.bool).scatter(-1, best, value=True)
    # p of any key but the best is at most one half
    small = torch.where(is_best, 0.0, pattern)
    others_lse = torch.where(is_best, rest_lse, every.logsumexp(-1, keepdim=True) + torch.log1p(-small))
    odds = every - others_lse
    mean = (pattern * slope).sum(-1, keepdim=True)
    weights = torch.where(rest_lse == -torch.inf, 0.0, (rest - rest_lse).exp())
    others = torch.where(is_best, (weights * slope).sum(-1, keepdim=True), (mean - small * slope) / (1 - small))
    last = slice(keys - own, keys)
    odds, gain = odds[..., last], (slope - others)[..., last]
    moved = torch.sigmoid(odds + change) - torch.sigmoid(odds)
    moved = torch.where(torch.isfinite(odds), moved, 0.0)  # a masked key stays masked, a lone one has all there is
    return (moved * gain).sum(-2)


def _own(values: Float[Tensor, "pair head pos d_head"], segment: Segment) -> Float[Tensor, "row head own d_head"]:
    rows = segment.pairs.to(values.device)
    return values[rows][:, :, segment.start : segment.start + segment.span]


def _detached(seen: Attended) -> Attended:
    parts = (seen.query, seen.key, seen.value, seen.out)
    query, key, value, out = (part.detach() for part in parts)
    return Attended(seen.module, query, key, value, seen.mask, seen.settings, out)
