import json

import numpy as np
import pytest

from crosspatch.circuits.circuit import Circuit, top_edges
from crosspatch.circuits.graph import CircuitEdge, Graph
from crosspatch.circuits.known import known_circuit
from crosspatch.circuits.saving import load_circuit, save_circuit
from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.core.store import ARRAYS, META, write_result
from crosspatch.sites import Site


def made():
    graph = Graph(2, 4, 2, sequential=False, places=("S2", "end"))
    scores = np.random.default_rng(0).normal(size=graph.shape).astype(np.float32)
    scores[0, 0, 0] = np.nan
    settings = {"method": "eap", "tau": 0.1, "steps": np.int64(5), "order": ("q", "k")}
    details = {"losses": np.arange(4.0), "first": CircuitEdge(Site("embed"), Site("logits"), "end"), "more": {"n": [1]}}
    return Circuit(graph, top_edges(graph, scores, 20, absolute=True), scores, True, settings, details)


def test_round_trip(tmp_path):
    circuit = made()
    back = load_circuit(save_circuit(circuit, tmp_path / "c"))
    assert back.graph == circuit.graph
    assert back.signed
    assert back.included.dtype == bool
    np.testing.assert_array_equal(back.included, circuit.included)
    np.testing.assert_array_equal(back.scores, circuit.scores)
    assert back.settings == {"method": "eap", "tau": 0.1, "steps": 5, "order": ["q", "k"]}
    np.testing.assert_array_equal(back.details["losses"], np.arange(4.0))
    assert back.details["first"] == "embed -> logits @end"
    assert back.details["more"] == {"n": [1]}


def test_known_circuit_without_scores(tmp_path):
    circuit = known_circuit("docstring")
    back = load_circuit(save_circuit(circuit, tmp_path))
    assert back.scores is None
    assert (back.graph, back.settings, back.details) == (circuit.graph, circuit.settings, circuit.details)
    assert back.edges == circuit.edges


def test_what_cannot_be_saved_is_refused(tmp_path):
    graph = Graph(1, 1, 1)
    with pytest.raises(BadInput, match="must be JSON"):
        save_circuit(Circuit(graph, graph.full(), settings={"model": object()}), tmp_path)
    with pytest.raises(BadInput, match="too large for float32"):
        save_circuit(Circuit(graph, graph.full(), np.full(graph.shape, 1e300)), tmp_path)


def test_torn_folders_are_refused(tmp_path):
    folder = save_circuit(made(), tmp_path / "c")
    whole = (folder / ARRAYS).read_bytes()
    (folder / ARRAYS).write_bytes(whole[:-7])
    with pytest.raises(CorruptFile, match="checksum"):
        load_circuit(folder)
    (folder / ARRAYS).write_bytes(whole)
    text = (folder / META).read_text()
    (folder / META).write_text(text[: len(text) // 2])
    with pytest.raises(CorruptFile, match="not JSON"):
        load_circuit(folder)
    with pytest.raises(BadInput, match="no result folder"):
        load_circuit(tmp_path / "nowhere")


def written(tmp_path, change=None, **arrays):
    """Write a circuit's folder with other arrays or another description, checksum and all."""
    folder = save_circuit(made(), tmp_path / "c")
    meta = json.loads((folder / META).read_text())["meta"]
    (change or (lambda _: None))(meta)
    circuit = made()
    return write_result(
        folder, {"included": circuit.included.astype(np.uint8), "scores": circuit.scores, **arrays}, meta
    )


def test_foreign_folders_are_refused(tmp_path):
    good = made()
    assert load_circuit(written(tmp_path)).size == good.size
    for said, change in (
        ("holds effects, not a circuit", lambda meta: meta.update(what="effects")),
        ("holds something else, not a circuit", lambda meta: meta.pop("what")),
        ("layers", lambda meta: meta["graph"].update(layers=-1)),
        ("settings", lambda meta: meta.pop("settings")),
        ("scores are", lambda meta: meta["graph"].update(places=["S2"])),
    ):
        with pytest.raises(CorruptFile, match=said):
            load_circuit(written(tmp_path, change))
    for said, arrays in (
        ("bytes of 0 and 1", {"included": good.included.astype(np.uint8) * 2}),
        ("bytes of 0 and 1", {"included": good.included.astype(np.float32)}),
        ("does not have", {"included": np.ones(good.graph.shape, np.uint8)}),
        ("scores are", {"scores": good.scores[:1]}),
        ("scores are float64", {"scores": good.scores.astype(np.float64)}),
    ):
        with pytest.raises(CorruptFile, match=said):
            load_circuit(written(tmp_path, **arrays))
