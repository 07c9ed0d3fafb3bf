import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspatch.circuits.circuit import Circuit, top_edges
from crosspatch.circuits.eap_ig import read_eap_ig, write_eap_ig
from crosspatch.circuits.exchange import HookedEdge, from_transformer_lens_edge, to_transformer_lens_edge
from crosspatch.circuits.graph import CircuitEdge, Graph
from crosspatch.circuits.known import known_circuit
from crosspatch.circuits.neuronpedia import ShownPrompt, read_neuronpedia, to_neuronpedia, write_neuronpedia
from crosspatch.core.errors import BadInput
from crosspatch.sites import Site
from neuronpedia_schema import read_checked

EMBED, OUT = Site("embed"), Site("logits")


def made(graph, seed=0, count=15):
    scores = np.random.default_rng(seed).normal(size=graph.shape).astype(np.float32)
    return Circuit(graph, top_edges(graph, scores, count, absolute=True), scores)


def marked(graph, *edges, scores=None):
    included = np.zeros(graph.shape, dtype=bool)
    for edge in edges:
        included[graph.index(CircuitEdge(*edge))] = True
    return Circuit(graph, included, scores)


# EAP-IG


def test_names_and_marks_in_the_file(tmp_path):
    """One layer, two heads that share a key: names as EAP-IG writes them, the shared edge once a head, halved."""
    graph = Graph(1, 2, 1)
    scores = np.full(graph.shape, np.nan, np.float32)
    edges = [(EMBED, Site("attn.k", 0, 0)), (Site("attn.head", 0, 1), Site("mlp.in", 0)), (Site("mlp.out", 0), OUT)]
    for edge, score in zip(edges, (3.0, -1.5, 2.0), strict=True):
        scores[graph.index(CircuitEdge(*edge))] = score
    path = write_eap_ig(marked(graph, *edges, scores=scores), tmp_path / "g.json", d_model=8)
    data = json.loads(path.read_text())
    assert data["cfg"] == {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    heads = ["input->a0.h0<q>", "input->a0.h1<q>", "input->a0.h0<k>", "input->a0.h1<k>", "input->a0.h0<v>"]
    others = ["input->a0.h1<v>", "input->m0", "a0.h0->m0", "a0.h1->m0", "input->logits", "a0.h0->logits"]
    assert set(data["edges"]) == {*heads, *others, "a0.h1->logits", "m0->logits"}
    assert data["edges"]["input->a0.h1<k>"] == {"score": 1.5, "in_graph": True}
    assert data["edges"]["a0.h1->m0"] == {"score": -1.5, "in_graph": True}
    assert data["edges"]["a0.h0->m0"] == {"score": 0.0, "in_graph": False}
    nodes = {name: node["in_graph"] for name, node in data["nodes"].items()}
    assert nodes == {"input": True, "a0.h0": False, "a0.h1": True, "m0": True, "logits": True}


@settings(max_examples=25, deadline=None)
@given(layers=st.integers(1, 3), group=st.integers(1, 3), kv=st.integers(1, 2), sequential=st.booleans())
def test_round_trip_of_eap_ig(tmp_path_factory, layers, group, kv, sequential):
    """Marks and float32 scores come back to the bit, with heads that share keys too."""
    graph = Graph(layers, group * kv, kv, sequential)
    circuit = made(graph)
    path = write_eap_ig(circuit, tmp_path_factory.mktemp("g") / "g.json", d_model=16)
    back = read_eap_ig(path, graph)
    np.testing.assert_array_equal(back.included, circuit.included)
    allowed = graph.full()
    np.testing.assert_array_equal(back.scores[allowed], circuit.scores[allowed])
    assert back.settings["d_model"] == 16
    again = write_eap_ig(back, path.with_name("again.json"))
    assert again.read_text() == path.read_text()


def test_a_file_alone_makes_its_graph(tmp_path):
    circuit = known_circuit("greater-than")
    back = read_eap_ig(write_eap_ig(circuit, tmp_path / "g.json", d_model=768))
    assert back.graph == circuit.graph
    assert back.edges == circuit.edges
    assert (back.scores[circuit.graph.full()] == 0).all()


def test_attention_and_mlp_in_parallel(tmp_path):
    """The file says so, and the graph lacks the edges from heads to their layer's MLP."""
    graph = Graph(2, 2, 2, sequential=False)
    path = write_eap_ig(made(graph), tmp_path / "g.json", d_model=8)
    assert "a0.h0->m0" not in json.loads(path.read_text())["edges"]
    assert read_eap_ig(path).graph == graph


def changed(tmp_path, change, graph=None):
    path = write_eap_ig(made(graph or Graph(2, 2, 2)), tmp_path / "g.json", d_model=8)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def test_edges_left_out_have_no_score(tmp_path):
    graph = Graph(2, 2, 2)
    back = read_eap_ig(changed(tmp_path, lambda data: data["edges"].pop("m0->logits")))
    assert np.isnan(back.score(CircuitEdge(Site("mlp.out", 0), OUT)))
    assert np.isnan(back.scores[graph.full()]).sum() == 1


def test_heads_that_share_a_key_must_agree(tmp_path):
    """Scores are summed; an edge that is marked for one head of two is refused, or decided by `partial`."""
    graph = Graph(1, 2, 1)
    key = CircuitEdge(EMBED, Site("attn.k", 0, 0))

    def split(data):
        data["edges"]["input->a0.h0<k>"] = {"score": 2.0, "in_graph": True}
        data["edges"]["input->a0.h1<k>"] = {"score": -0.5, "in_graph": False}

    path = changed(tmp_path, split, graph)
    with pytest.raises(BadInput, match="marks 1 edges to keys or values for some of the heads"):
        read_eap_ig(path, graph)
    either, every = read_eap_ig(path, graph, partial="any"), read_eap_ig(path, graph, partial="all")
    assert either.score(key) == every.score(key) == 1.5
    assert either.included[graph.index(key)]
    assert not every.included[graph.index(key)]
    path = changed(tmp_path, lambda data: data["edges"].pop("input->a0.h0<v>"), graph)
    with pytest.raises(BadInput, match="some heads of a group"):
        read_eap_ig(path, graph)


def rename(data, old, new):
    data["edges"][new] = data["edges"].pop(old)


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("no sender 'a9.h0' in a model of 2 layers with 2 heads", lambda d: rename(d, "a0.h0->m0", "a9.h0->m0")),
        ("no receiver 'a1.h5<q>'", lambda d: rename(d, "input->a1.h1<q>", "input->a1.h5<q>")),
        ("no receiver 'a1.h1'", lambda d: rename(d, "input->a1.h1<q>", "input->a1.h1")),
        ("no receiver ''", lambda d: rename(d, "a0.h0->m0", "a0.h0")),
        ("before the sender writes", lambda d: rename(d, "m1->logits", "m1->m0")),
        ("there is no node 'm7'", lambda d: d["nodes"].update(m7=d["nodes"].pop("m1"))),
        ("makes 10 nodes, it lists 8", lambda d: d["cfg"].update(n_heads=3)),
        (r"edges.m0->m1.score: Input should be a finite number", lambda d: d["edges"]["m0->m1"].update(score=np.nan)),
        ("edges.m0->m1.score: Input should be a valid number", lambda d: d["edges"]["m0->m1"].update(score="big")),
        ("edges.m0->m1.in_graph", lambda d: d["edges"]["m0->m1"].pop("in_graph")),
        ("cfg.n_layers: Input should be greater than 0", lambda d: d["cfg"].update(n_layers=0)),
        ("nodes: Field required", lambda d: d.pop("nodes")),
        ("some of the neurons of m0", lambda d: d["nodes"]["m0"].update(neurons=[True, False])),
        ("and 2 more problems", lambda d: [d["edges"][e].pop("score") for e in list(d["edges"])[:5]]),
    ],
)
def test_bad_eap_ig_files_are_refused(tmp_path, said, change):
    with pytest.raises(BadInput, match=said):
        read_eap_ig(changed(tmp_path, change))


