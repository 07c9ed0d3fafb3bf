"""Patching by hand: plain hooks of torch, one forward a patch, and spots that a person read off the code.

Denoising puts the clean run's activation into the corrupt run and reads metric(patched) − metric(corrupt); noising is
the same with the roles swapped (DESIGN §1).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Visit = Callable[[Tensor], Tensor]


def hook(part: nn.Module, side: str, visit: Visit) -> Any:
    """Hand the tensor at one side of a module to `visit`, and let what it returns stand there."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (visit(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": visit(kwargs["hidden_states"])}

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        return (visit(output[0]), *output[1:]) if isinstance(output, tuple) else visit(output)

    return (
        part.register_forward_pre_hook(before, with_kwargs=True) if side == "in" else part.register_forward_hook(after)
    )


@torch.no_grad()
def run(module: nn.Module, ids: Iterable[int], **hooked: tuple[nn.Module, str, Visit]) -> Tensor:
    """Return the logits `[pos, vocab]` of one prompt, with hooks that leave afterwards."""
    handles = [hook(*spot) for spot in hooked.values()]
    logits = module(input_ids=torch.tensor([list(ids)])).logits[0]
    for handle in handles:
        handle.remove()
    return logits


def read(module: nn.Module, ids: Iterable[int], part: nn.Module, side: str) -> Tensor:
    """Return the tensor at one side of a module, `[pos, width]`."""
    seen: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        seen.append(value.clone())
        return value

    run(module, ids, spot=(part, side, keep))
    return seen[0].reshape(-1, seen[0].shape[-1])


def patched(module: nn.Module, ids: Iterable[int], spot: tuple[nn.Module, str], value: Tensor, at: Any) -> Tensor:
    """Return the logits of one prompt with `value[at]` written at a spot; `at` is (positions, columns)."""
    positions, columns = at

    def write(present: Tensor) -> Tensor:
        flat = present.clone().reshape(-1, present.shape[-1])
        for position in positions:
            flat[position, columns] = value[position, columns].to(flat.dtype)
        return flat.reshape(present.shape)

    return run(module, ids, spot=(*spot, write))


def difference(logits: Tensor, right: int = 5, wrong: int = 7) -> float:
    """Logit difference at the last position."""
    return float(logits[-1, right].double() - logits[-1, wrong].double())
