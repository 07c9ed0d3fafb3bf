"""Draw the cost of verified recall of several methods against K."""

from collections.abc import Sequence

import numpy as np

from crosspatch.attribution.recall import RecallCurve
from crosspatch.draw import Curve, curves_svg, number


def recall_svg(curves: Sequence[RecallCurve], *, relative: bool = True, title: str = "Cost of verified recall") -> str:
    """Draw cost against K on logarithmic axes, one line a method, as SVG text; the legend gives each area.

    `relative` divides each cost by the oracle's, K; else costs are forward passes over all pairs.
    Raises BadInput without a curve.
    """
    lines = []
    for curve in curves:
        ranks = np.arange(1, len(curve.costs) + 1, dtype=np.float64)
        costs = curve.costs / ranks if relative else curve.costs
        lines.append(Curve(f"{curve.method} ({number(curve.area)})", ranks, costs))
    y_label = "cost / oracle's cost" if relative else "forward passes"
    return curves_svg(lines, title=title, x_label="K, true top nodes that are verified", y_label=y_label)
