"""Scores of circuits: identities, the ablation's choices, what is refused, and what it costs."""

from dataclasses import replace

import numpy as np
import pytest

from builders_circuits import random_masks
from crosspatch.circuits import Circuit, Graph, Regime, find, graph_of, measure_circuits, score, split
from crosspatch.circuits.scorecard import Scorecard
from crosspatch.core.errors import BadInput, NotFinite, UnknownName
from crosspatch.models.model import Model
from crosspatch.models.open import open_model
from crosspatch.tasks import Task
from naive.circuits import body_of, masked_logits
from zoo import fresh, make_pair, make_task, opened, uneven

FEW = {"random": 2, "knockouts": 0, "minimality": False}


def made(name: str = "llama") -> tuple[Model, Task]:
    return opened(name), make_task(*uneven(), make_pair(9, (3, 6), seed=3))


def circuit_of(model: Model, share: float = 0.6) -> Circuit:
    return Circuit(graph_of(model), random_masks(graph_of(model), share)[0])


def test_all_edges_do_all_and_the_rest_nothing() -> None:
    model, task = made()
    graph = graph_of(model)
    card = score(Circuit(graph, graph.full()), model, task, **FEW)
    assert card.faithfulness.value == pytest.approx(1, abs=1e-4)
    assert card.rest.value == pytest.approx(0, abs=1e-4)
    assert card.kl == pytest.approx(0, abs=1e-5)
    assert card.size == card.of == graph.size


def test_faithfulness_is_the_naive_one() -> None:
    model, task = made("gemma3")
    circuit, body = circuit_of(model), body_of("gemma3")
    card = score(circuit, model, task, **FEW)

    def runs(mask: np.ndarray) -> np.ndarray:
        logits = [masked_logits(body, p.clean, p.corrupt, mask)[-1] for p in task.pairs]
        return np.array([float(row[5] - row[7]) for row in logits])

    full, empty = runs(circuit.graph.full()), runs(np.zeros(circuit.graph.shape))
    kept, rest = runs(circuit.included), runs(circuit.graph.full() & ~circuit.included)
    gap = full.mean() - empty.mean()
    assert card.faithfulness.value == pytest.approx((kept.mean() - empty.mean()) / gap, abs=1e-4)
    assert card.rest.value == pytest.approx((rest.mean() - empty.mean()) / gap, abs=1e-4)
    assert card.values == pytest.approx(kept, abs=1e-4)


def test_one_circuit_costs_three_runs_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean and the corrupt run share a pass over the blocks; the circuit's own is another."""
    model, task = made()
    measured = measure_circuits([circuit_of(model)], model, task)
    assert measured.calls == 1
    assert measured.values.shape == (1, 1, len(task.pairs))


def test_every_choice_of_the_ablation_acts_and_is_stored() -> None:
    model, task = made()
    circuit = circuit_of(model)
    plain = measure_circuits([circuit], model, task).values
    for regime in (
        Regime(grain="node"),
        Regime(parts=("heads",)),
        Regime(value="zero"),
        Regime(positions=("mid",)),
        Regime(direction="cut"),
    ):
        other = measure_circuits([circuit], model, task, regime=regime).values
        assert not np.allclose(other, plain, atol=1e-6), regime
    card = score(circuit, model, task, regime=Regime(parts=("heads", "mlps")), **FEW)
    stored = card.settings["settings"]["regime"]
    assert stored == {
        "grain": "edge",
        "parts": ["heads", "mlps"],
        "value": "corrupt",
        "positions": "all",
        "direction": "keep",
        "size": circuit.size,
    }


def test_cutting_a_circuit_is_keeping_its_complement() -> None:
    model, task = made()
    circuit = circuit_of(model)
    rest = replace(circuit, included=circuit.graph.full() & ~circuit.included)
    cut = measure_circuits([circuit], model, task, regime=Regime(direction="cut")).values
    assert cut == pytest.approx(measure_circuits([rest], model, task).values, abs=1e-6)


def test_spared_parts_and_positions_carry_the_clean_run() -> None:
    graph = Graph(2, 2, 1, places=("S", "end", "elsewhere"))
    nothing = np.zeros(graph.shape, dtype=bool)
    kept = Regime(parts=("mlps",), positions=("S",)).run_with(graph, nothing)
    spared = np.array([sender.kind != "mlp.out" for sender in graph.senders])
    assert (kept[0] == (graph.allowed & spared)).all()
    assert (kept[1:] == graph.allowed).all()
    node = nothing.copy()
    node[0, -1, 1] = True  # head 0.0 to the logits
    assert (
        Regime(grain="node").run_with(graph, node)[0] == (graph.allowed & (np.arange(len(graph.senders)) == 1))
    ).all()


