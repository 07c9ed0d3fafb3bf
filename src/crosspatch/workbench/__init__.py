"""A live workbench in the browser: one opened model, typed prompts, patches as they are asked for.

>>> from crosspatch.workbench import serve
>>> serve(xp.open_model("gemma-3-270m"))  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.workbench.app import build_app
    from crosspatch.workbench.serving import serve, served
    from crosspatch.workbench.state import Limits

_HOME = {
    "Limits": "crosspatch.workbench.state",
    "build_app": "crosspatch.workbench.app",
    "serve": "crosspatch.workbench.serving",
    "served": "crosspatch.workbench.serving",
}
__all__ = ["Limits", "build_app", "serve", "served"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.workbench' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
