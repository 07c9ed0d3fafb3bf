"""Call the parts of a model one by one: what its own forward hands to each block, the embedding, the logits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from crosspatch.models.anatomy import Anatomy, Readout
from crosspatch.models.hooks import main_tensor


@dataclass(frozen=True)
class Handed:
    """What the model's own forward hands to one block beside the stream: masks, rotary tables, position ids."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Enough(Exception):
    """Ends a forward early: all that was wanted has been seen."""


def block_list(module: nn.Module, anatomy: Anatomy) -> list[nn.Module]:
    """Return the blocks in order."""
    return list(module.get_submodule(anatomy.blocks))  # pyright: ignore[reportArgumentType]


@contextmanager
def stand_ins(blocks: Sequence[nn.Module], stand_in: Callable[..., Any]) -> Iterator[None]:
    """Let `stand_in(index, …)` be every block's `forward` for a while; instance attributes are put back after."""
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.__dict__["forward"] = partial(stand_in, index)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                block.__dict__.pop("forward", None)
            else:
                block.__dict__["forward"] = own


def record_blocks(
    module: nn.Module, anatomy: Anatomy, ids: Int[Tensor, "batch pos"], mask: Tensor | None = None
) -> tuple[Tensor, list[Handed]]:
    """Run the model's own forward with its blocks stubbed: the embedded prompts and what each block would be handed.

    `mask` is the usual 0/1 attention mask `[batch, pos]`.
    """
    blocks, seen, embedded = block_list(module, anatomy), {}, {}

    def forward(index: int, *args: Any, **kwargs: Any) -> Any:
        hidden = main_tensor(args, kwargs)
        embedded.setdefault(0, hidden)
        rest = args[1:] if args and args[0] is hidden else args
        seen[index] = Handed(rest, {name: value for name, value in kwargs.items() if value is not hidden})
        if index == len(blocks) - 1:
            raise _Enough
        return (hidden, None) if anatomy.tuples else hidden

    with stand_ins(blocks, forward), suppress(_Enough):
        module(input_ids=ids, attention_mask=mask, use_cache=False)
    return embedded[0], [seen[index] for index in range(len(blocks))]


def embed(module: nn.Module, anatomy: Anatomy, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    """Return what the first block reads, computed by the model's own forward."""
    return record_blocks(module, anatomy, ids)[0]


def at_least_single(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 if it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def final_stream(
    module: nn.Module, readout: Readout, hidden: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_out"]:
    """Apply the norms between the last block and the unembedding, in float32 at least, whatever the model's own."""
    stream = at_least_single(hidden)
    for path in readout.norms:
        part = module.get_submodule(path)
        weights = {name: at_least_single(value) for name, value in part.state_dict(keep_vars=True).items()}
        stream = functional_call(part, weights, (stream,))
    return stream


def logits_of(
    module: nn.Module,
    readout: Readout,
    stream: Float[Tensor, "row d_out"],
    ids: Int[Tensor, "row answer"] | None = None,
) -> Float[Tensor, "row column"]:
    """Return logits, in float32 at least, of the whole vocabulary, or of each row's own answer tokens only.

    `stream` is what `final_stream` returns. Rows of the unembedding that no answer needs are never multiplied.
    """
    unembed = module.get_submodule(readout.unembed)
    weight: Tensor = unembed.weight  # pyright: ignore[reportAssignmentType]
    bias: Tensor | None = getattr(unembed, "bias", None)
    if ids is None:
        logits = stream @ at_least_single(weight).T
        logits = logits if bias is None else logits + at_least_single(bias)
    else:
        logits = torch.einsum("rd,rad->ra", stream, at_least_single(weight[ids]))
        logits = logits if bias is None else logits + at_least_single(bias[ids])
    logits = logits * readout.scale
    return readout.softcap * torch.tanh(logits / readout.softcap) if readout.softcap else logits


def logits_by_forward(
    module: nn.Module, anatomy: Anatomy, hidden: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row vocab"]:
    """Return logits through the model's own forward, whose blocks pass the given stream on: slow, and always right."""
    blocks = block_list(module, anatomy)
    out = hidden[:, None]

    def forward(index: int, *args: Any, **kwargs: Any) -> Any:
        stream = out if index == len(blocks) - 1 else main_tensor(args, kwargs)
        return (stream, None) if anatomy.tuples else stream

    ids = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
    with stand_ins(blocks, forward):
        return at_least_single(module(input_ids=ids, use_cache=False).logits[:, -1])
