"""The cache of an encoder–decoder: take rows of it, share what rows have alike, hand on what was heard."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def of_rows(past: Any) -> bool:
    """Whether a cache holds its rows in a way that is known here, so that some can be taken."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

    if type(past) is not EncoderDecoderCache:
        return False
    halves = (past.self_attention_cache, past.cross_attention_cache)
    return all(type(half) is DynamicCache for half in halves) and all(
        type(layer) is DynamicLayer and isinstance(layer.keys, Tensor) for half in halves for layer in half.layers
    )


def take_rows(past: Any, rows: Sequence[int], *, share: bool) -> None:
    """Let a cache have these of its rows, in this order; one may be taken often."""
    for half in (past.self_attention_cache, past.cross_attention_cache):
        for layer in half.layers:
            layer.keys, layer.values = (taken(each, rows, share=share) for each in (layer.keys, layer.values))


def taken(tensor: Tensor, rows: Sequence[int], *, share: bool) -> Tensor:
    """Return rows of a tensor; with `share`, rows that are all the same lie in one memory."""
    if share and (len(set(rows)) == 1 or (len(tensor) > 1 and tensor.stride(0) == 0)):
        return tensor[rows[0] : rows[0] + 1].expand(len(rows), *tensor.shape[1:])
    return tensor.index_select(0, torch.tensor(rows, dtype=torch.long, device=tensor.device))


def only_heard(past: Any) -> Any:
    """Return a cache without tokens, with the keys and values of what the encoder gave from another."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), past.cross_attention_cache)


def of_heard(past: Any) -> Iterator[Tensor]:
    """Yield the keys and values of what the encoder gave."""
    for layer in past.cross_attention_cache.layers:
        yield from (layer.keys, layer.values)
