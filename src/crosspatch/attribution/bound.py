"""A bound on the effect of nodes that were not verified, from subset samples: one-sided Welch tests, inverted."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from crosspatch.attribution.student import require_level, t_quantile, t_tail
from crosspatch.attribution.subsets import Subsets
from crosspatch.core.errors import BadInput
from crosspatch.draw import Display, Displayed, number
from crosspatch.sites import Site

Nodes = Float64[np.ndarray, " node"]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Samples with a node against samples without it, for each node.

    `inside` and `outside` count the samples, on pairs that have the node. `difference` is mean(with) − mean(without),
    in the metric's unit, `error` its standard error s_W = √(s₊²/n₊ + s₋²/n₋), `freedom` the Welch–Satterthwaite ν. A
    mean of no sample, and an error of fewer than two on a side, is NaN.
    """

    inside: Int64[np.ndarray, " node"]
    outside: Int64[np.ndarray, " node"]
    difference: Nodes
    error: Nodes
    freedom: Nodes

    @property
    def enough(self) -> Bool[np.ndarray, " node"]:
        """Nodes with two samples at least on both sides."""
        return (self.inside >= 2) & (self.outside >= 2)

    def thresholds(self, level: float) -> Nodes:
        """Give θ_n = |difference| + s_W · t_{ν, level}: what |mean effect| stays under at that level; ∞ if unknown."""
        steps = np.full(len(self.error), np.inf)
        steps[self.enough] = 0.0
        spread = self.enough & (np.nan_to_num(self.error) > 0)
        steps[spread] = self.error[spread] * t_quantile(level, self.freedom[spread])
        return np.where(self.enough, np.abs(np.nan_to_num(self.difference)) + steps, np.inf)

    def p_values(self, theta: float | int) -> Nodes:
        """Test for each node that its |mean effect| is at least `theta`: P(T_ν > (θ − |difference|)/s_W); 1 if unknown.

        Without any spread it is 0 for a difference below `theta`, else 1.
        """
        room = theta - np.abs(np.nan_to_num(self.difference))
        p = np.where(self.enough & (room > 0), 0.0, 1.0)
        spread = self.enough & (np.nan_to_num(self.error) > 0)
        p[spread] = t_tail(room[spread] / self.error[spread], self.freedom[spread])
        return p


def contrast(subsets: Subsets) -> Contrast:
    """Compare the samples that hold each node with those that do not; samples that were not run are left out."""
    ran = ~np.isnan(subsets.effects)
    # Moments are taken about the common mean: effects far from zero would lose their variance to rounding.
    centre = float(subsets.effects[ran].mean()) if ran.any() else 0.0
    shifted = np.where(ran, subsets.effects - centre, 0.0)
    powers = np.stack([ran.astype(np.float64), shifted, shifted**2], axis=1)
    within, without = (np.zeros((len(subsets.sites), 3)) for _ in range(2))
    for part in subsets.parts():
        members = subsets.members(part)
        others = subsets.ground.present[subsets.pairs[part]] & ~members
        within += members.T.astype(np.float64) @ powers[part]
        without += others.T.astype(np.float64) @ powers[part]
    (inside, first, var_in), (outside, second, var_out) = _moments(within), _moments(without)
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = var_in / inside, var_out / outside
        freedom = (a + b) ** 2 / (a**2 / (inside - 1) + b**2 / (outside - 1))
    return Contrast(inside.astype(np.int64), outside.astype(np.int64), first - second, np.sqrt(a + b), freedom)


def _moments(sums: Float64[np.ndarray, "node 3"]) -> tuple[Nodes, Nodes, Nodes]:
    """Turn count, sum and sum of squares into count, mean and unbiased variance; NaN of too few."""
    count, total, squares = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / count
        variance = np.where(count >= 2, np.maximum(squares - total * mean, 0.0) / (count - 1), np.nan)
    return count, mean, variance


def subsampling_scores(subsets: Subsets) -> Nodes:
    """Estimate each node's effect by |mean(with) − mean(without)|, a baseline of Kramár et al. 2024; NaN if unseen."""
    return np.where(subsets.still, 0.0, np.abs(contrast(subsets).difference))


