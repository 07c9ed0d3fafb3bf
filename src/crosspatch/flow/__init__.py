"""Routes: how information flows to a prediction, from one forward pass (Ferrando & Voita 2024)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.flow.aggregates import Components, Contrast, components, contrast
    from crosspatch.flow.finding import full_graph, routes
    from crosspatch.flow.results import Route, RouteEdge, Routes

_HOME = {
    "Components": "aggregates",
    "Contrast": "aggregates",
    "Route": "results",
    "RouteEdge": "results",
    "Routes": "results",
    "components": "aggregates",
    "contrast": "aggregates",
    "full_graph": "finding",
    "routes": "finding",
}
__all__ = [
    "Components",
    "Contrast",
    "Route",
    "RouteEdge",
    "Routes",
    "components",
    "contrast",
    "full_graph",
    "routes",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.flow' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"crosspatch.flow.{_HOME[name]}"), name)
