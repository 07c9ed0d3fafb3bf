"""The cost of verified recall: how many forward passes until the true top K nodes have been patched exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Int64

from crosspatch.core.errors import BadInput
from crosspatch.draw import Display, Displayed, number

Truth = Float[np.ndarray, " node"]
Places = Int[np.ndarray, " place"]
Costs = Float64[np.ndarray, " k"]
Spent = float | int | Float64[np.ndarray, " place"]


@dataclass(frozen=True, eq=False)
class Order:
    """An order to verify nodes in, one exact patch a node and pair.

    `nodes[i]` is verified i-th; `spent[i]` is what was spent by then beside the verifications themselves. Costs are in
    forward passes over all pairs, the cost of verifying one node.
    """

    method: str
    nodes: Int64[np.ndarray, " place"]
    spent: Float64[np.ndarray, " place"]

    @classmethod
    def by_score(cls, method: str, scores: Truth, *, spent: float | int = 0.0) -> "Order":
        """Order nodes by an estimate, largest first; ties by index, NaN last. `spent` is what the estimate cost."""
        nodes = np.argsort(-np.nan_to_num(scores.astype(np.float64), nan=-np.inf), kind="stable")
        return cls(method, nodes.astype(np.int64), np.full(len(nodes), float(spent)))


@dataclass(frozen=True, eq=False, repr=False)
class RecallCurve(Displayed):
    """The cost of verified recall of one method: `costs[K − 1]` for the true top K, and `area`, 1 for the oracle."""

    method: str
    costs: Costs
    area: float

    def display(self) -> Display:
        """Say what it costs to have verified the true top 1, 2, 5, 10, … nodes."""
        tops = [k for power in range(7) for step in (1, 2, 5) if (k := step * 10**power) <= len(self.costs)]
        rows = [(str(k), f"{self.costs[k - 1]:,.0f}") for k in tops]
        title = f"Verified recall by {self.method}: area {number(self.area)} (the oracle has 1)"
        return Display(title, ("true top", "forward passes"), rows)


def recall_costs(order: Places | Sequence[int], truth: Truth, *, spent: Spent = 0.0) -> Costs:
    """Give the cost, in forward passes over all pairs, at which the true top K have all been verified, K = 1 … n.

    `truth` are exact scores c(n) = mean over pairs of |effect|; ties are ranked by index. `spent` is what the estimate
    cost, or what was spent beside verifications before each place of the order. (Kramár et al. 2024.)

    Raises:
        BadInput: an order that does not name each node once, a score that is no number, or costs of another length.
    """
    nodes = _permutation(order, truth)
    extra = np.asarray(spent, dtype=np.float64)
    if extra.shape not in ((), nodes.shape):
        raise BadInput(f"costs of {np.shape(spent)} for {len(nodes)} nodes: give one number, or one a place.")
    when = np.empty(len(nodes))
    when[nodes] = np.arange(1, len(nodes) + 1) + extra
    # Largest first, ties by index; a top K is verified when its last node is.
    return np.maximum.accumulate(when[np.argsort(-truth.astype(np.float64), kind="stable")])


def oracle(truth: Truth) -> Costs:
    """Give the least possible cost of the top K: K, by an order that knows the truth."""
    return np.arange(1, len(truth) + 1, dtype=np.float64)


def area(costs: Costs, best: Float64[np.ndarray, " best"]) -> float:
    """Average the relative cost over K: exp(Σ_K log(cost_K / best_K)/K / Σ_K 1/K), 1 for the oracle; NaN of no node.

    The inverse-rank-weighted geometric mean of Kramár et al. 2024.

    Raises:
        BadInput: arrays of two lengths, or a cost that is not above zero.
    """
    if costs.shape != best.shape or not ((costs > 0) & (best > 0)).all():
        raise BadInput(f"costs of {len(costs)} and {len(best)} ranks: give as many of both, all above zero.")
    if not len(costs):
        return float("nan")
    weights = 1.0 / np.arange(1, len(costs) + 1)
    return float(np.exp((weights * np.log(costs / best)).sum() / weights.sum()))


def recall_curve(order: Order, truth: Truth) -> RecallCurve:
    """Measure an order against the exact scores. Raises BadInput as `recall_costs` does."""
    costs = recall_costs(order.nodes, truth, spent=order.spent)
    return RecallCurve(order.method, costs, area(costs, oracle(truth)))


def _permutation(order: Places | Sequence[int], truth: Truth) -> Int64[np.ndarray, " place"]:
    nodes = np.asarray(order, dtype=np.int64)
    if not np.array_equal(np.sort(nodes), np.arange(len(truth))):
        raise BadInput(
            f"an order of {len(nodes)} entries for {len(truth)} nodes: each of 0..{len(truth) - 1} must stand in it "
            "once."
        )
    if np.isnan(truth).any():
        raise BadInput(
            f"{int(np.isnan(truth).sum())} of {len(truth)} true scores are no number: patch every node first, or leave "
            "those nodes out."
        )
    return nodes