def test_files_that_are_none_or_of_another_model_are_refused(tmp_path):
    path = changed(tmp_path, lambda data: None)
    for graph, said in (
        (Graph(3, 2, 2), "layers: 2 in the file, 3 here"),
        (Graph(2, 4, 2), "heads: 2 in the file, 4 here"),
        (Graph(2, 2, 2, sequential=False), "in parallel: False in the file, True here"),
        (Graph(2, 2, 2, places=("end",)), "no positions"),
        (Graph(2, 2, 2, mlps=False), "no models without MLPs"),
    ):
        with pytest.raises(BadInput, match=said):
            read_eap_ig(path, graph)
    with pytest.raises(BadInput, match="cannot be read"):
        read_eap_ig(tmp_path / "none.json")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadInput, match="EOF while parsing"):
        read_eap_ig(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="is not a graph as EAP-IG"):
        read_eap_ig(path)


def test_circuits_that_the_format_cannot_say_are_refused(tmp_path):
    for graph, said in ((Graph(1, 1, 1, places=("a",)), "no positions"), (Graph(1, 1, 1, mlps=False), "without MLPs")):
        with pytest.raises(BadInput, match=said):
            write_eap_ig(Circuit(graph, graph.full()), tmp_path / "g.json", d_model=8)
    with pytest.raises(BadInput, match="give d_model"):
        write_eap_ig(made(Graph(1, 1, 1), count=2), tmp_path / "g.json")


