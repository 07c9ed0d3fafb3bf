"""Logit lens of a stack of any module: decode its stream after every block by the module's own readout."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosspatch.core.errors import BadInput, NotProved, UnknownName
from crosspatch.lenses.decoding import BYTES
from crosspatch.lenses.lens_view import LensView
from crosspatch.lenses.reading import Reader
from crosspatch.lenses.streams import Streams
from crosspatch.modules import Stack, Trial
from crosspatch.modules.sweeping import viewed
from crosspatch.replay import see

_NORMS = ("layer_norm", "final_layer_norm", "layernorm", "norm", "ln_f", "final_norm")
_CLOSE = 1e-4  # of the largest logit


@dataclass(frozen=True)
class StackReadout:
    """From a stack's last stream to logits: a norm (None where there is none), a scale, the unembedding."""

    norm: nn.Module | None
    scale: float
    unembed: nn.Module

    def logits(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Return the logits that the module would give if this were the stack's last stream."""
        normed = stream if self.norm is None else self.norm(stream)
        return self.unembed(normed * self.scale)

    @property
    def rows(self) -> int:
        """How many rows are decoded at once."""
        weight: Any = self.unembed.weight
        return max(1, BYTES // (4 * len(weight)))


def logit_lens_any(
    trial: Trial,
    ids: Int[Tensor, "example pos"],
    *,
    words: Callable[[Sequence[int]], Sequence[str]],
    stack: str | None = None,
    k: int = 5,
    run: str = "clean",
) -> LensView:
    """Decode the stream of a trial's stack before its first block and after each one, at every token.

    `ids` are the tokens that the stack reads (None: the last stack of a run), of which each example has as many
    as the trial's `lengths` say for that stack; `words` writes token ids as text. The last layer is the module's own
    distribution over the next token, and its likeliest token is the target that the others are compared with. Norm,
    scale and unembedding are found by the names that architectures share, and proved on this run to give the module's
    logits. nostalgebraist 2020; for speech decoders as in Glazer et al. 2025 (arXiv 2508.15882).

    Raises:
        UnknownName: another run or stack.
        BadInput: ids that do not fit the trial.
        NotProved: no norm and unembedding gave the module's logits.
        NotFinite: a layer decodes to no number.

    >>> view = logit_lens_any(trial, said, words=tokenizer.convert_ids_to_tokens)  # doctest: +SKIP
    """
    if run not in ("clean", "corrupt"):
        raise UnknownName.of("run", run, ("clean", "corrupt"))
    own = _stack(trial, stack)
    real = list(trial.lengths.get(own.name, (ids.shape[1],) * trial.count))
    if len(ids) != trial.count or len(real) != trial.count or max(real) > ids.shape[1] or min(real) < 1:
        raise BadInput(f"ids of shape {list(ids.shape)} with lengths {real} do not fit a trial of {trial.count} pairs.")
    streams, logits = _streams(trial, own, run)
    if streams[-1].shape[:2] != ids.shape or logits.shape[:2] != ids.shape:
        raise BadInput(
            f"stack {own.name!r} reads {list(streams[-1].shape[:2])} tokens and gives logits {list(logits.shape)}, and "
            f"ids have {list(ids.shape)}: give the tokens that this stack reads."
        )
    readout = find_readout(trial.module, own, streams[-1], logits=logits)
    sheet = _sheet(streams, Reader(readout, None, None, k), real)
    known = np.unique(sheet["top"][sheet["top"] >= 0]).tolist()
    return LensView(
        **sheet,
        tokens=tuple(tuple(words(row[:many])) for row, many in zip(ids.tolist(), real, strict=True)),
        words=dict(zip(known, words(known), strict=True)),
        at="all",
        target="the last layer's top token",
        lens="logit lens",
        run=run,
        model=type(trial.module).__name__,
        task=trial.name,
    )


def _stack(trial: Trial, name: str | None) -> Stack:
    if not trial.stacks:
        raise BadInput(f"a {type(trial.module).__name__} has no stack of blocks whose layers could be decoded.")
    found = {each.name: each for each in trial.stacks}
    if name is not None and name not in found:
        raise UnknownName.of("stack", name, tuple(found))
    return trial.stacks[-1] if name is None else found[name]


def find_readout(
    module: nn.Module, stack: Stack, last: Float[Tensor, "example pos d_model"], *, logits: Tensor
) -> StackReadout:
    """Return the norm, scale and unembedding that turn a stack's last stream into the module's logits.

    Raises:
        NotProved: none of those that architectures name does.
    """
    unembed: Any = getattr(module, "get_output_embeddings", lambda: None)()
    for readout in _candidates(module, stack, unembed):
        with torch.no_grad():
            made = readout.logits(last.flatten(0, 1)).view(*last.shape[:2], -1)
        if made.shape == logits.shape and (made - logits).abs().max() <= _CLOSE * logits.abs().max():
            return readout
    raise NotProved(
        f"no norm beside the blocks of {stack.name or 'this module'} followed by the output embedding gives the logits "
        f"of this {type(module).__name__}, so its layers cannot be decoded by them. Patch or probe its streams instead."
    )


def _candidates(module: nn.Module, stack: Stack, unembed: nn.Module | None) -> Iterator[StackReadout]:
    if unembed is None:
        return
    holder = module.get_submodule(stack.blocks[0].rsplit(".", 2)[0] if stack.blocks[0].count(".") > 1 else "")
    weight: Any = unembed.weight
    # Tied T5s scale the stream down before they unembed it.
    for scale in (1.0, weight.shape[1] ** -0.5):
        for norm in (*(getattr(holder, name, None) for name in _NORMS), None):
            yield StackReadout(norm, scale, unembed)


def _streams(trial: Trial, stack: Stack, run: str) -> tuple[list[Tensor], Tensor]:
    """Run the module once; return the stack's streams, each `[example, pos, d_model]`, and its logits."""
    places = [stack.places[0]["resid.pre"], *(layer["resid.post"] for layer in stack.places)]
    output, values = see(trial.module, trial.inputs(run), tuple(place.spot for place in places))
    logits = getattr(output, "logits", None)
    if logits is None:
        raise NotProved(f"a {type(trial.module).__name__} gives no logits: a logit lens needs them.")
    return [viewed(trial, values[place.spot], place.spot) for place in places], logits


def _sheet(streams: Sequence[Tensor], reader: Reader, real: Sequence[int]) -> dict[str, np.ndarray]:
    """Read every real token at every layer into arrays `[example, layer, read]`."""
    shape = (len(real), len(streams), max(real))
    sheet = reader.blank(shape)
    there = torch.arange(streams[0].shape[1])[None] < torch.tensor(real)[:, None]
    examples, positions = there.nonzero(as_tuple=True)
    layers = tuple(stream[examples, positions] for stream in streams)
    with torch.no_grad():
        for part in Streams(examples, positions, layers).split(reader.decoder.rows):
            reader.fill(sheet, part, part.positions.numpy())
    return sheet
