"""One plain forward of a model, watched: what its blocks read and write, their parts, and what comes after them."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from crosspatch.models.anatomy import Anatomy
from crosspatch.models.blocks import block_list
from crosspatch.models.hooks import first_tensor, main_tensor, visiting


@dataclass
class Trace:
    """What one plain forward of the model showed."""

    logits: Tensor
    entering: dict[int, Tensor] = field(default_factory=dict)
    leaving: dict[int, Tensor] = field(default_factory=dict)
    parts: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    after: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    calls: int = 0
    tuples: bool = False


def trace(module: nn.Module, anatomy: Anatomy, ids: Int[Tensor, "batch pos"]) -> Trace:
    """Run the model once and note its blocks, their parts and what comes after them."""
    seen = Trace(logits=torch.empty(0))
    blocks = block_list(module, anatomy)
    handles = [
        block.register_forward_pre_hook(partial(_note_input, seen, i), with_kwargs=True)
        for i, block in enumerate(blocks)
    ]
    handles += [block.register_forward_hook(partial(_note_output, seen, i)) for i, block in enumerate(blocks)]
    for name, part in module.named_modules():
        if name and not f"{name}.".startswith(f"{anatomy.blocks}."):
            handles.append(part.register_forward_hook(partial(_note_after, seen, name), with_kwargs=True))
    visits = [
        (block, point, partial(_note_part, seen, (kind, i)))
        for i, block in enumerate(blocks)
        for kind, point in anatomy.points.items()
        if kind in ("attn.out", "mlp.out", "mlp.in", "attn.head")
    ]
    try:
        with visiting(visits):
            seen.logits = module(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _note_input(seen: Trace, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    seen.entering[index] = main_tensor(args, kwargs).clone()
    seen.calls += 1


def _note_output(seen: Trace, index: int, _: nn.Module, __: Any, output: Any) -> None:
    seen.tuples = isinstance(output, tuple)
    seen.leaving[index] = first_tensor(output).clone()


def _note_after(
    seen: Trace, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    whole = len(seen.leaving) == len(seen.entering) > 0
    if whole and args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
        seen.after.append((name, args[0], output))


def _note_part(seen: Trace, key: tuple[str, int], value: Tensor) -> None:
    seen.parts[key] = value.clone()
