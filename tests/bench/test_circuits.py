"""The comparison of circuits: names of edges, plain torch as the reference, and what is told of a peer's numbers."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from crosspatch.circuits.graph import Graph

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def script(monkeypatch):
    """Give a module of bench/, whose scripts import each other by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.fixture(scope="module")
def tiny():
    """A tiny GPT-2, and two pairs that differ in one token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        shapes = importlib.import_module("shapes")
    model = shapes.open_shape(shapes.Build("gpt2-tiny"))
    return model, shapes.make_task("one", pairs=2, length=7, vocab=model.vocab_size)


def asked(script, tiny, **circuit):
    model, task = tiny
    return script("circuits").question(script("edges").ByHand(model.module), task, "one", **(circuit or {"size": 60}))


def test_the_graph_is_that_of_crosspatch(script):
    """The same edges in the same order, 32,491 in GPT-2 small."""
    edges = script("edges").Edges(12, 12)
    graph = Graph(12, 12, 12)
    assert (edges.allowed == graph.allowed).all()
    assert edges.allowed.sum() == 32491
    assert [edges.senders[n] for n in (0, 1, 12, 13, 156)] == ["input", "a0.h0", "a0.h11", "m0", "m11"]
    assert [str(graph.senders[n]) for n in (0, 1, 12, 13)] == [
        "embed",
        "attn.head[0, 0]",
        "attn.head[0, 11]",
        "mlp.out[0]",
    ]
    assert [edges.receivers[n] for n in (0, 13, 24, 36, 444)] == ["a0.h0<q>", "a0.h1<k>", "a0.h0<v>", "m0", "logits"]
    assert [str(graph.receivers[n]) for n in (0, 13, 24, 36)] == [
        "attn.q[0, 0]",
        "attn.k[0, 1]",
        "attn.v[0, 0]",
        "mlp.in[0]",
    ]


def test_values_by_name_fill_an_array(script):
    """Names of edges and places in arrays are inverse; a missing edge or one that is named twice is refused."""
    edges = script("edges").Edges(2, 3)
    names, values = edges.names(edges.allowed), np.arange(edges.allowed.sum()) + 1.0
    order = np.random.default_rng(0).permutation(len(names))
    table = edges.array([names[n] for n in order], values[order])
    assert (table[edges.allowed] == values).all()
    assert np.isnan(table[~edges.allowed]).all()
    for wrong in (names[1:], [*names[1:], names[1]]):
        with pytest.raises(ValueError, match="missing"):
            edges.array(wrong, values[: len(wrong)])


def test_plain_torch_is_the_module(script, tiny):
    """Logits are the module's; a circuit of all edges is the clean run, one of none the corrupt run."""
    model, task = tiny
    circuits, hand = script("circuits"), script("edges").ByHand(model.module)
    clean, corrupt = (circuits.ids(task, side) for side in ("clean", "corrupt"))
    assert (hand.logits(clean) - circuits.plain(model, clean)[:, -1]).abs().max() < 1e-4
    none, all_edges = np.zeros_like(hand.edges.allowed), hand.edges.allowed
    assert (hand.masked(clean, corrupt, none) - hand.logits(corrupt)).abs().max() < 1e-10
    assert (hand.masked(clean, corrupt, all_edges) - hand.logits(clean)).abs().max() < 1e-10


def test_scores_are_slopes_of_masks(script, tiny):
    """An edge's score is how fast the summed metric changes when that edge alone turns to the corrupt run."""
    model, task = tiny
    circuits, hand = script("circuits"), script("edges").ByHand(model.module)
    clean, corrupt = (circuits.ids(task, side) for side in ("clean", "corrupt"))
    metric = lambda logits: circuits.metric(task, logits)  # noqa: E731
    scores = hand.scores(clean, corrupt, metric)
    base, step, largest = metric(hand.logits(clean)).sum(), 1e-5, np.nanmax(np.abs(scores))
    for receiver, sender in np.random.default_rng(0).permutation(np.argwhere(hand.edges.allowed))[:40]:
        kept = hand.edges.allowed.copy()
        kept[receiver, sender] = False
        slope = float(metric(hand.masked(clean, corrupt, kept, strength=step)).sum() - base) / step
        assert slope == pytest.approx(scores[receiver, sender], abs=1e-4 * largest)


def test_names_of_peers_are_translated(script):
    """auto-circuit's names, and layer and head of a name and back."""
    child = script("circuits_child")
    assert child.neutral("Resid Start", "A0.3.Q") == "input->a0.h3<q>"
    assert child.neutral("A5.11", "MLP 12") == "a5.h11->m12"
    assert child.neutral("MLP 3", "Resid End") == "m3->logits"
    assert [child.where(child.place(*each)) for each in ((5, 11), (12, None))] == [(5, 11), (12, None)]


