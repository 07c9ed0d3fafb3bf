"""Run prompts whole and keep the residual stream between all blocks, at each prompt's last token or at every token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.core.errors import UnknownName
from crosspatch.models.anatomy import Anatomy
from crosspatch.models.blocks import at_least_single
from crosspatch.models.model import Model
from crosspatch.models.runs import Lane, Prompts, run_lanes, workbench
from crosspatch.tasks.given import Given, prompts_of

ROOM = 1 << 30  # bytes of activations held at once
AT = ("end", "all")


@dataclass(frozen=True)
class Streams:
    """The residual stream of some prompts, a row a token that is read, in float32 at least.

    `examples` are places in the list of prompts. `layers[0]` enters the first block; `layers[l]` leaves l blocks.
    """

    examples: Int[Tensor, " row"]
    positions: Int[Tensor, " row"]
    layers: tuple[Float[Tensor, "row d_model"], ...]

    def split(self, rows: int) -> "Iterator[Streams]":
        """Yield parts of so many rows."""
        for start in range(0, len(self.examples), rows):
            part = slice(start, start + rows)
            yield Streams(self.examples[part], self.positions[part], tuple(layer[part] for layer in self.layers))


def read_streams(model: Model, sequences: Sequence[Sequence[int]], *, at: str = "end") -> Iterator[Streams]:
    """Run prompts of any lengths, some at a time, and yield the streams of their last tokens, or of all.

    Raises:
        UnknownName: `at` is neither "end" nor "all".
    """
    if at not in AT:
        raise UnknownName.of("place to read at", at, AT)
    for batch in _batches(model.anatomy, sequences):
        prompts = Prompts.of([sequences[i] for i in batch], model.device)
        with workbench(model, prompts) as bench:
            run = run_lanes(bench, [Lane(prompts)])[0]
        lengths = torch.tensor(prompts.lengths)
        there = torch.arange(prompts.ids.shape[1])[None] < lengths[:, None]
        if at == "end":
            there &= torch.arange(prompts.ids.shape[1])[None] == lengths[:, None] - 1
        pairs, positions = there.nonzero(as_tuple=True)
        with torch.inference_mode(False), torch.no_grad():
            # What was made in inference mode could not be differentiated through; layers may be on several devices.
            layers = [stream[pairs.to(stream.device), positions.to(stream.device)] for stream in run.stream]
            kept = tuple(at_least_single(layer).to(model.device) for layer in layers)
        yield Streams(torch.tensor(batch)[pairs], positions, kept)


def _batches(anatomy: Anatomy, sequences: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Cut prompts into batches whose activations fit in memory, each of one length where the model needs that."""
    order = range(len(sequences))
    if anatomy.by_length:
        order = sorted(order, key=lambda i: len(sequences[i]))
    each = 4 * (anatomy.layers + 1) * (2 * anatomy.d_model + 2 * anatomy.kv_heads * anatomy.d_head)
    batch: list[int] = []
    for index in order:
        width = max(len(sequences[i]) for i in (*batch, index))
        other = anatomy.by_length and batch and len(sequences[batch[0]]) != len(sequences[index])
        if batch and ((len(batch) + 1) * width * each > ROOM or other):
            yield batch
            batch = []
        batch = [*batch, index]
    yield batch


def stream_features(
    model: Model, prompts: Given, *, at: str = "end", run: str = "clean"
) -> dict[int, Float[np.ndarray, "row d_model"]]:
    """Return the residual stream of every layer as arrays for a probe: key 0 enters the first block, l leaves l blocks.

    Rows are prompts in the order given (`at="end"`, their last tokens), or all their tokens in order (`at="all"`).

    Raises:
        UnknownName: another place or run.
        BadInput: prompts that this model cannot be run on.
    """
    parts = list(read_streams(model, prompts_of(model, prompts, run=run), at=at))
    order = torch.argsort(torch.cat([part.examples for part in parts]), stable=True).numpy()
    layers = zip(*(part.layers for part in parts), strict=True)
    return {layer: torch.cat(found).cpu().numpy()[order] for layer, found in enumerate(layers)}
