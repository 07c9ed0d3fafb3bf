"""Read attention patterns, and what each layer's mask allows, from plain runs of the prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosspatch.models.blocks import at_least_single, block_list
from crosspatch.models.hooks import first_tensor
from crosspatch.models.model import Model
from crosspatch.models.packed import Packed
from crosspatch.models.runs import Bench, Lane, Prompts, run_lanes, workbench
from crosspatch.models.weights import device_of, plain
from crosspatch.sites import Site

ROOM = 1 << 30  # bytes of patterns and values held at once


@dataclass(frozen=True)
class Batch:
    """Some prompts' attention. `examples` are their places in the list of prompts.

    `patterns[l]` is `[example, head, query, key]`, `values[l]` `[example, kv, key, d_head]`, `allowed[l]`
    `[query, key]`: the keys that the layer's mask lets a query see.
    """

    examples: tuple[int, ...]
    lengths: tuple[int, ...]
    patterns: dict[int, Float[Tensor, "example head query key"]]
    values: dict[int, Float[Tensor, "example kv key d_head"]]
    allowed: dict[int, Bool[Tensor, "query key"]]


def read_patterns(model: Model, sequences: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """Run prompts, some at a time, and yield their attention in all layers.

    Raises:
        BadInput: this model gives no patterns; the message has the reason.
    """
    model.anatomy.require("attn.pattern")
    for batch in _batches(model, sequences):
        prompts = Prompts.of([sequences[i] for i in batch], model.device)
        with workbench(model, prompts) as bench:
            run = run_lanes(bench, [Lane(prompts, ("attn.pattern",))])[0]
            allowed = {layer: allowed_keys(bench, layer) for layer in run.patterns}
        at = model.device  # with layers on several devices, each has its own
        with torch.inference_mode(False), torch.no_grad():
            patterns = {layer: at_least_single(pattern).to(at, copy=True) for layer, pattern in run.patterns.items()}
            every = {layer: model.anatomy.all_heads(run.values[layer], 1) for layer in run.patterns}
            values = {layer: at_least_single(value).to(at, copy=True) for layer, value in every.items()}
            seen = {layer: mask.clone() for layer, mask in allowed.items()}
        yield Batch(tuple(batch), prompts.lengths, patterns, values, seen)


def _batches(model: Model, sequences: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Cut prompts into batches whose attention fits in memory, each of one length where the model needs that."""
    anatomy = model.anatomy
    order = (
        sorted(range(len(sequences)), key=lambda i: len(sequences[i])) if anatomy.by_length else range(len(sequences))
    )
    batch: list[int] = []
    for index in order:
        width = max(len(sequences[i]) for i in (*batch, index))
        each = 4 * anatomy.layers * width * (anatomy.heads * width + 2 * anatomy.kv_heads * anatomy.d_head)
        other = anatomy.by_length and batch and len(sequences[batch[0]]) != len(sequences[index])
        if batch and ((len(batch) + 1) * each > ROOM or other):
            yield batch
            batch = []
        batch = [*batch, index]
    yield batch


def allowed_keys(bench: Bench, layer: int) -> Bool[Tensor, "query key"]:
    """Return the keys that a layer's own mask allows: what comes before, or a window of it."""
    width = bench.prompts.ids.shape[1]
    allowed = torch.ones(width, width, dtype=torch.bool, device=bench.prompts.ids.device).tril()
    if isinstance(bench.call, Packed):
        handed = bench.call.handed[layer]
        for mask in _tensors((handed.args, handed.kwargs)):
            if mask.ndim == 4 and mask.shape[-2:] == (width, width):
                seen = mask[0, 0]
                # Masks are true, or zero, where a key may be seen.
                allowed &= seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
    return allowed


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for item in value.values() for tensor in _tensors(item))
    elif isinstance(value, tuple | list):
        yield from (tensor for item in value for tensor in _tensors(item))


def written_sizes(
    model: Model, head: Site, values: Float[Tensor, "example kv key d_head"]
) -> Float[Tensor, "example key"]:
    """Return the length of what a head writes when it attends to one key alone: its value through the projection.

    Attention times this is the weighting of Kobayashi et al. 2020, "Attention is not only a weight", without their
    norm.
    """
    anatomy, unit = model.anatomy, head.unit or 0
    point = anatomy.points["attn.head"]
    projection = plain(block_list(model.module, anatomy)[head.layer or 0].get_submodule(point.path))
    own = values[:, unit // (anatomy.heads // values.shape[1])]
    dtype = next(model.module.parameters()).dtype
    width = max(point.starts) + point.width
    rows = torch.zeros(*own.shape[:2], width, dtype=dtype, device=own.device)
    rows[..., point.columns(unit)] = own.to(dtype)
    rows = rows.to(device_of(projection))
    with torch.inference_mode():
        written = first_tensor(projection(rows)) - first_tensor(projection(torch.zeros_like(rows[:1, :1])))
        return at_least_single(written).norm(dim=-1).to(values.device)
