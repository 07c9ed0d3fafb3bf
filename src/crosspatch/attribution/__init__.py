"""Attribute a behaviour: exact linear parts of a logit, and estimates of patching from gradients, with their check."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.attribution.agreement import Agreement, compare_estimate
    from crosspatch.attribution.baselines import (
        blocks_of,
        brute_force,
        by_blocks,
        hierarchical,
        joint_scores,
        subsampling,
        tree_of,
    )
    from crosspatch.attribution.bound import Bound, bound_missed, p_missed, subsampling_scores, theta_of
    from crosspatch.attribution.certifying import Certificate, Until, certify
    from crosspatch.attribution.conserving import Conserved, conservation
    from crosspatch.attribution.decomposition import Decomposition, Part
    from crosspatch.attribution.direct_logits import direct
    from crosspatch.attribution.estimate import Estimate
    from crosspatch.attribution.estimating import Verify, attribute
    from crosspatch.attribution.estimators import Estimator
    from crosspatch.attribution.joint import Asked
    from crosspatch.attribution.recall import Order, RecallCurve, recall_costs, recall_curve
    from crosspatch.attribution.recall_plot import recall_svg
    from crosspatch.attribution.recommending import Recommendation, Sample, recommend
    from crosspatch.attribution.subsets import Sampling, Subsets, sample_subsets

_HOME = {
    "Agreement": "agreement",
    "Asked": "joint",
    "Bound": "bound",
    "Certificate": "certifying",
    "Conserved": "conserving",
    "Decomposition": "decomposition",
    "Estimate": "estimate",
    "Estimator": "estimators",
    "Order": "recall",
    "Part": "decomposition",
    "RecallCurve": "recall",
    "Recommendation": "recommending",
    "Sample": "recommending",
    "Sampling": "subsets",
    "Subsets": "subsets",
    "Until": "certifying",
    "Verify": "estimating",
    "attribute": "estimating",
    "blocks_of": "baselines",
    "bound_missed": "bound",
    "brute_force": "baselines",
    "by_blocks": "baselines",
    "certify": "certifying",
    "compare_estimate": "agreement",
    "conservation": "conserving",
    "direct": "direct_logits",
    "hierarchical": "baselines",
    "joint_scores": "baselines",
    "p_missed": "bound",
    "recall_costs": "recall",
    "recall_curve": "recall",
    "recall_svg": "recall_plot",
    "recommend": "recommending",
    "sample_subsets": "subsets",
    "subsampling": "baselines",
    "subsampling_scores": "bound",
    "theta_of": "bound",
    "tree_of": "baselines",
}
__all__ = [
    "Agreement",
    "Asked",
    "Bound",
    "Certificate",
    "Conserved",
    "Decomposition",
    "Estimate",
    "Estimator",
    "Order",
    "Part",
    "RecallCurve",
    "Recommendation",
    "Sample",
    "Sampling",
    "Subsets",
    "Until",
    "Verify",
    "attribute",
    "blocks_of",
    "bound_missed",
    "brute_force",
    "by_blocks",
    "certify",
    "compare_estimate",
    "conservation",
    "direct",
    "hierarchical",
    "joint_scores",
    "p_missed",
    "recall_costs",
    "recall_curve",
    "recall_svg",
    "recommend",
    "sample_subsets",
    "subsampling",
    "subsampling_scores",
    "theta_of",
    "tree_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'crosspatch.attribution' has no attribute {name!r}; it offers {', '.join(__all__)}"
        )
    return getattr(import_module(f"crosspatch.attribution.{_HOME[name]}"), name)
