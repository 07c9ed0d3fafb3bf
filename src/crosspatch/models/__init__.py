"""Open any model and know where its activations live."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.models.anatomy import Anatomy
    from crosspatch.models.layout import Layout
    from crosspatch.models.model import Check, Model
    from crosspatch.models.open import open_model

_HOME = {"Anatomy": "anatomy", "Check": "model", "Layout": "layout", "Model": "model", "open_model": "open"}
__all__ = ["Anatomy", "Check", "Layout", "Model", "open_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.models' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.models.{_HOME[name]}"), name)