def test_a_circuit_of_one_edge_is_read_by_kind(script, tiny):
    """One wrong query edge is found beside much larger edges to the logits; NaN is never equal."""
    circuits = script("circuits")
    one = asked(script, tiny)
    assert circuits.error_of(one, "eap", one.scores) == 0
    wrong = one.scores.copy()
    row = one.edges.receivers.index("a2.h1<q>")
    largest = np.abs(one.scores[[n for n, name in enumerate(one.edges.receivers) if name.endswith("<q>")]])
    wrong[row, 4] += 0.1 * np.nanmax(largest)
    assert circuits.error_of(one, "eap", wrong) == pytest.approx(0.1)
    wrong[row, 4] = np.nan
    assert not circuits.error_of(one, "eap", wrong) <= circuits.SAME["eap"]
    assert circuits.error_of(one, "masked", one.logits + one.reach / 4) == pytest.approx(0.25)
    assert circuits.error_of(one, "faithfulness", one.recovered) == 0
    assert circuits.error_of(one, "faithfulness", one.share, one.share) == 0


def test_a_circuit_keeps_its_share(script, tiny):
    """A circuit of all edges closes the whole gap, and the metric is that of the pairs' own answers."""
    edges = script("edges").Edges(3, 4)
    one = asked(script, tiny, kept=edges.allowed)
    assert one.recovered == pytest.approx(1)
    assert one.share == pytest.approx(1)
    model, task = tiny
    logits = script("circuits").plain(model, torch.tensor([pair.clean for pair in task.pairs]))[:, -1]
    expected = [float(logits[n, 11 + 5 * n] - logits[n, 12 + 5 * n]) for n in range(2)]
    assert one.metrics[1] == pytest.approx(expected, abs=1e-4)


def clocks(seconds):
    """The processor's seconds are half of those on the wall for a plain forward, and the same elsewhere."""
    return {
        way: {"wall": spent, "cpu": [each / 2 for each in spent] if way == "plain" else spent}
        for way, spent in seconds.items()
    }


def told(one, *, wrong=0.0):
    """What a peer's script answers."""
    seconds = {"plain": [1.0, 2.0], "forward": [2.0, 4.0], "eap": [8.0, 20.0], "masked": [3.0, 6.0]}
    seconds |= {"faithfulness": [30.0]}
    forwards = {"eap": 2, "masked": 2, "faithfulness": 6}
    names = one.edges.names(one.edges.allowed)
    arrays = {"edges": np.array(names), "scores": one.scores[one.edges.allowed], "masked": one.logits + wrong}
    return {"spent": clocks(seconds), "forwards": forwards, "recovered": one.recovered}, arrays


def test_a_peers_jobs_are_told_in_forwards(script, tiny):
    """Units are of the same repetition, or of medians for a way that ran once; ratios are to the same job here."""
    circuits, one = script("circuits"), asked(script, tiny)
    rows = circuits.rows_of("circuitkit", one, *told(one))
    assert [row["job"] for row in rows] == ["eap", "masked", "faithfulness"]
    wall = [{unit: each["wall"] for unit, each in row["units"].items()} for row in rows]
    assert wall == [{"forward": 4.5, "plain": 9.0}, {"forward": 1.5, "plain": 3.0}, {"forward": 10.0, "plain": 20.0}]
    assert [row["units"]["plain"]["cpu"] for row in rows] == [18.0, 6.0, 40.0]
    spent = clocks({"plain": [1.0, 1.0], "eap": [2.0, 2.0], "masked": [1.0, 1.0]})
    ours = [circuits.row("crosspatch", one, job, 0.0, spent) for job in ("eap", "masked")]
    first, second, third = circuits.compared(rows, ours)
    assert (first["direct"], first["chained"]) == (7.0, {"wall": 4.5, "cpu": 4.5})
    assert (second["direct"], second["chained"]) == (4.5, {"wall": 3.0, "cpu": 3.0})
    assert third["direct"] is None
    words = "4.5 of its own forwards (cpu 4.5), 9 plain forwards (cpu 18), 2 made, 7.0× ours (chained 4.5×, cpu 4.5×)"
    assert words in circuits.line(first)


def test_a_peer_with_other_numbers_gets_no_ratio(script, tiny):
    """Wrong logits, and auto-circuit's share taken for the share of the gap: no units, and the line says so."""
    circuits, one = script("circuits"), asked(script, tiny)
    answer, arrays = told(one, wrong=one.reach)
    rows = circuits.rows_of("auto-circuit", one, answer, arrays)
    assert [row["same"] for row in rows] == [True, False, False]
    assert rows[1]["units"] == {}
    here = [circuits.row("crosspatch", one, "masked", 0.0, clocks({"plain": [1.0], "masked": [1.0]}))]
    assert circuits.compared(rows, here)[1]["direct"] is None
    assert "other numbers" in circuits.line(rows[1])


def test_what_a_peer_is_asked(script, tiny):
    """The same tokens and answers, and the circuit by names."""
    circuits, one = script("circuits"), asked(script, tiny)
    given = circuits._parse(["--quick"])
    content = circuits.request("circuitkit", Path("somewhere"), [one], given)
    assert (content["repeat"], content["threads"]) == (1, 1)
    (case,) = content["cases"]
    assert case["clean"] == [list(pair.clean) for pair in one.task.pairs]
    assert (case["right"], case["wrong"]) == ([11, 16], [12, 17])
    assert case["circuit"] == one.edges.names(one.kept)
    assert 10 < len(case["circuit"]) <= 60