# TransformerLens


def test_transformer_lens_names_of_an_edge():
    graph = Graph(12, 12, 12)
    edge = CircuitEdge(Site("attn.head", 5, 3), Site("attn.q", 7, 2))
    assert to_transformer_lens_edge(graph, edge) == HookedEdge(
        "blocks.5.attn.hook_result", "blocks.7.hook_q_input", 3, 2
    )
    ends = to_transformer_lens_edge(graph, CircuitEdge(EMBED, OUT))
    assert ends == HookedEdge("blocks.0.hook_resid_pre", "blocks.11.hook_resid_post")
    assert from_transformer_lens_edge(graph, HookedEdge("hook_embed", ends.receiver)) == CircuitEdge(EMBED, OUT)
    within = to_transformer_lens_edge(graph, CircuitEdge(Site("attn.head", 4, 11), Site("mlp.in", 4)))
    assert within == HookedEdge("blocks.4.attn.hook_result", "blocks.4.hook_mlp_in", 11)


def test_every_edge_comes_back_from_its_names():
    graph = Graph(2, 4, 2, places=("S", "end"))
    edges = list(graph.edges(graph.full()))
    named = [to_transformer_lens_edge(graph, edge) for edge in edges]
    assert len(set(named)) == graph.size
    assert [from_transformer_lens_edge(graph, each) for each in named] == edges


@pytest.mark.parametrize(
    ("edge", "said"),
    [
        (HookedEdge("blocks.0.hook_q_input", "blocks.1.hook_mlp_in", 0), "is no sender of edges in TransformerLens"),
        (HookedEdge("hook_embed", "blocks.0.hook_mlp_out"), "is no receiver of edges"),
        (HookedEdge("hook_embed", "blocks.0.hook_resid_post"), "There are blocks.1.hook_resid_post"),
        (HookedEdge("hook_embed", "blocks.0.hook_q_input"), "needs a head"),
        (HookedEdge("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_in", 1), "has no heads, head 1 was given"),
        (HookedEdge("blocks.0.hook_mlp_out", "blocks.0.hook_mlp_in"), "before the sender writes"),
    ],
)
def test_names_of_no_edge_are_refused(edge, said):
    with pytest.raises(BadInput, match=said):
        from_transformer_lens_edge(Graph(2, 2, 2), edge)


# neuronpedia

PROMPT = ShownPrompt("tiny", "a b c", ("<s>", "a", " b", " c"), {"S": 2, "end": 3}, answer=" d", probability=0.25)
PLACED = Graph(2, 2, 2, places=("S", "end"))


