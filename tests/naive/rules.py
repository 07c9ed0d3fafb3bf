"""Rules of relevance by hand: the gradient of each part on its own, from what it read and gave.

How to call.

    norm_gradient(x, y, bias, seed)      # of a norm with constant scale, whether it subtracts a mean or not
    identity_gradient(z, y, seed)        # of an activation that multiplies z by y / z
    with shares(module, name, {"attn.q": 0.0, "attn.k": 0.0}): …   # what projections hand on of their gradient

`seed` is the gradient of what the part gives. Scales are read off the values: no norm's code is known here.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo import ZOO


def norm_gradient(x: Tensor, y: Tensor, bias: Tensor | None, seed: Tensor, *, centred: bool) -> Tensor:
    """Return the gradient of y = gain · x + bias, or of y = gain · (x − mean x) + bias, with the gain a constant."""
    read = x - x.mean(-1, keepdim=True) if centred else x
    gain = (y if bias is None else y - bias) / read
    back = gain * seed
    return back - back.mean(-1, keepdim=True) if centred else back


def identity_gradient(z: Tensor, y: Tensor, seed: Tensor) -> Tensor:
    """Return the gradient of y = (f(z) / z) · z with the bracket a constant."""
    away = torch.where(z >= 0, 1e-6, -1e-6)
    return seed * y / (z + away)


@contextmanager
def shares(module: nn.Module, name: str, parts: Mapping[str, float]) -> Iterator[None]:
    """Let queries, keys and values, where a person found them in a family's code, hand on a part of a gradient."""
    beast = ZOO[name]
    with ExitStack() as stack:
        for block in module.get_submodule(beast.blocks):  # pyright: ignore
            for kind, part in parts.items():
                hook = partial(_hand_on, beast.columns(kind, None), part)
                stack.callback(block.get_submodule(beast.spots[kind][0]).register_forward_hook(hook).remove)
        yield


def _hand_on(columns: Any, part: float, _: nn.Module, __: Any, out: Tensor) -> Tensor:
    keep = torch.ones(out.shape[-1], dtype=out.dtype)
    keep[columns] = part
    return out.detach() + keep * (out - out.detach())
