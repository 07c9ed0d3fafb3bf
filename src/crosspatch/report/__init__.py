"""Write results as one self-contained HTML page that works offline under a strict content-security policy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.report.audit import write_audit
    from crosspatch.report.page import write_page

_HOME = {"write_audit": "audit", "write_page": "page"}
__all__ = ["write_audit", "write_page"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.report' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.report.{_HOME[name]}"), name)
