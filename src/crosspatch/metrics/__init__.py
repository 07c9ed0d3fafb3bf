"""Score what a model says about the answers: pure functions of its outputs, one number an example."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.metrics.readout import Metric, Readout, metric_from
    from crosspatch.metrics.shipped import METRICS, get_metric

_HOME = {
    "METRICS": "crosspatch.metrics.shipped",
    "Metric": "crosspatch.metrics.readout",
    "Readout": "crosspatch.metrics.readout",
    "get_metric": "crosspatch.metrics.shipped",
    "metric_from": "crosspatch.metrics.readout",
}
__all__ = ["METRICS", "Metric", "Readout", "get_metric", "metric_from"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.metrics' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
