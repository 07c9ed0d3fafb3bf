"""Studies: one paper each, its experiments run again on the user's model, and its claims checked."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.studies.study import Finding, Study

_HOME = {
    "Finding": "study",
    "Study": "study",
}
__all__ = ["Finding", "Study"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.studies' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.studies.{_HOME[name]}"), name)
