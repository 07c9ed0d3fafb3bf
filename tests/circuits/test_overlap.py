from fractions import Fraction
from math import comb, exp, inf, isnan, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.graph import CircuitEdge, Graph
from crosspatch.circuits.overlap import Shared, compare_circuits, log_hypergeometric_tail
from crosspatch.core.errors import BadInput
from crosspatch.sites import Site

GRAPH = Graph(2, 2, 1)


def exact_tail(both, first, second, of):
    ways = sum(comb(first, k) * comb(of - first, second - k) for k in range(both, min(first, second) + 1) if k >= 0)
    return Fraction(ways, comb(of, second))


def circuit(*edges, graph=GRAPH):
    included = np.zeros(graph.shape, dtype=bool)
    for edge in edges:
        included[graph.index(CircuitEdge(*edge))] = True
    return Circuit(graph, included)


EMBED, HEAD, MLP0, OUT = Site("embed"), Site("attn.head", 0, 1), Site("mlp.out", 0), Site("logits")


def test_hand_worked_overlap():
    """{a, b, c} and {b, c, d} of 10 candidates share 2: C(3,2)·C(7,1)/C(10,3) + 1/C(10,3) = 22/120."""
    shared = Shared(first=3, second=3, both=2, of=10)
    assert shared.jaccard == 0.5
    assert (shared.of_first, shared.of_second) == pytest.approx((2 / 3, 2 / 3))
    assert shared.expected == pytest.approx(0.9)
    assert shared.p == pytest.approx(22 / 120)


@given(st.data())
def test_tail_equals_exact_fractions(data):
    of = data.draw(st.integers(1, 60))
    first, second = (data.draw(st.integers(0, of)) for _ in range(2))
    both = data.draw(st.integers(0, min(first, second)))
    expected = exact_tail(both, first, second, of)
    found = log_hypergeometric_tail(both, first=first, second=second, of=of)
    assert exp(found) == pytest.approx(float(expected), rel=1e-10, abs=0)


def test_tail_of_a_real_graph_is_exact_where_floats_end():
    """GPT-2 small: 500 of 700 edges among 1041 by chance is about 1e-600; the exact fraction's logarithm agrees."""
    expected = exact_tail(500, 700, 1041, 32491)
    assert float(expected) == 0
    logarithm = log(expected.numerator) - log(expected.denominator)
    assert log_hypergeometric_tail(500, first=700, second=1041, of=32491) == pytest.approx(logarithm, rel=1e-12)
    near = exact_tail(22, 700, 1041, 32491)  # around the mean, where the other tail is summed too
    assert exp(log_hypergeometric_tail(22, first=700, second=1041, of=32491)) == pytest.approx(float(near), rel=1e-8)


def test_ends_of_the_tail():
    """What must happen has chance 1, what cannot has none, everything shared has 1 / C(of, size)."""
    assert log_hypergeometric_tail(0, first=3, second=4, of=9) == 0
    assert log_hypergeometric_tail(2, first=6, second=5, of=9) == 0
    assert log_hypergeometric_tail(4, first=3, second=5, of=9) == -inf
    assert exp(log_hypergeometric_tail(3, first=3, second=3, of=9)) == pytest.approx(1 / comb(9, 3))
    with pytest.raises(BadInput, match="cannot be drawn"):
        log_hypergeometric_tail(1, first=10, second=1, of=9)


def test_overlap_of_two_circuits():
    """Two edges of three and of four are shared; three senders (embedding, a head, an MLP) of seven are in each."""
    one = circuit((EMBED, OUT), (HEAD, OUT), (MLP0, OUT))
    other = circuit((EMBED, OUT), (HEAD, OUT), (MLP0, Site("mlp.in", 1)), (EMBED, Site("attn.q", 1, 0)))
    found = compare_circuits(one, other)
    assert found.edges == Shared(3, 4, 2, GRAPH.size)
    assert found.nodes == Shared(3, 3, 3, 7)
    assert found.nodes.p == pytest.approx(1 / comb(7, 3))
    assert set(GRAPH.edges(found.included)) == {CircuitEdge(EMBED, OUT), CircuitEdge(HEAD, OUT)}
    assert str(found).startswith(f"edges: 2 shared of 3 and 4 (by chance {12 / GRAPH.size:.1f} of {GRAPH.size}, p = ")


def test_places_count_apart_as_edges_and_once_as_nodes():
    graph = Graph(2, 2, 1, places=("S", "end"))
    found = compare_circuits(circuit((EMBED, OUT, "S"), graph=graph), circuit((EMBED, OUT, "end"), graph=graph))
    assert found.edges == Shared(1, 1, 0, 2 * GRAPH.size)
    assert found.nodes == Shared(1, 1, 1, 7)


def test_empty_circuits_have_no_shares():
    found = compare_circuits(circuit(), circuit((EMBED, OUT)))
    assert isnan(found.edges.of_first)
    assert found.edges.of_second == 0
    assert found.edges.p == 1
    assert isnan(compare_circuits(circuit(), circuit()).edges.jaccard)
    assert "Jaccard –" in str(compare_circuits(circuit(), circuit()))


def test_two_graphs_are_refused():
    with pytest.raises(BadInput, match="two graphs"):
        compare_circuits(circuit(), circuit(graph=Graph(1, 1, 1)))
