import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.circuits.circuit import Circuit, top_edges
from crosspatch.circuits.graph import CircuitEdge, Graph
from crosspatch.circuits.recovery import Roc, precision_at, ranking_roc, recall_at, recovery_of, sweep_recovery
from crosspatch.core.errors import BadInput
from crosspatch.sites import Site

GRAPH = Graph(2, 2, 1)


def roc(*points):
    return Roc.of(*(np.array(rates, dtype=float) for rates in zip(*points, strict=True)))


def circuit(*edges, graph=GRAPH, scores=None):
    included = np.zeros(graph.shape, dtype=bool)
    for sender, receiver in edges:
        included[graph.index(CircuitEdge(sender, receiver))] = True
    return Circuit(graph, included, scores)


EMBED, MLP0, MLP1, OUT = Site("embed"), Site("mlp.out", 0), Site("mlp.out", 1), Site("logits")


def scored(seed=0, graph=GRAPH):
    scores = np.random.default_rng(seed).normal(size=graph.shape)
    return Circuit(graph, np.zeros(graph.shape, dtype=bool), scores)


@pytest.mark.parametrize(
    ("points", "pessimistic", "straight"),
    [
        ([(0, 0), (1, 1)], 0, 0.5),
        ([(0.5, 0.5)], 0.25, 0.5),
        ([(0.25, 0.25)], 0.25 * 0.75, 0.5),
        ([(0.25, 0.25), (0.5, 0.5)], 5 / 16, 0.5),
        ([(0.25, 0.25), (0.75, 0.5)], 4 / 16, 13 / 32),
        ([(0, 1)], 1, 1),
        ([(1, 0)], 0, 0),  # not left out: (0, 0) finds as much with fewer false ones, but not more
    ],
)
def test_areas_of_hand_worked_points(points, pessimistic, straight):
    """The first five are the cases that ACDC's authors assert of their own function."""
    found = roc(*points)
    assert found.pessimistic_area == pytest.approx(pessimistic)
    assert found.area == pytest.approx(straight)


def test_beaten_points_are_left_out():
    """(0.5, 0.3) finds less than (0.2, 0.6) with more false ones; equal rates are kept."""
    found = roc((0.2, 0.6), (0.5, 0.3), (0.5, 0.6), (0.2, 0.4))
    assert found.fpr.tolist() == [0, 0.2, 0.2, 0.5, 1]
    assert found.tpr.tolist() == [0, 0.4, 0.6, 0.6, 1]
    assert found.pessimistic_area == pytest.approx(0.6 * 0.8)


@given(st.lists(st.tuples(*[st.integers(0, 12).map(lambda n: n / 12)] * 2), max_size=12))
def test_points_rise_and_are_those_that_nothing_beats(points):
    """The kept points are ACDC's definition, point by point; the lower staircase is never above the straight lines."""
    found = roc(*points) if points else Roc.of(np.zeros(0), np.zeros(0))
    everything = sorted([(0, 0), *points, (1, 1)])
    kept = [(x, y) for x, y in everything if not any(a < x and b > y for a, b in everything)]
    assert list(zip(found.fpr, found.tpr, strict=True)) == kept
    assert (np.diff(found.fpr) >= 0).all()
    assert (np.diff(found.tpr) >= 0).all()
    assert 0 <= found.pessimistic_area <= found.area + 1e-12


def test_ranking_with_ties_and_unscored_candidates():
    """Scores 3 (true), 2 (true and false tied), NaN (false): points (0, 1/2), (1/2, 1), (1, 1)."""
    scores, truth = np.array([np.nan, 2, 3, 2]), np.array([False, True, True, False])
    found = ranking_roc(scores, truth)
    assert found.fpr.tolist() == [0, 0, 0.5, 1, 1]
    assert found.tpr.tolist() == [0, 0.5, 1, 1, 1]
    assert found.area == pytest.approx(0.875)  # of four pairs three are right and one is tied
    assert found.pessimistic_area == pytest.approx(0.75)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=15))
def test_area_is_the_share_of_pairs_in_order(candidates):
    """Mann and Whitney: true above false, ties half."""
    scores, truth = np.array([s for s, _ in candidates], dtype=float), np.array([t for _, t in candidates])
    if truth.all() or not truth.any():
        with pytest.raises(BadInput, match="nothing to tell apart"):
            ranking_roc(scores, truth)
        return
    pairs = [(a > b) + (a == b) / 2 for a in scores[truth] for b in scores[~truth]]
    assert ranking_roc(scores, truth).area == pytest.approx(np.mean(pairs))


