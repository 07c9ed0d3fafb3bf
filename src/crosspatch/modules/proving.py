"""Prove how projections are cut into heads, on the attention modules themselves."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crosspatch.modules.anatomy import Place, Stack, without
from crosspatch.replay import Recording
from crosspatch.replay.values import activation_number, tensors, with_tensor
from crosspatch.replay.watching import watching

SAME = 1e-4  # share of the largest number of all heads' outputs by which another head may move


def proved(stack: Stack, recording: Recording) -> Stack:
    """Return the stack without the kinds of heads that are not where they were thought to be.

    In the first layer with heads, one query, key or value head is wiped out at a time: only the heads that read it may
    change, alike many for each, no head twice. Which heads read a key head is not presumed.
    """
    for kind in ("attn", "cross"):
        layer = next((each for each in stack.places if f"{kind}.head" in each), None)
        if layer is None:
            continue
        for letter in "qkv":
            place = layer.get(f"{kind}.{letter}")
            if place is not None and place.starts and (reason := _reason(recording, place, layer[f"{kind}.head"])):
                stack = without(stack, f"{kind}.{letter}", reason)
                if letter == "q":
                    stack = without(stack, f"{kind}.head", reason)
    return stack


def _reason(recording: Recording, place: Place, heads: Place) -> str:
    """Say why units are not what they seem; empty if they are."""
    module = next((path for path in recording.arguments if f"{place.spot.path}.".startswith(f"{path}.")), None)
    if module is None:
        return ""  # not the first of its kind: alike, by its path
    plain = _outputs(recording, module, heads, lambda path, output: output)
    if plain is None or plain.shape[-1] != len(heads.starts) * heads.width:
        return "what its heads give could not be seen"
    readers: list[set[int]] = []
    for unit in range(len(place.starts)):
        wiped = _outputs(recording, module, heads, _wiping(place, unit))
        assert wiped is not None
        moved = (wiped - plain).abs().unflatten(-1, (len(heads.starts), heads.width)).flatten(0, -3).amax(dim=(0, 2))
        readers.append(set((moved > SAME * plain.abs().max()).nonzero().flatten().tolist()))
    several = [head for each in readers for head in each]
    expected = len(heads.starts) // len(place.starts)
    if len(several) != len(set(several)) or any(len(each) not in (0, expected) for each in readers):
        return f"wiping out one of its {len(place.starts)} units moved the outputs of heads {readers}"
    return ""


def _wiping(place: Place, unit: int) -> Callable[[str, Any], Any]:
    def wipe(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[..., place.columns(unit)] = 0
        return changed

    return lambda path, output: with_tensor(output, place.spot.tensor, wipe) if path == place.spot.path else output


def _outputs(recording: Recording, module: str, heads: Place, change: Callable[[str, Any], Any]) -> Tensor | None:
    """Call an attention module as it was called, its projections' outputs changed; return what its heads give."""
    found: list[Tensor] = []
    own = recording.module.get_submodule(module)

    def handle(path: str, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[..., Any]) -> Any:
        whole = f"{module}.{path}"
        if whole == heads.spot.path and heads.spot.side == "input":
            given = list(tensors((args, kwargs)))
            found.append(given[activation_number(args, kwargs)])
        return change(whole, run(*args, **kwargs))

    args, kwargs = copy.deepcopy(recording.arguments[module])  # a cache too, which the call fills
    with torch.no_grad(), watching(own, handle):
        output = own(*args, **kwargs)
    if not heads.spot.path.startswith(f"{module}."):  # the output map is beside the module, and reads what it gives
        found.append(next(tensors(output)))
    return found[0] if found else None
