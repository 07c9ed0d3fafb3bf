"""Write results as one self-contained HTML page that works offline under a strict content-security policy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.report.audit import write_audit
    from crosspatch.report.circuit import circuit_page, write_circuit
    from crosspatch.report.circuit_content import CircuitContent, CircuitCurve, ScoreLine
    from crosspatch.report.circuit_making import content_of_circuit
    from crosspatch.report.compare import compare_page
    from crosspatch.report.page import write_page
    from crosspatch.report.study import study_page, write_study

_HOME = {
    "CircuitContent": "circuit_content",
    "CircuitCurve": "circuit_content",
    "ScoreLine": "circuit_content",
    "content_of_circuit": "circuit_making",
    "circuit_page": "circuit",
    "compare_page": "compare",
    "study_page": "study",
    "write_audit": "audit",
    "write_circuit": "circuit",
    "write_page": "page",
    "write_study": "study",
}
__all__ = [
    "CircuitContent",
    "CircuitCurve",
    "ScoreLine",
    "circuit_page",
    "compare_page",
    "content_of_circuit",
    "study_page",
    "write_audit",
    "write_circuit",
    "write_page",
    "write_study",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.report' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.report.{_HOME[name]}"), name)
