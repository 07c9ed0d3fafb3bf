import pytest

from crosspatch.circuits.graph import CircuitEdge
from crosspatch.circuits.known import KNOWN, counted_by_acdc, known_circuit
from crosspatch.core.errors import UnknownName
from crosspatch.sites import Site


@pytest.mark.parametrize(
    ("name", "edges", "counted", "heads"),
    [("ioi", 963, 1041, 26), ("greater-than", 235, 262, 9), ("docstring", 24, 37, 6)],
)
def test_published_numbers(name, edges, counted, heads):
    """Conmy et al. 2023 count 1041, 262 and 37 edges; the heads are those of each paper; all edges lead somewhere."""
    found = known_circuit(name)
    assert found.size == edges
    assert counted_by_acdc(found) == counted == found.settings["counted_by_acdc"]
    assert sum(site.kind == "attn.head" for site in found.nodes) == heads
    assert found.pruned().size == edges
    assert found.scores is None


def has(circuit, sender, receiver):
    return bool(circuit.included[circuit.graph.index(CircuitEdge(sender, receiver))])


def test_ioi_connections():
    """S-inhibition steers the queries of name movers; induction feeds keys and values, and never the output."""
    found = known_circuit("ioi")
    inhibitor, mover, induction = Site("attn.head", 8, 6), (9, 9), Site("attn.head", 5, 5)
    assert has(found, inhibitor, Site("attn.q", *mover))
    assert not has(found, inhibitor, Site("attn.k", *mover))
    assert has(found, Site("attn.head", *mover), Site("logits"))
    assert has(found, induction, Site("attn.v", 8, 6))
    assert not has(found, induction, Site("logits"))
    assert has(found, Site("attn.head", 2, 2), Site("attn.k", 5, 5))
    assert not has(found, Site("embed"), Site("attn.k", 5, 5))
    assert has(found, Site("mlp.out", 4), Site("attn.k", 5, 5))
    assert found.details["groups"]["previous token"] == ["2.2", "4.11"]
    assert found.details["groups"]["name movers"] == ["9.9", "10.0", "9.6"]


def test_ioi_edges_by_group_of_links():
    """Counted by hand: 91 among embedding, MLPs and output; 567 from MLPs to heads; 123 back; 182 between heads."""
    found = known_circuit("ioi")
    kinds = [(edge.sender.kind, edge.receiver.kind.startswith("attn.")) for edge in found.edges]
    to_head = [edge for edge in found.edges if edge.receiver.kind.startswith("attn.")]
    assert sum(edge.sender.kind == "mlp.out" for edge in to_head) == 3 * 189
    assert (
        sum(edge.sender.kind == "attn.head" and edge.receiver.kind == "mlp.in" for edge in found.edges) == 12 * 26 - 189
    )
    assert sum(not head and kind != "attn.head" for kind, head in kinds) == 66 + 12 + 12 + 1
    assert sum(edge.sender.kind == "embed" for edge in to_head) == 45
    assert sum(edge.sender.kind == "attn.head" for edge in to_head) == 16 + 32 + 24 + 52
    assert sum(edge.sender.kind == "attn.head" and edge.receiver.kind == "logits" for edge in found.edges) == 13


def test_greater_than_and_docstring_connections():
    greater, docstring = known_circuit("greater-than"), known_circuit("docstring")
    assert has(greater, Site("attn.head", 8, 11), Site("mlp.in", 8))
    assert not has(greater, Site("attn.head", 0, 3), Site("mlp.in", 0))
    assert has(greater, Site("mlp.out", 5), Site("attn.q", 6, 1))
    assert not has(greater, Site("mlp.out", 5), Site("attn.k", 6, 1))
    assert has(docstring, Site("attn.head", 1, 4), Site("attn.q", 3, 6))
    assert has(docstring, Site("attn.head", 2, 0), Site("attn.k", 3, 0))
    assert not docstring.graph.mlps


def test_docstring_edges_one_by_one():
    """All 24, as the paper's figure shows them."""
    into = {
        "attn.v[0, 5]": "embed",
        "attn.v[1, 4]": "embed 0.5",
        "attn.q[1, 2]": "embed 0.5",
        "attn.k[1, 2]": "embed 0.5",
        "attn.q[2, 0]": "embed 0.5",
        "attn.k[2, 0]": "embed 0.5",
        "attn.v[2, 0]": "1.4",
        **{f"attn.q[3, {head}]": "1.4" for head in (0, 6)},
        **{f"attn.k[3, {head}]": "1.2 2.0" for head in (0, 6)},
        **{f"attn.v[3, {head}]": "embed 0.5" for head in (0, 6)},
        "logits": "3.0 3.6",
    }
    names = {f"attn.head[{layer}, {head}]": f"{layer}.{head}" for layer in range(4) for head in range(8)}
    found = {}
    for edge in known_circuit("docstring").edges:
        found.setdefault(str(edge.receiver), set()).add(names.get(str(edge.sender), "embed"))
    assert found == {receiver: set(senders.split()) for receiver, senders in into.items()}


def test_known_circuits_say_their_source():
    assert all("2304.14997" in known_circuit(name).settings["source"] for name in KNOWN)
    with pytest.raises(UnknownName, match="Did you mean 'docstring'"):
        known_circuit("docstrings")
