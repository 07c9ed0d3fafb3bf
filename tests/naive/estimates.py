"""Estimates as the papers write them: gradients of the model's own forward by torch's hooks, one quantity at a time.

AtP, the fix of queries and keys, GradDrop: Kramár et al. 2024. Integrated gradients: Hanna et al. 2024, Marks et al.
2024. Gradients are taken in the base run; everything is written for one prompt.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from naive.patching import hook

Spot = tuple[nn.Module, str]


def score(logits: Tensor) -> Tensor:
    """Logit difference of tokens 5 and 7 at the last position, with its gradient."""
    return logits[-1, 5] - logits[-1, 7]


def tracked(module: nn.Module, ids: Sequence[int], spots: Mapping[str, Spot], **how: object) -> dict[str, Tensor]:
    """Return the activation at each spot, with its gradient in `.grad`; spots in `dropped` pass no gradient on."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        def visit(value: Tensor) -> Tensor:
            own = value * 1  # parallel attention and MLP read one tensor, and each has its own gradient
            own.retain_grad()
            seen[name] = own
            return own * 1  # Falcon adds to it in place

        return visit

    def cut(value: Tensor) -> Tensor:
        value.register_hook(torch.zeros_like)
        return value

    handles = [hook(part, side, keep(name)) for name, (part, side) in spots.items()]
    handles += [hook(part, side, cut) for part, side in how.get("dropped", ())]
    handles += [hook(part, side, visit) for part, side, visit in how.get("written", ())]
    with torch.enable_grad():
        score(module(input_ids=torch.tensor([list(ids)])).logits[0]).backward()
    for handle in handles:
        handle.remove()
    module.zero_grad(set_to_none=True)
    return seen


def flat(value: Tensor) -> Tensor:
    """Lay an activation out as `[pos, width]`."""
    return value.detach().reshape(-1, value.shape[-1])


def atp(base: Tensor, source: Tensor, gradient: Tensor) -> Tensor:
    """Change times gradient, `[pos, width]`; sum over a node's columns (equation 4)."""
    return (flat(source) - flat(base)).double() * flat(gradient).double()


def drops(
    module: nn.Module, ids: Sequence[int], spots: Mapping[str, Spot], blocks: Sequence[Sequence[Spot]]
) -> list[dict[str, Tensor]]:
    """Return the gradients at all spots with each block's contributions dropped in turn."""
    return [{k: v.grad for k, v in tracked(module, ids, spots, dropped=block).items()} for block in blocks]


def along(
    module: nn.Module, ids: Sequence[int], spot: Spot, ends: tuple[Tensor, Tensor], alphas: Sequence[float]
) -> dict[float, Callable[[Tensor], Tensor]]:
    """Return, for each step, a visit that writes what lies between both ends at a spot."""

    def between(alpha: float) -> Callable[[Tensor], Tensor]:
        def visit(value: Tensor) -> Tensor:
            # the leaf that the gradient is taken of
            start, end = (end.detach().reshape(value.shape) for end in ends)
            return (start + alpha * (end - start)).requires_grad_()

        return visit

    return {alpha: between(alpha) for alpha in alphas}


def attention(module: nn.Module, ids: Sequence[int], layer: int, *written: tuple) -> tuple[Tensor, Tensor]:
    """Return a layer's pattern `[head, query, key]` and its gradient, with the model's own eager attention."""
    handles = [hook(*each) for each in written]
    with torch.enable_grad():
        out = module(input_ids=torch.tensor([list(ids)]), output_attentions=True)
        pattern = out.attentions[layer]
        (gradient,) = torch.autograd.grad(score(out.logits[0]), pattern)
    for handle in handles:
        handle.remove()
    return pattern[0].detach(), gradient[0]


def key_effect(scores: Tensor, change: Tensor, slope: Tensor, key: int) -> float:
    """Change one key's scores in all rows and recompute each softmax (equation 10), `[query, key]`."""
    new = scores.clone()
    new[:, key] += change
    return float(((new.softmax(-1) - scores.softmax(-1)) * slope).sum())
