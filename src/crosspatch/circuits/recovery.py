"""How well a ranking, or a list of circuits, finds a circuit that is known: ROC points, areas, precision and recall."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.circuits.circuit import Circuit, top_edges
from crosspatch.core.errors import BadInput
from crosspatch.draw import Display, Displayed, number

Points = Float[np.ndarray, " point"]
Of = Literal["edges", "nodes"]


@dataclass(frozen=True, eq=False, repr=False)
class Roc(Displayed):
    """False and true positive rates (shares, 0 to 1) of answers of growing size, (0, 0) and (1, 1) among them.

    Sorted by false, then by true positives. Points that another one beats (fewer false and more true positives) are
    left out, as Conmy et al. 2023 do; of a ranking there are none.
    """

    fpr: Points
    tpr: Points

    @classmethod
    def of(cls, fpr: Points, tpr: Points) -> "Roc":
        """Add both corners, sort, and leave out points that are beaten.

        Raises:
            BadInput: a rate is not between 0 and 1, or the lists differ in length.
        """
        if fpr.shape != tpr.shape or not all(((rates >= 0) & (rates <= 1)).all() for rates in (fpr, tpr)):
            raise BadInput("ROC points are as many false as true positive rates, each between 0 and 1.")
        x, y = (np.concatenate([[0.0], rates.astype(np.float64), [1.0]]) for rates in (fpr, tpr))
        order = np.lexsort((y, x))
        x, y = x[order], y[order]
        before = np.searchsorted(x, x, side="left")  # number of points with strictly fewer false positives
        best = np.concatenate([[-np.inf], np.maximum.accumulate(y)])[before]
        return cls(x[y >= best], y[y >= best])

    def display(self) -> Display:
        """Give the areas and the number of points."""
        rows = [("area", number(self.area, 3)), ("pessimistic area", number(self.pessimistic_area, 3))]
        return Display(f"ROC of {len(self.fpr)} points", ("under them", "share"), rows)

    @cached_property
    def area(self) -> float:
        """Area under straight lines between the points; of a ranking the chance that a true one ranks above a false.

        Ties count half (Mann and Whitney).
        """
        return float((np.diff(self.fpr) * (self.tpr[1:] + self.tpr[:-1]) / 2).sum())

    @cached_property
    def pessimistic_area(self) -> float:
        """Area under the lowest staircase through the points: the sum of (1 − FPR of a point) times its step in TPR.

        Between two points nothing is taken to be found before the second, so the points (0, 0), (1, 1) alone give 0,
        not one half. This is the area of ACDC's tables (Conmy et al. 2023, `pessimistic_auc`).
        """
        return float(((1 - self.fpr[1:]) * np.diff(self.tpr)).sum())


def ranking_roc(scores: Float[np.ndarray, " candidate"], truth: Bool[np.ndarray, " candidate"]) -> Roc:
    """Return the ROC points of candidates taken by falling score; ties come together, NaN last.

    Raises:
        BadInput: none of the candidates is true, or all are.
    """
    positives, negatives = _both(truth)
    keys = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-keys, kind="stable")
    hits, ranked = np.cumsum(truth[order]), keys[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # the last of each tie
    return Roc.of((ends + 1 - hits[ends]) / negatives, hits[ends] / positives)


def recovery_of(found: Circuit, reference: Circuit, *, of: Of = "edges", absolute: bool = True) -> Roc:
    """Return the ROC points of a circuit's scores against the edges or nodes of a reference.

    Candidates are all edges of the graph, or all senders; a sender's score is that of its best edge, so it is found
    when its first edge is. `absolute` ranks by magnitude. What is included in `found` does not matter.

    Raises:
        BadInput: there are no scores, the graphs differ, or the reference holds nothing or everything.
    """
    keys = _keys(found, reference, absolute)
    allowed = found.graph.full()
    if of == "edges":
        return ranking_roc(keys[allowed], reference.included[allowed])
    best = np.where(np.isnan(keys) | ~allowed, -np.inf, keys).max((0, 1))
    return ranking_roc(best, np.asarray(reference.included.any((0, 1))))


def sweep_recovery(circuits: Sequence[Circuit], reference: Circuit, *, of: Of = "edges") -> Roc:
    """Return the ROC points of circuits (of a sweep over thresholds, say) against the edges or nodes of a reference.

    Nodes are senders with an edge to somewhere. (ACDC's nodes are finer: each head is seven of them.)

    Raises:
        BadInput: the graphs differ, or the reference holds nothing or everything.
    """
    for circuit in circuits:
        _same_graph(circuit, reference)
    allowed = reference.graph.full()

    def answer(circuit: Circuit) -> Bool[np.ndarray, " candidate"]:
        return circuit.included[allowed] if of == "edges" else np.asarray(circuit.included.any((0, 1)))

    truth = answer(reference)
    positives, negatives = _both(truth)
    hits = np.array([(answer(circuit) & truth).sum() for circuit in circuits], dtype=np.float64)
    false = np.array([(answer(circuit) & ~truth).sum() for circuit in circuits], dtype=np.float64)
    return Roc.of(false / negatives, hits / positives)


def precision_at(found: Circuit, reference: Circuit, *, count: int, absolute: bool = True) -> float:
    """Return the share of the `count` edges with the highest scores that the reference holds. Raises as `recall_at`."""
    return _hits(found, reference, count, absolute=absolute) / count


def recall_at(found: Circuit, reference: Circuit, *, count: int, absolute: bool = True) -> float:
    """Return the share of the reference's edges among the `count` edges with the highest scores.

    Edges of equal score are taken in the graph's order.

    Raises:
        BadInput: there are no scores, the graphs differ, the reference holds nothing, or there are not that many edges.
    """
    if reference.size == 0:
        raise BadInput("the reference circuit has no edges, so there is nothing to recall.")
    return _hits(found, reference, count, absolute=absolute) / reference.size


def _hits(found: Circuit, reference: Circuit, count: int, *, absolute: bool) -> int:
    _keys(found, reference, absolute)
    if not 1 <= count <= found.graph.size:
        raise BadInput(f"count is {count}: the graph has {found.graph.size} edges, so give 1 to {found.graph.size}.")
    assert found.scores is not None
    best = top_edges(found.graph, found.scores, count, absolute=absolute)
    return int((best & reference.included).sum())


def _keys(found: Circuit, reference: Circuit, absolute: bool) -> Float[np.ndarray, "place receiver sender"]:
    _same_graph(found, reference)
    if found.scores is None:
        raise BadInput("the circuit has no scores to rank by: compare circuits of a sweep with `sweep_recovery`.")
    return np.abs(found.scores) if absolute else found.scores


def _same_graph(found: Circuit, reference: Circuit) -> None:
    if found.graph != reference.graph:
        raise BadInput(f"the circuits are of two graphs, {found.graph} and {reference.graph}: compare what is alike.")


def _both(truth: Bool[np.ndarray, " candidate"]) -> tuple[int, int]:
    positives = int(truth.sum())
    if positives in (0, len(truth)):
        raise BadInput(f"the reference holds {positives} of {len(truth)} candidates: there is nothing to tell apart.")
    return positives, len(truth) - positives
