"""Attribute a behaviour: exact linear parts of a logit, and estimates of patching from gradients, with their check."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.attribution.agreement import Agreement, compare_estimate
    from crosspatch.attribution.decomposition import Decomposition, Part
    from crosspatch.attribution.direct_logits import direct
    from crosspatch.attribution.estimate import Estimate
    from crosspatch.attribution.estimating import Verify, attribute
    from crosspatch.attribution.estimators import Estimator

_HOME = {
    "Agreement": "agreement",
    "Decomposition": "decomposition",
    "Estimate": "estimate",
    "Estimator": "estimators",
    "Part": "decomposition",
    "Verify": "estimating",
    "attribute": "estimating",
    "compare_estimate": "agreement",
    "direct": "direct_logits",
}
__all__ = [
    "Agreement",
    "Decomposition",
    "Estimate",
    "Estimator",
    "Part",
    "Verify",
    "attribute",
    "compare_estimate",
    "direct",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'crosspatch.attribution' has no attribute {name!r}; it offers {', '.join(__all__)}"
        )
    return getattr(import_module(f"crosspatch.attribution.{_HOME[name]}"), name)
