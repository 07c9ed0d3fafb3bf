"""Gaussian corruption of token embeddings (Meng et al. 2022, ROME §2.1) by hand: plain hooks, no engine.

How to call. `noise` `[n, d_model]` is added to what the embedding module gives, row i at `positions[i]`; the caller
draws and scales it. Parts and scores are those of `naive.joint`; effects are score(patched) − score(base).

    noised_logits(module, anatomy, ids, noise=noise, positions=[2, 3])  # [pos, vocab]
    restored_effect(module, anatomy, ids, noise=noise, positions=[2, 3], parts=parts, score=score)
    noised_effect(module, anatomy, ids, noise=noise, positions=[2, 3], parts=parts, score=score)
"""

from collections.abc import Sequence

from torch import Tensor, nn

from crosspatch.models.anatomy import Anatomy
from naive.joint import Ids, Part, Score, Write, activation, effect, forward, taken


def noised(module: nn.Module, anatomy: Anatomy, ids: Ids, noise: Tensor, positions: Sequence[int]) -> Write:
    """Return the embeddings of a prompt with noise on these positions, as one thing to write."""
    embeddings = activation(module, anatomy, ids, "embed", 0)
    for row, position in zip(noise, positions, strict=True):
        embeddings[position] += row.to(embeddings.dtype)
    return ("embed", 0, None, None), embeddings


def noised_logits(module: nn.Module, anatomy: Anatomy, ids: Ids, *, noise: Tensor, positions: Sequence[int]) -> Tensor:
    """Return the logits `[pos, vocab]` of the corrupted run."""
    return forward(module, anatomy, ids, [noised(module, anatomy, ids, noise, positions)])


def restored_effect(
    module: nn.Module,
    anatomy: Anatomy,
    ids: Ids,
    *,
    noise: Tensor,
    positions: Sequence[int],
    parts: Sequence[Part],
    score: Score,
) -> float:
    """Denoise: put the clean run's parts into the corrupted run (causal tracing)."""
    corrupted = noised(module, anatomy, ids, noise, positions)
    logits = forward(module, anatomy, ids, [corrupted, *taken(module, anatomy, ids, parts)])
    return score(logits[-1]) - score(forward(module, anatomy, ids, [corrupted])[-1])


def noised_effect(
    module: nn.Module,
    anatomy: Anatomy,
    ids: Ids,
    *,
    noise: Tensor,
    positions: Sequence[int],
    parts: Sequence[Part],
    score: Score,
) -> float:
    """Noise: put the corrupted run's parts into the clean run, each read in a corrupted run of its own."""
    corrupted = noised(module, anatomy, ids, noise, positions)
    writes = [(part, held_in(module, anatomy, ids, corrupted, part)) for part in parts]
    return effect(module, anatomy, ids, writes, score=score)


def held_in(module: nn.Module, anatomy: Anatomy, ids: Ids, corrupted: Write, part: Part) -> Tensor:
    """Return what a part's kind holds, `[pos, width]`, in the corrupted run; patterns are not read here."""
    embedding = module.get_submodule(anatomy.embedding)
    handle = embedding.register_forward_hook(lambda *_: corrupted[1].reshape(1, len(ids), -1))
    try:
        return activation(module, anatomy, ids, *part[:2])
    finally:
        handle.remove()
