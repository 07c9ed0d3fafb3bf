"""Attention scores before the softmax, by the formula that the model's own kernel is checked to follow."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.core.errors import NotProved
from crosspatch.models.attention import Attended, Job, pattern_of
from crosspatch.models.blocks import at_least_single

# How far the softmax of the scores may be from the kernel's own pattern, by bytes of a number.
TOLERANCE = {8: 1e-9, 4: 1e-4, 2: 2e-2}


@dataclass(frozen=True)
class Scores:
    """What enters the softmax of one call: `of[row, head, query, key]`, masked, and a learnt sink per head if any."""

    of: Float[Tensor, "row head query key"]
    sink: Float[Tensor, "row head query 1"] | None = None

    @property
    def all(self) -> Float[Tensor, "row head query _"]:
        """The scores, with the sink behind them."""
        return self.of if self.sink is None else torch.cat([self.of, self.sink], dim=-1)


def raw_scores(seen: Attended, key: Tensor | None = None) -> Float[Tensor, "row head query key"]:
    """Return query · key, scaled and soft-capped, without mask; `key` stands in the place of the call's own keys."""
    query, keys = at_least_single(seen.query), at_least_single(seen.key if key is None else key)
    keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], dim=1)
    scaling = seen.settings.get("scaling")
    scaling = getattr(seen.module, "scaling", None) if scaling is None else scaling
    scores = query @ keys.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    cap = seen.settings.get("softcap")
    return scores if not cap else cap * torch.tanh(scores / cap)


def masked(seen: Attended, scores: Float[Tensor, "row head query key"]) -> Scores:
    """Add the call's mask and sinks to raw scores."""
    sinks = seen.settings.get("s_aux")
    if sinks is not None:
        sinks = at_least_single(sinks).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    if seen.mask is None:
        return Scores(scores, sinks)
    return Scores(scores + at_least_single(seen.mask[..., : scores.shape[-1]]), sinks)


def require_scores(job: Job, seen: Attended, scores: Scores) -> None:
    """Raise unless the softmax of the scores is the pattern that the model's own kernel gives.

    Raises:
        NotProved: this family's attention does more than is known here.
    """
    found = scores.all.softmax(-1)[..., : scores.of.shape[-1]]
    error = float((found - pattern_of(job, seen)).abs().max())
    if not error <= TOLERANCE.get(seen.query.element_size(), TOLERANCE[2]):
        raise NotProved(
            f"the attention of {type(seen.module).__name__} is not the softmax of scaled, capped and masked products "
            f"of queries and keys: its pattern differs by {error:.1e}. Estimate without the fix of queries and keys "
            "(by='atp'), or patch exactly."
        )
