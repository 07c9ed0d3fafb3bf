"""Look at attention: patterns of chosen heads, weighted by values or not, and labels by what heads attend to."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.lenses.labels import HeadLabels, Repeated, label_heads
    from crosspatch.lenses.views import AttentionView, attention

_HOME = {
    "AttentionView": "views",
    "HeadLabels": "labels",
    "Repeated": "labels",
    "attention": "views",
    "label_heads": "labels",
}
__all__ = ["AttentionView", "HeadLabels", "Repeated", "attention", "label_heads"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.lenses' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.lenses.{_HOME[name]}"), name)
