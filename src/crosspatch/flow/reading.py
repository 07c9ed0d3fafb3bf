"""Run prompts once and keep what routes are made of: the stream, what parts add, values, and queries and keys."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.core.errors import NotFinite
from crosspatch.models.anatomy import Anatomy
from crosspatch.models.attention import Job, pattern_of
from crosspatch.models.blocks import at_least_single, block_list
from crosspatch.models.model import Model
from crosspatch.models.output import Output, output_of
from crosspatch.models.runs import Lane, Prompts, Run, run_lanes, workbench

NEEDED = ("attn.head", "attn.out", "mlp.out")
ROOM = 1 << 30  # bytes of activations held at once


@dataclass(frozen=True)
class Reading:
    """One run of some prompts. Attention patterns are not kept: the rows that are asked for are made when needed."""

    model: Model
    prompts: Prompts
    run: Run
    job: Job

    @property
    def anatomy(self) -> Anatomy:
        """The model's anatomy."""
        return self.model.anatomy

    def stream(self, layer: int) -> Float[Tensor, "pair pos d_model"]:
        """Return the stream that enters a block."""
        return at_least_single(self.run.stream[layer]).to(self.prompts.ids.device)

    def added(self, kind: str, layer: int) -> Float[Tensor, "pair pos width"]:
        """Return what passed at a kind of site."""
        return at_least_single(self.run.seen[kind][layer]).to(self.prompts.ids.device)

    def heads(self, layer: int) -> Float[Tensor, "pair pos head d_head"]:
        """Return what the heads gave."""
        columns = self.anatomy.points["attn.head"].columns(None)
        return self.added("attn.head", layer)[..., columns].unflatten(-1, (self.anatomy.heads, -1))

    def values(self, layer: int) -> Float[Tensor, "pair kv pos d_head"]:
        """Return the values that attention weighs; a value bias is in them, once."""
        return at_least_single(self.run.values[layer]).to(self.prompts.ids.device)

    def pattern(self, layer: int, where: Int[Tensor, "pair target"]) -> Float[Tensor, "pair target head pos"]:
        """Return the attention rows of some targets of each prompt, by the model's own kernel."""
        queries, kernel = self.run.queries[layer], self.run.kernels[layer]
        where = where.to(queries.device)
        pairs = torch.arange(len(where), device=where.device)[:, None]
        asked = replace(
            kernel,
            query=queries.transpose(1, 2)[pairs, where].transpose(1, 2),
            key=self.run.turned[layer],
            value=self.run.values[layer],
            mask=self._mask(layer, where),
        )
        return at_least_single(pattern_of(self.job, asked)).transpose(1, 2).to(self.prompts.ids.device)

    def _mask(self, layer: int, where: Int[Tensor, "pair target"]) -> Float[Tensor, "pair heads target pos"]:
        """Return the targets' rows of the model's own mask; what is behind a prompt's end is behind its tokens too."""
        mask, queries = self.run.kernels[layer].mask, self.run.queries[layer]
        if mask is None:
            width = queries.shape[2]
            mask = torch.full((1, 1, width, width), torch.finfo(queries.dtype).min, device=where.device).triu(1)
        return mask[0][:, where].transpose(0, 1)

    def output(self, layer: int) -> Output:
        """Return what the heads of a layer are written through."""
        return output_of(block_list(self.model.module, self.anatomy)[layer], self.anatomy)


@contextmanager
def read(model: Model, sequences: Sequence[Sequence[int]]) -> Iterator[Reading]:
    """Run prompts through the model, once; what was read may be used while the block runs.

    Raises:
        NotFinite: the stream of a prompt is not finite.
    """
    prompts = Prompts.of(sequences, model.device)
    with workbench(model, prompts) as bench:
        run = run_lanes(bench, [Lane(prompts, NEEDED, scored=True)])[0]
        _require_finite(run, prompts)
        yield Reading(model, prompts, run, bench.job)


def _require_finite(run: Run, prompts: Prompts) -> None:
    for layer, stream in enumerate(run.stream):
        bad = (~torch.isfinite(stream)).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            tokens = prompts.ids[bad[0], : prompts.lengths[bad[0]]].tolist()
            what = "its embedding" if layer == 0 else f"what block {layer - 1} writes"
            raise NotFinite(
                f"the prompt of token ids {tokens[:12]} gives a stream that is not finite ({what}), so nothing can be "
                "split into parts. Open the model in float32; if that does not help, its weights hold NaN."
            )


def batches_of(anatomy: Anatomy, sequences: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Cut prompts into batches whose activations fit in memory, each of one length where the model needs that."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    each = 4 * anatomy.layers * (4 * anatomy.d_model + 5 * anatomy.heads * anatomy.d_head)
    batch: list[int] = []
    for index in order:
        longest = len(sequences[index])
        full = each * longest * (len(batch) + 1) > ROOM
        if batch and (full or (anatomy.by_length and longest != len(sequences[batch[0]]))):
            yield batch
            batch = []
        batch = [*batch, index]
    yield batch