def test_recovery_of_edges_ranks_only_edges_that_exist():
    """The reference's edges scored highest by magnitude: area 1; scores where there is no edge are never read."""
    reference = circuit((EMBED, OUT), (MLP0, OUT))
    scores = np.full(GRAPH.shape, 1e9)
    scores[GRAPH.full()] = 0.5
    scores[reference.included] = -2
    found = Circuit(GRAPH, GRAPH.full(), scores)
    assert recovery_of(found, reference).area == 1
    assert recovery_of(found, reference, absolute=False).area == 0


def test_recovery_of_nodes_takes_each_senders_best_edge():
    """Senders in order of their best edges: MLP 0 (true), MLP 1 (false), embedding (true), four heads unscored."""
    scores = np.full(GRAPH.shape, np.nan)
    for sender, score in ((MLP0, 3), (MLP1, 2), (EMBED, 1)):
        scores[GRAPH.index(CircuitEdge(sender, OUT))] = score
    scores[GRAPH.index(CircuitEdge(EMBED, Site("mlp.in", 0)))] = 0.1
    reference = circuit((EMBED, OUT), (MLP0, OUT))
    found = recovery_of(Circuit(GRAPH, GRAPH.full(), scores), reference, of="nodes")
    assert found.fpr.tolist() == [0, 0, 0.2, 0.2, 1, 1]
    assert found.tpr.tolist() == [0, 0.5, 0.5, 1, 1, 1]


def test_a_sweep_over_all_thresholds_is_the_ranking():
    """Circuits of the best 0, 1, 2 … edges give the points that their scores give."""
    found, reference = scored(), circuit((EMBED, OUT), (MLP0, OUT), (MLP0, Site("mlp.in", 1)))
    sweep = [
        found.with_edges(top_edges(GRAPH, found.scores, count, absolute=True)) for count in range(1, GRAPH.size + 1)
    ]
    for of in ("edges", "nodes"):
        one, other = sweep_recovery(sweep, reference, of=of), recovery_of(found, reference, of=of)
        assert one.area == pytest.approx(other.area)
        assert one.pessimistic_area == pytest.approx(other.pessimistic_area)


def test_places_count_apart():
    """An edge at one place is not the same edge at another."""
    graph = Graph(1, 1, 1, places=("S", "end"))
    included = np.zeros(graph.shape, dtype=bool)
    included[graph.index(CircuitEdge(EMBED, OUT, "end"))] = True
    scores = np.zeros(graph.shape)
    scores[graph.index(CircuitEdge(EMBED, OUT, "S"))] = 1
    points = recovery_of(Circuit(graph, included, scores), Circuit(graph, included))
    assert points.fpr[1:3].tolist() == [1 / (graph.size - 1), 1]


def test_precision_and_recall_at_k():
    """Of the three best edges two are among the reference's four."""
    reference = circuit((EMBED, OUT), (MLP0, OUT), (MLP1, OUT), (EMBED, Site("mlp.in", 0)))
    scores = np.full(GRAPH.shape, np.nan)
    for (sender, receiver), score in {(EMBED, OUT): -5, (MLP0, OUT): 4, (MLP0, Site("mlp.in", 1)): 3}.items():
        scores[GRAPH.index(CircuitEdge(sender, receiver))] = score
    found = Circuit(GRAPH, GRAPH.full(), scores)
    assert precision_at(found, reference, count=3) == pytest.approx(2 / 3)
    assert recall_at(found, reference, count=3) == pytest.approx(2 / 4)
    assert recall_at(found, reference, count=2, absolute=False) == pytest.approx(1 / 4)
    assert recall_at(found, reference, count=GRAPH.size) == 1


def test_what_cannot_be_compared_is_refused():
    reference = circuit((EMBED, OUT))
    with pytest.raises(BadInput, match="two graphs"):
        recovery_of(scored(graph=Graph(1, 1, 1)), reference)
    with pytest.raises(BadInput, match="two graphs"):
        sweep_recovery([circuit(graph=Graph(1, 1, 1))], reference)
    with pytest.raises(BadInput, match="no scores to rank by"):
        recovery_of(reference, reference)
    with pytest.raises(BadInput, match="holds 0 of"):
        recovery_of(scored(), circuit())
    with pytest.raises(BadInput, match="holds 0 of"):
        sweep_recovery([reference], circuit())
    with pytest.raises(BadInput, match="nothing to recall"):
        recall_at(scored(), circuit(), count=1)
    with pytest.raises(BadInput, match=f"count is {GRAPH.size + 1}"):
        precision_at(scored(), reference, count=GRAPH.size + 1)
    with pytest.raises(BadInput, match="between 0 and 1"):
        roc((0.5, 1.5))
