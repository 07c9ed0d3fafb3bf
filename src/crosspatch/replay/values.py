"""Values that modules take and give: tensors in nested tuples, lists, mappings and dataclasses."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

Axis = int | None  # the axis along which a tensor holds examples; None where it holds none


def mapped(value: Any, act: Callable[[Tensor], Tensor]) -> Any:
    """Apply `act` to every tensor in nested tuples, lists, mappings and dataclasses; anything else stays."""
    if isinstance(value, Tensor):
        return act(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, act) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(item, act) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: mapped(item, act) for name, item in _fields(value)})
    if isinstance(value, Mapping):
        changed = {key: mapped(item, act) for key, item in value.items()}
        return changed if type(value) is dict else type(value)(changed)  # pyright: ignore[reportCallIssue]
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested value, in the order in which `mapped` meets them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for _, item in _fields(value):
            yield from tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)


def with_tensor(value: Any, number: int, act: Callable[[Tensor], Tensor]) -> Any:
    """Return a nested value with its tensor of this number changed by `act`."""
    count = iter(range(number + 1))
    return mapped(value, lambda tensor: act(tensor) if next(count, None) == number else tensor)


def _fields(value: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]


def rows_of(tensor: Tensor, axis: Axis, rows: Tensor, count: int) -> Tensor:
    """Return a copy with the examples `rows` of `count`; an axis may hold several entries an example, side by side."""
    if axis is None:
        return tensor.clone()
    apart = tensor.unflatten(axis, (count, -1))
    return apart.index_select(axis, rows.to(tensor.device)).flatten(axis, axis + 1)


def activation_number(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return which of the tensors among arguments is the activation: `hidden_states` if none is positional, else 0."""
    first = next(tensors(args), None)
    wanted = kwargs.get("hidden_states")
    if first is not None or not isinstance(wanted, Tensor):
        return 0
    return next(number for number, tensor in enumerate(tensors((args, kwargs))) if tensor is wanted)
