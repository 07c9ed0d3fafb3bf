"""Call the parts of a model one by one: what its own forward hands to each block, the embedding, the logits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from crosspatch.models.anatomy import Anatomy, Readout
from crosspatch.models.hooks import main_tensor
from crosspatch.models.weights import Parts, is_fsdp, parts_of


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
    """Let calls of every block be calls of `stand_in(index, …)` for a while, hooks and all left out.

    Hooks of a block that is not run have nothing to do; those that fetch its weights (offload, FSDP) cost much.
    """
    before = [block.__dict__.get("_call_impl") for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.__dict__["_call_impl"] = partial(stand_in, index)
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                block.__dict__.pop("_call_impl", None)
            else:
                block.__dict__["_call_impl"] = own


def record_blocks(
    module: nn.Module, anatomy: Anatomy, ids: Int[Tensor, "batch pos"], mask: Tensor | None = None
) -> tuple[Tensor, list[Handed]]:
    """Run the model's own forward with its blocks stubbed: the embedded prompts and what each block would be handed.

    `mask` is the usual 0/1 attention mask `[batch, pos]`.
    """
    blocks, seen, embedded = block_list(module, anatomy), {}, {}
    # FSDP counts on the end of each forward that it saw begin; a forward's end is cheap with few logits.
    whole_forward = is_fsdp(module)
    few = {"logits_to_keep": 1} if whole_forward and "logits_to_keep" in signature(module.forward).parameters else {}

    def forward(index: int, *args: Any, **kwargs: Any) -> Any:
        hidden = main_tensor(args, kwargs)
        embedded.setdefault(0, hidden)
        rest = args[1:] if args and args[0] is hidden else args
        seen[index] = Handed(rest, {name: value for name, value in kwargs.items() if value is not hidden})
        if index == len(blocks) - 1 and not whole_forward:
            raise _Enough
        return (hidden, None) if anatomy.tuples else hidden

    with stand_ins(blocks, forward), suppress(_Enough):
        module(input_ids=ids, attention_mask=mask, use_cache=False, **few)
    return embedded[0], [seen[index] for index in range(len(blocks))]


def embed(module: nn.Module, anatomy: Anatomy, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    """Return what the first block reads, computed by the model's own forward."""
    return record_blocks(module, anatomy, ids)[0]


def at_least_single(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 if it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def readout_parts(module: nn.Module, readout: Readout, ids: Int[Tensor, "*shape"] | None = None) -> "nn.Module | Parts":
    """Return where `final_stream` and `logits_of` find their weights: the module, or its parts with real weights.

    Given the tokens that will be asked for, only their rows of the unembedding are fetched. Ranks must ask together.
    """
    return parts_of(module, (*readout.norms, readout.unembed), table=readout.unembed, ids=ids)


def final_stream(
    module: nn.Module | Parts, readout: Readout, hidden: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_out"]:
    """Apply the norms between the last block and the unembedding, in float32 at least, whatever the model's own."""
    stream = at_least_single(hidden)
    for path in readout.norms:
        part = module.get_submodule(path)
        stream = stream.to(next((p.device for p in part.parameters()), stream.device))
        weights = {name: at_least_single(value) for name, value in part.state_dict(keep_vars=True).items()}
        stream = functional_call(part, weights, (stream,))
    return stream


def logits_of(
    module: nn.Module | Parts,
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
    stream = stream.to(weight.device)
    if ids is not None:
        ids = (module.places(ids) if isinstance(module, Parts) else ids).to(weight.device)
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
