"""Tags: which recorded value a tensor still is, told by the object itself and not by its numbers."""

import dataclasses
import weakref
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Tag = tuple[Hashable, ...]
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device)


class Tags:
    """Remembers tensors by identity, until they die or are written to."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, Tag]] = {}

    def note(self, tensor: Tensor, tag: Tag) -> None:
        """Give a tensor a tag."""
        version = version_of(tensor)
        if version is not None:
            self._known[id(tensor)] = weakref.ref(tensor), version, tag

    def of(self, tensor: Tensor) -> Tag | None:
        """Return a tensor's tag; None if it has none, or was written to since."""
        ref, version, tag = self._known.get(id(tensor), (None, 0, None))
        return tag if ref is not None and ref() is tensor and version_of(tensor) == version else None

    def key(self, value: Any) -> Tag | None:
        """Return what tells two calls with equal values apart from others; None where that cannot be known."""
        if isinstance(value, Tensor):
            return ("parameter", id(value)) if isinstance(value, nn.Parameter) else self.of(value)
        if isinstance(value, _PLAIN):
            return type(value).__name__, value
        parts = _parts(value)
        return None if parts is None else self._keys(type(value), parts)

    def _keys(self, kind: type, values: Any) -> Tag | None:
        found = tuple(self.key(each) for each in values)
        return None if None in found else (kind.__name__, *found)


def _parts(value: Any) -> list[Any] | None:
    """Return what a nested value holds; None for an object of another kind, which may change unseen."""
    if isinstance(value, Mapping):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, (tuple, list)):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, each.name) for each in dataclasses.fields(value)]
    return None


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; None where torch does not count (tensors of inference mode)."""
    return None if tensor.is_inference() else tensor._version