def links(found):
    return {(link.source, link.target): link.weight for link in found.links}


def test_nodes_stand_at_the_tokens_of_their_places():
    """A key and a value read at S feed a head that writes at the end: one link there, with the sum of both scores."""
    head, scores = Site("attn.head", 1, 0), np.zeros(PLACED.shape, np.float32)
    edges = [
        (EMBED, Site("attn.k", 1, 0), "S"),
        (EMBED, Site("attn.v", 1, 0), "S"),
        (EMBED, Site("attn.q", 1, 0), "end"),
        (EMBED, Site("mlp.in", 0), "S"),
        (head, OUT, "end"),
    ]
    for edge, score in zip(edges, (1.0, 0.5, -2.0, 4.0, 8.0), strict=True):
        scores[PLACED.index(CircuitEdge(*edge))] = score
    found = to_neuronpedia(marked(PLACED, *edges, scores=scores), PROMPT, slug="x")
    assert links(found) == {
        ("E_2_2", "1_0_3"): 1.5,
        ("E_3_3", "1_0_3"): -2.0,
        ("E_2_2", "0_2_2"): 4.0,
        ("1_0_3", "2_0_3"): 8.0,
    }
    kinds = {node.node_id: (node.feature_type, node.ctx_idx, node.clerp) for node in found.nodes}
    assert kinds == {
        "E_2_2": ("embedding", 2, "Emb: ' b'"),
        "E_3_3": ("embedding", 3, "Emb: ' c'"),
        "0_2_2": ("mlp", 2, "mlp.out[0]"),
        "1_0_3": ("attention head", 3, "attn.head[1, 0]"),
        "2_0_3": ("logit", 3, 'Output " d" (p=0.250)'),
    }


def test_a_value_acts_where_it_is_read_and_later():
    """Read at S by a head that writes at S and at the end: half each; read at the end: only there."""
    head, value = Site("attn.head", 0, 1), Site("attn.v", 0, 1)
    edges = [(EMBED, value, "S"), (EMBED, value, "end"), (head, OUT, "S"), (head, OUT, "end")]
    found = links(to_neuronpedia(marked(PLACED, *edges), PROMPT, slug="x"))
    assert (found["E_2_2", "0_1_2"], found["E_2_2", "0_1_3"]) == (0.5, 0.5)
    assert found["E_3_3", "0_1_3"] == 1
    assert ("E_3_3", "0_1_2") not in found


def test_parts_of_links_add_up_to_the_scores():
    """Heads that share keys, several places, q, k and v in one target: the weights' sum is the scores' sum."""
    circuit = made(Graph(3, 4, 2, places=("S", "end")), count=60)
    found = to_neuronpedia(circuit, PROMPT, slug="x")
    assert sum(links(found).values()) == pytest.approx(float(circuit.scores[circuit.included].sum()), rel=1e-5)
    unscored = Circuit(circuit.graph, circuit.included, np.full_like(circuit.scores, np.nan))
    assert set(links(to_neuronpedia(unscored, PROMPT, slug="x")).values()) == {0}
    plain = to_neuronpedia(Circuit(circuit.graph, circuit.included), PROMPT, slug="x")
    assert sum(links(plain).values()) == pytest.approx(60)


