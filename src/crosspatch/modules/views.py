"""One view of every activation: `[example, position, column]`, whatever its own axes are."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crosspatch.core.errors import BadInput

# Modules whose features are on the axis behind the examples: what they give and take is a map, not a sequence.
MAPS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.GroupNorm, _BatchNorm)
Viewed = tuple[Float[Tensor, "example position column"], Callable[[Tensor], Tensor]]


def view(value: Tensor, *, axis: int, count: int, module: nn.Module) -> Viewed:
    """Return a copy of a value as `[example, position, column]`, and a function that puts such a copy back in shape.

    `axis` holds `count` examples, or several entries an example side by side, which then are positions. A value
    without positions has one. Images `[example, channel, row, column]` have a position for each pixel.

    Raises:
        BadInput: the axis does not hold that many examples.
    """
    if value.ndim == 0 or value.shape[axis] % count:
        raise BadInput(f"a value of shape {list(value.shape)} does not hold {count} examples along axis {axis}.")
    moved = value.movedim(axis, 0)
    length = len(moved)
    apart = moved.unflatten(0, (count, -1))  # example, entry, …
    maps = apart.ndim >= 4 and (isinstance(module, MAPS) or apart.ndim >= 5)
    last = apart.movedim(2, -1) if maps else apart
    last = last.unsqueeze(-1) if last.ndim == 2 else last
    flat = last.reshape(count, -1, last.shape[-1]).clone()

    def back(changed: Tensor) -> Tensor:
        shaped = changed.reshape(last.shape)
        shaped = shaped.squeeze(-1) if apart.ndim == 2 else shaped
        shaped = shaped.movedim(-1, 2) if maps else shaped
        return shaped.reshape(length, *moved.shape[1:]).movedim(0, axis)

    return flat, back
