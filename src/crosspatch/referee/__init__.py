"""Run patching in every customary way on one task and say where the ways agree, and which results not to believe."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.referee.case import Finding
    from crosspatch.referee.grid import AuditPlan, GridCost, Setting, plan_grid
    from crosspatch.referee.judge import audit
    from crosspatch.referee.result import Audit

_HOME = {
    "Audit": "result",
    "AuditPlan": "grid",
    "Finding": "case",
    "GridCost": "grid",
    "Setting": "grid",
    "audit": "judge",
    "plan_grid": "grid",
}
__all__ = ["Audit", "AuditPlan", "Finding", "GridCost", "Setting", "audit", "plan_grid"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.referee' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.referee.{_HOME[name]}"), name)
