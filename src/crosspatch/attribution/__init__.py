"""Attribute a logit to the parts that add up to it: components, heads, neurons, source tokens."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.attribution.attribute import direct
    from crosspatch.attribution.decomposition import Decomposition, Part

_HOME = {"Decomposition": "decomposition", "Part": "decomposition", "direct": "attribute"}
__all__ = ["Decomposition", "Part", "direct"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'crosspatch.attribution' has no attribute {name!r}; it offers {', '.join(__all__)}"
        )
    return getattr(import_module(f"crosspatch.attribution.{_HOME[name]}"), name)