def test_knockouts_and_minimality() -> None:
    model, task = made()
    graph = graph_of(model)
    whole = score(Circuit(graph, graph.full()), model, task, random=0, knockouts=3, curve=False)
    assert whole.incompleteness == pytest.approx(0, abs=1e-4)  # the whole model misses nothing
    assert {knockout.name for knockout in whole.completeness} >= {"MLPs", "heads of layer 0", "greedy"}
    assert set(whole.minimality) == {str(node) for node in graph.senders}
    card = score(circuit_of(model, 0.5), model, task, random=0, knockouts=3, curve=False)
    assert card.incompleteness > 1e-3
    node = next(iter(card.minimality))
    without = circuit_of(model, 0.5)
    gone = np.array([str(sender) == node for sender in graph.senders])
    less = measure_circuits([replace(without, included=without.included & ~gone)], model, task).values[0, 0]
    gap = (card.full - card.empty).mean()
    assert card.minimality[node] == pytest.approx((card.values.mean() - less.mean()) / gap, abs=1e-4)


def test_curves_end_at_the_whole_model_and_random_circuits_are_drawn() -> None:
    model, task = made()
    circuit = find(model, task, by="eap", size=30)
    card = score(circuit, model, task, random=5, knockouts=0, minimality=False)
    assert set(card.curves) == {"absolute", "signed"}
    assert card.curves["absolute"].faithfulness[-1] == pytest.approx(1, abs=1e-4)
    assert len(card.drawn) == 5
    assert 0 < card.chance <= 1
    assert card.cpr is card.curves["signed"].cpr
    assert card.cmd is card.curves["absolute"].cmd
    assert any("found on" in warning for warning in card.warnings)
    assert {row[0] for row in card.rows()} >= {"faithfulness", "CPR", "CMD"}


def test_held_out_pairs_warn_of_nothing() -> None:
    model, task = made()
    here, held_out = split(task)
    assert sorted([*here.pairs, *held_out.pairs], key=repr) == sorted(task.pairs, key=repr)
    card = score(find(model, here, by="eap", size=30), model, held_out, **FEW)
    assert not card.warnings


def test_what_cannot_be_scored_is_refused() -> None:
    model, task = made()
    graph = graph_of(model)
    with pytest.raises(BadInput, match="no edges"):
        score(Circuit(graph, np.zeros(graph.shape, dtype=bool)), model, task)
    other = Graph(2, 4, 2)
    with pytest.raises(BadInput, match="find the circuit on this model"):
        score(Circuit(other, other.full()), model, task)
    with pytest.raises(BadInput, match="tokenizers differ"):
        score(Circuit(graph, graph.full(), settings={"vocab_size": 50257}), model, task)
    with pytest.raises(UnknownName, match="setting"):
        score(circuit_of(model), model, task, randoms=3)
    with pytest.raises(UnknownName, match="grain"):
        Regime(grain="neuron")
    same = make_task(make_pair(6, (2,), right=((5,),), wrong=((5,),)))
    with pytest.raises(BadInput, match="no scale"):
        score(circuit_of(model), model, same, **FEW)
    with pytest.raises(BadInput, match="more pairs"):
        split(make_task(make_pair(6, (2,))))
    with pytest.raises(BadInput, match="one graph"):
        measure_circuits([], model, task)


def test_a_run_that_is_not_finite_is_named() -> None:
    module = fresh("llama")
    model = open_model(module)
    module.lm_head.weight.data[5] = float("nan")
    with pytest.raises(NotFinite):
        score(circuit_of(model), model, make_task(*uneven()), **FEW)


def test_a_circuit_of_another_model_is_said_to_be() -> None:
    model, task = made()
    settings = {"settings": {"model_hash": "other", "model": "its twin", "metric": "prob"}}
    circuit = replace(circuit_of(model), settings=settings)
    card: Scorecard = score(circuit, model, task, metric="logit_diff", **FEW)
    assert any("its twin" in warning for warning in card.warnings)
    assert any("found by prob" in warning for warning in card.warnings)
