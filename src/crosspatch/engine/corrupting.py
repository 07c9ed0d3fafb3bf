"""The embeddings of a corrupt run that has the clean tokens: noise, zero or the mean at the key positions."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.core.errors import BadInput
from crosspatch.models.model import Model
from crosspatch.models.runs import Overlay
from crosspatch.models.weights import parts_of
from crosspatch.tasks import Corruption, Pair, key_positions, layout_of


@dataclass(frozen=True)
class Corrupter:
    """Makes the overlay of corrupt runs; `deviation` and `means` are measured on the task's clean prompts.

    `means[layout]` is `[pos, width]`. Draw d of example e gets the same noise however the examples are cut into chunks.
    """

    corruption: Corruption
    deviation: float
    means: dict[object, Float[Tensor, "pos width"]]
    width: int

    @classmethod
    def of(cls, model: Model, pairs: Sequence[Pair], corruption: Corruption) -> "Corrupter":
        """Measure what the corruption needs on the clean prompts of these pairs."""
        embed = _embedder(model)
        deviation = _deviation(embed, pairs) if corruption.by == "gaussian" else 0.0
        means = _means(embed, pairs) if corruption.by == "mean" else {}
        width = embed(pairs[0].clean[:1]).shape[-1]
        return cls(corruption, deviation, means, width)

    def overlay(self, pairs: Sequence[tuple[int, Pair]], like: Tensor) -> Overlay:
        """Return the overlay of numbered pairs; number n is draw `n % draws` of example `n // draws`."""
        length = max(len(pair.clean) for _, pair in pairs)
        scale = torch.ones(len(pairs), length, 1)
        shift = torch.zeros(len(pairs), length, self.width)
        for row, (number, pair) in enumerate(pairs):
            keys = list(key_positions(pair, self.corruption))
            if self.corruption.by == "gaussian":
                shift[row, keys] = self._noise(number, len(keys))
            else:
                scale[row, keys] = 0.0
            if self.corruption.by == "mean":
                shift[row, keys] = self.means[layout_of(pair)][keys]
        return Overlay(scale.to(like), shift.to(like))

    def _noise(self, number: int, count: int) -> Float[Tensor, "key width"]:
        # Generators keep 32 bits of a seed, so both numbers are mixed into them.
        mixed = np.random.SeedSequence([self.corruption.seed, number]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(mixed))
        return self.corruption.sigma * self.deviation * torch.randn(count, self.width, generator=generator)


Embed = Callable[[Iterable[int]], Tensor]  # tokens to [token, width]


def _embedder(model: Model) -> Embed:
    """Return what the embedding module gives for tokens, in float32."""
    path = model.anatomy.embedding
    part = parts_of(model.module, (path,)).get_submodule(path)

    def embed(ids: Iterable[int]) -> Tensor:
        with torch.inference_mode():
            return part(torch.tensor(list(ids), device=model.device)).float().cpu()

    return embed


def _deviation(embed: Embed, pairs: Sequence[Pair]) -> float:
    """Return the standard deviation of all numbers in the embeddings of the clean prompts' tokens, repeats counted."""
    count, total, squares = 0, 0.0, 0.0
    for pair in pairs:
        values = embed(pair.clean).double()
        count, total, squares = count + values.numel(), total + float(values.sum()), squares + float((values**2).sum())
    return max(squares / count - (total / count) ** 2, 0.0) ** 0.5


def _means(embed: Embed, pairs: Sequence[Pair]) -> dict[object, Tensor]:
    """Return the mean embedding at each position over the clean prompts of each layout."""
    return {
        layout: torch.stack([embed(pair.clean) for pair in group]).mean(0) for layout, group in by_layout(pairs).items()
    }


def by_layout(pairs: Sequence[Pair]) -> dict[object, list[Pair]]:
    """Group pairs by layout, so that a mean can be taken over each group.

    Raises:
        BadInput: a prompt whose layout no other prompt has: its mean would be its own embedding.
    """
    groups: dict[object, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[layout_of(pair)].append(pair)
    for group in groups.values():
        if len({pair.clean for pair in group}) == 1:
            raise BadInput(
                f"{group[0].clean_text or group[0].clean!r} has a layout (length, named positions) that no other "
                "prompt has, so a mean over prompts would change nothing. Give more pairs, or one template."
            )
    return groups
