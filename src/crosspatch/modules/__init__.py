"""Any module: trials of any inputs, the stacks of blocks that a module has, and exact patching of their sites."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.modules.anatomy import Place, Stack
    from crosspatch.modules.by_path import patch_modules
    from crosspatch.modules.capturing import capture_any
    from crosspatch.modules.decoded import Decoded
    from crosspatch.modules.patching import patch_any
    from crosspatch.modules.trial import Trial
    from crosspatch.modules.writing_on import generate_any

_HOME = {
    "Decoded": "decoded",
    "Place": "anatomy",
    "Stack": "anatomy",
    "Trial": "trial",
    "capture_any": "capturing",
    "generate_any": "writing_on",
    "patch_any": "patching",
    "patch_modules": "by_path",
}
__all__ = ["Decoded", "Place", "Stack", "Trial", "capture_any", "generate_any", "patch_any", "patch_modules"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.modules' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.modules.{_HOME[name]}"), name)
