"""Plain forwards of a task's prompts: prompts of one length together, so that no padding is needed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, TypeVar

Read = TypeVar("Read")
ROWS = 16  # prompts in one forward


def read_last_logits(module: Any, prompts: Sequence[Sequence[int]], read: Callable[[int, Any], Read]) -> list[Read]:
    """Run every prompt and return what `read(index, logits)` makes of its last position's logits, a tensor [vocab].

    Modules that take `logits_to_keep` compute no other position. Dropout is off during the runs.
    """
    import torch

    from crosspatch.models.weights import device_of, untracked

    found: dict[int, Read] = {}
    extra = _arguments(module)
    device = device_of(module)
    with untracked(module), _evaluating(module):
        for indices in _batches(prompts):
            ids = torch.tensor([prompts[index] for index in indices])
            output = module(ids.to(device), **extra)
            logits = _logits_of(output)[:, -1].float()
            found |= {index: read(index, row) for index, row in zip(indices, logits, strict=True)}
    return [found[index] for index in range(len(prompts))]


def _batches(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), ROWS):
            yield indices[start : start + ROWS]


def _arguments(module: Any) -> dict[str, Any]:
    taken = signature(module.forward).parameters
    wanted = {"logits_to_keep": 1, "use_cache": False}
    return {name: value for name, value in wanted.items() if name in taken}


def _logits_of(output: Any) -> Any:
    """Take the logits [row, pos, vocab] from what models return: an object, a mapping, a tuple or the tensor."""
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, dict):
        return output["logits"]
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