@dataclass(frozen=True, eq=False, repr=False)
class Bound(Displayed):
    """What no unverified node's mean effect exceeds, at a level of confidence.

    `theta` is the largest of the `thresholds` (NaN for verified nodes, 0 for those known to be zero), in the metric's
    unit, and `node` the node that sets it; ∞ where a node was in too few samples. `statement` says what is bounded.
    """

    theta: float
    level: float
    node: Site | None
    thresholds: Nodes
    statement: str

    def display(self) -> Display:
        """Say what is bounded."""
        return Display(f"Bound: {self.statement}")


def bound_missed(subsets: Subsets, *, verified: Collection[Site] = (), level: float = 0.99) -> Bound:
    """Bound the effect of the nodes that were not verified (Kramár et al. 2024, arXiv 2403.00745).

    For each node the hypothesis |mean effect| ≥ θ is tested by a one-sided Welch test; the bound is the least θ that
    all unverified nodes' tests reject, θ* = max over n of |ī₊ − ī₋| + s_W · t_{ν, level}. No correction for the number
    of nodes is due: θ* fails only if the test of the node with the largest effect does. The tests take means for
    normal, so a node should be in some ten samples.

    Raises:
        BadInput: a level that is not between 0 and 1, or a verified site that is none of the nodes.
    """
    require_level(level)
    left = _unverified(subsets, verified)
    found = contrast(subsets)
    thresholds = np.where(subsets.still, 0.0, found.thresholds(level))
    thresholds[~left] = np.nan
    worst = int(np.nanargmax(thresholds)) if left.any() else None
    theta = 0.0 if worst is None else float(thresholds[worst])
    node = None if worst is None else subsets.sites[worst]
    few = int((left & ~subsets.still & ~found.enough).sum())
    return Bound(theta, level, node, thresholds, _statement(theta, level, left=int(left.sum()), few=few))


def theta_of(subsets: Subsets, *, verified: Collection[Site] = (), level: float = 0.99) -> float:
    """Give the bound of `bound_missed` alone, in the metric's unit: for loops that verify or sample until it is low."""
    return bound_missed(subsets, verified=verified, level=level).theta


def p_missed(subsets: Subsets, theta: float | int, *, verified: Collection[Site] = ()) -> float:
    """Test that some unverified node has a |mean effect| of at least `theta`: the largest p-value of theirs.

    It is 1 while a node was in too few samples, and 0 where no node is left.

    Raises:
        BadInput: a `theta` that is negative or no number, or a verified site that is none of the nodes.
    """
    if not 0 <= theta < np.inf:
        raise BadInput(f"theta {theta}: give a size of effect in the metric's unit, 0 or more.")
    left = _unverified(subsets, verified)
    known = (theta <= 0) * np.ones(len(left))
    p = np.where(subsets.still, known, contrast(subsets).p_values(theta))
    return float(p[left].max()) if left.any() else 0.0


def _unverified(subsets: Subsets, verified: Collection[Site]) -> Bool[np.ndarray, " node"]:
    left = np.ones(len(subsets.sites), dtype=np.bool_)
    left[subsets.ground.indices(verified, role="taken as verified")] = False
    return left


def _statement(theta: float, level: float, *, left: int, few: int) -> str:
    """Say what is bounded and what is not."""
    if not left:
        return "Every node was verified, so nothing is left to bound."
    if few:
        return (
            f"No bound: {few:,} of {left:,} unverified nodes were in fewer than 2 samples, or out of fewer than 2. "
            "Draw more samples, raise p, or verify the nodes that were skipped."
        )
    return (
        f"With {100 * level:g} % confidence, none of the {left:,} unverified nodes has a mean effect beyond "
        f"±{number(theta, 3)} in the metric's unit, averaged over pairs and over random joint patches of the other "
        "nodes. This does not bound the mean of |effect|, where signs that differ between pairs do not cancel, nor "
        "effects that appear only while the other nodes are held."
    )
