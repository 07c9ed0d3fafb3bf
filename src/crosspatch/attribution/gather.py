"""Run prompts whole and keep what their last tokens saw: the stream, the parts, attention rows and values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosspatch.models.anatomy import Anatomy, Point
from crosspatch.models.blocks import at_least_single, embed
from crosspatch.models.hooks import attach
from crosspatch.models.model import Model
from crosspatch.models.proof import distance
from crosspatch.models.runs import Lane, Prompts, Run, run_lanes, workbench
from crosspatch.models.weights import untracked

ROOM = 1 << 30  # bytes of activations held at once


@dataclass
class LastRows:
    """Activations at the last token of each prompt, in float32 at least, prompts in the order given.

    `stream[l]` `[pair, d_model]` enters block l, the last one leaves the last block; `seen[kind][l]` `[pair, width]`.
    For a split by source token, `patterns[l]` `[pair, head, key]` and `values[l]` `[pair, kv, key, d_head]`.
    """

    stream: list[Tensor] = field(default_factory=list)
    seen: dict[str, list[Tensor]] = field(default_factory=dict)
    patterns: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


def last_rows(model: Model, sequences: Sequence[Sequence[int]], kinds: Sequence[str]) -> LastRows:
    """Run prompts in batches that fit in memory and keep what their last tokens saw."""
    batches = list(batches_of(model.anatomy, sequences, kinds))
    widest = max(len(each) for each in sequences)
    found = [_batch(model, [sequences[i] for i in batch], kinds, widest) for batch in batches]
    order = torch.tensor([index for batch in batches for index in batch]).argsort().to(model.device)

    def joined(pick: "list[list[Tensor]]") -> list[Tensor]:
        return [torch.cat(parts)[order] for parts in zip(*pick, strict=True)]

    return LastRows(
        stream=joined([each.stream for each in found]),
        seen={kind: joined([each.seen[kind] for each in found]) for kind in found[0].seen},
        patterns=joined([each.patterns for each in found]),
        values=joined([each.values for each in found]),
    )


def batches_of(anatomy: Anatomy, sequences: Sequence[Sequence[int]], kinds: Sequence[str]) -> Iterator[list[int]]:
    """Cut prompts into batches whose activations fit in memory, each of one length where the model needs that."""
    order = range(len(sequences))
    if anatomy.by_length:
        order = sorted(order, key=lambda i: len(sequences[i]))
    widths = 4 * anatomy.d_model + 2 * anatomy.heads * anatomy.d_head + anatomy.d_mlp * ("mlp.hidden" in kinds)
    batch: list[int] = []
    used = 0
    for index in order:
        length = len(sequences[index])
        pattern = anatomy.heads * length * ("attn.pattern" in kinds)
        cost = 4 * anatomy.layers * length * (widths + pattern)
        other = anatomy.by_length and batch and len(sequences[batch[0]]) != length
        if batch and (used + cost > ROOM or other):
            yield batch
            batch, used = [], 0
        batch, used = [*batch, index], used + cost
    yield batch


def _batch(model: Model, sequences: Sequence[Sequence[int]], kinds: Sequence[str], widest: int) -> LastRows:
    prompts = Prompts.of(sequences, model.device)
    with workbench(model, prompts) as bench:
        run = run_lanes(bench, [Lane(prompts, kinds)])[0]
    last = torch.tensor(prompts.lengths, device=model.device) - 1
    with torch.inference_mode(False), torch.no_grad():
        run.values = [model.anatomy.all_heads(value, 1) for value in run.values] if run.patterns else run.values
        return _kept(run, last, widest)


def _kept(run: Run, last: Tensor, widest: int) -> LastRows:
    rows = torch.arange(len(last), device=last.device)

    def at_last(tensor: Tensor) -> Tensor:
        # layers may be on several devices
        return at_least_single(tensor[rows.to(tensor.device), last.to(tensor.device)]).to(last.device)

    kept = LastRows([at_last(stream) for stream in run.stream])
    for kind, layers in run.seen.items():
        kept.seen[kind] = [at_last(layers[layer]) for layer in sorted(layers)]
    for layer in sorted(run.patterns):
        pattern, value = run.patterns[layer], run.values[layer]
        missing = widest - pattern.shape[-1]
        kept.patterns.append(
            torch.nn.functional.pad(at_least_single(pattern.to(last.device)[rows, :, last]), (0, missing))
        )
        kept.values.append(torch.nn.functional.pad(at_least_single(value.to(last.device)), (0, 0, 0, missing)))
    return kept


@dataclass(frozen=True)
class Embedding:
    """What enters the first block, as token and position; `position` is None where there is nothing to add.

    `whole` is the reason why the two could not be told apart, '' if they were.
    """

    token: Float[Tensor, "pair d_model"]
    position: Float[Tensor, "pair d_model"] | None = None
    whole: str = ""


def split_embedding(model: Model, sequences: Sequence[Sequence[int]], entering: Tensor, tolerance: float) -> Embedding:
    """Split what enters the first block at the last token: without token embeddings there are positions alone.

    The split is believed if twice the token embeddings give twice the token's share.
    """
    alone, twice = (_last_embedded(model, sequences, factor) for factor in (0.0, 2.0))
    if not distance(twice - alone, 2 * (entering - alone)) <= tolerance:
        return Embedding(entering, whole="a norm or another step mixes the token with its position")
    return Embedding(entering, None) if not bool(_nonzero(alone)) else Embedding(entering - alone, alone)


def _nonzero(tensor: Tensor) -> Bool[Tensor, ""]:
    return (tensor != 0).any()


def _last_embedded(model: Model, sequences: Sequence[Sequence[int]], factor: float) -> Float[Tensor, "pair d_model"]:
    """Embed prompts with their token embeddings multiplied; return the last token of each."""
    rows: list[Tensor] = []
    handle = attach(model.module, Point(model.anatomy.embedding, "output"), lambda value: value * factor)
    try:
        with untracked(model.module):
            for tokens in sequences:
                rows.append(embed(model.module, model.anatomy, torch.tensor([tokens], device=model.device))[0, -1])
    finally:
        handle.remove()
    with torch.inference_mode(False), torch.no_grad():
        return at_least_single(torch.stack(rows))