def test_neuronpedia_files_round_trip(tmp_path):
    """Written, read and checked; the schema's required keys are there even where they hold nothing."""
    circuit = known_circuit("ioi")
    path = write_neuronpedia(circuit, tmp_path / "n.json", prompt=PROMPT, slug="ioi")
    assert read_neuronpedia(path) == to_neuronpedia(circuit, PROMPT, slug="ioi")
    data = json.loads(path.read_text())
    assert set(data) == {"metadata", "qParams", "nodes", "links"}
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= set(data["metadata"])
    assert data["metadata"]["generation_settings"]["known"] == "ioi"
    assert data["metadata"]["info"]["generator"]["name"] == "crosspatch"
    assert {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"} == set(data["nodes"][0])
    assert len(data["nodes"]) == len(circuit.nodes) + 1
    assert all(node["ctx_idx"] == 3 for node in data["nodes"])


HOSTILE = ("<script>alert(1)</script>", '"', "\\", "\n", "\x00", "\u2028", "\ud800", "\u202e", "}{", "é\ufffd")


def test_files_have_the_published_structure(tmp_path):
    """As another program reads them: no key besides, ends that are nodes, finite weights, any token as it is."""
    graph = Graph(3, 4, 2, places=("S", "end"))
    prompt = ShownPrompt("tiny", "".join(HOSTILE), HOSTILE, {"S": 2, "end": 9}, answer=HOSTILE[0], probability=0.5)
    circuit = made(graph, count=60)
    scores = np.where(np.arange(circuit.scores.size).reshape(graph.shape) % 7 == 0, np.nan, circuit.scores)
    circuit = Circuit(graph, circuit.included, scores.astype(np.float32))
    found = read_checked(write_neuronpedia(circuit, tmp_path / "n.json", prompt=prompt, slug="<b>x</b>"))
    assert tuple(found.metadata.prompt_tokens) == HOSTILE
    assert {node.ctx_idx for node in found.nodes} == {2, 9}
    assert f'Output "{HOSTILE[0]}" (p=0.500)' in {node.clerp for node in found.nodes}
    unscored = Circuit(graph, circuit.included, np.full_like(circuit.scores, np.nan))
    assert read_checked(write_neuronpedia(unscored, tmp_path / "u.json", prompt=prompt, slug="x")).links


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("links.0.weight: Input should be a finite number", lambda d: d["links"][0].update(weight=np.nan)),
        ("names the node 'gone'", lambda d: d["links"][0].update(source="gone")),
        ("the same node_id", lambda d: d["nodes"].append(d["nodes"][0])),
        ("at token 9 of a prompt of 4 tokens", lambda d: d["nodes"][0].update(ctx_idx=9)),
        ("nodes.0.clerp: Field required", lambda d: d["nodes"][0].pop("clerp")),
        ("qParams: Field required", lambda d: d.pop("qParams")),
        ("metadata.scan: Field required", lambda d: d["metadata"].pop("scan")),
    ],
)
def test_bad_neuronpedia_files_are_refused(tmp_path, said, change):
    path = write_neuronpedia(known_circuit("docstring"), tmp_path / "n.json", prompt=PROMPT, slug="x")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(BadInput, match=said):
        read_neuronpedia(path)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (ShownPrompt("m", "a b", ("a", " b"), {"S": 0}), "no position for end"),
        (ShownPrompt("m", "a b", ("a", " b"), {"S": 0, "end": 2}), "end is at token 2, and the prompt has 2 tokens"),
        (ShownPrompt("m", "a b", ("a", " x"), {"S": 0, "end": 1}), "the tokens spell 'a x', not the prompt 'a b'"),
        (ShownPrompt("m", "a b", ("a", " b"), {"S": 0, "end": 1}, answer=" c"), "give both or none"),
    ],
)
def test_prompts_that_do_not_match_are_refused(prompt, said):
    with pytest.raises(BadInput, match=said):
        to_neuronpedia(made(PLACED), prompt, slug="x")


def test_raw_token_texts_are_accepted():
    """Tokens as tokenizers write them, with signs for spaces, and bytes of characters beyond ASCII."""
    for text, tokens in (("a b", ("Ġa", "Ġb")), ("a b", ("▁a", "▁b")), ("né", ("n", "\ufffd", "\ufffd"))):
        prompt = ShownPrompt("m", text, tokens, {"S": 0, "end": 1})
        assert to_neuronpedia(made(PLACED), prompt, slug="x").metadata.prompt == text


def test_settings_that_are_no_json_are_refused(tmp_path):
    circuit = Circuit(PLACED, made(PLACED).included, settings={"model": object()})
    with pytest.raises(BadInput, match="a setting of the circuit is no JSON"):
        write_neuronpedia(circuit, tmp_path / "n.json", prompt=PROMPT, slug="x")
