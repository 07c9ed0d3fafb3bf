"""Patching of any module as the definition says it: whole forwards, one side of one submodule changed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]


@contextmanager
def changed(part: nn.Module, side: str, number: int, change: Change) -> Iterator[None]:
    """Change what a submodule is given, or one of the tensors that it gives.

    Its forward is replaced; a forward hook would be too late where a model gathers hidden states by hooks of its own.
    """
    whole = part.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if side == "input":
            if args:
                return whole(change(args[0]), *args[1:], **kwargs)
            return whole(**{**kwargs, "hidden_states": change(kwargs["hidden_states"])})
        output = whole(*args, **kwargs)
        if isinstance(output, Tensor):
            return change(output)
        own = [i for i, each in enumerate(output) if isinstance(each, Tensor)][number]
        return type(output)([change(each) if i == own else each for i, each in enumerate(output)])

    part.forward = forward
    try:
        yield
    finally:
        del part.forward


@torch.no_grad()
def naive_patch(
    run: Callable[[str], Tensor], part: nn.Module, side: str, number: int, write: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """metric(patched) − metric(base): `run` runs "base" or "source", `write` makes the patched value of both."""
    kept: list[Tensor] = []
    with changed(part, side, number, lambda value: kept.append(value.clone()) or value):
        run("source")
    with changed(part, side, number, lambda value: write(value.clone(), kept[0])):
        patched = run("base")
    return patched - run("base")
