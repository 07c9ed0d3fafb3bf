"""Masks: the run between edges cut and kept against the twin, training on planted models, resuming."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders_circuits import Stopper, little, machine_of, names_of, planted_model, random_masks
from crosspatch.circuits import Circuit, find
from crosspatch.circuits.machine import Machine
from crosspatch.circuits.pruning import Trainer, Training, edge_gates, node_gates, open_share, settled
from crosspatch.circuits.searching import KEPT
from crosspatch.circuits.soft import soft_run
from crosspatch.circuits.variants import Variants
from crosspatch.core.errors import BadInput, CorruptFile, NotFinite
from crosspatch.engine import Options
from naive.circuits import naive_gradient
from zoo import make_task, uneven

UNEVEN = make_task(*uneven())
PLACES = ("mid", "end")
STEPS = 55  # two checkpoints and some more
FAMILIES = ("gpt2", "llama", "gpt_neox", "falcon_40b", "gemma2", "olmo2", "bloom", "phi3")


def trained(name: str = "gpt2", *, layers: int = 1, by: str = "edge-masks", steps: int = 60, **how: Any) -> Circuit:
    return find(little(name, layers)[0], UNEVEN, by=by, steps=steps, **how)


def gates(circuit: Circuit) -> np.ndarray:
    assert circuit.scores is not None
    return circuit.scores


def softly(machine: Machine, weights: torch.Tensor) -> torch.Tensor:
    """Return the metric of each pair in a soft run."""
    return machine.scorer(soft_run(machine, weights)[0], torch.arange(len(machine.local.numbers)))[0]


# between cut and kept


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("places", [(), PLACES])
def test_with_all_weights_zero_or_one_it_is_the_circuit(name: str, places: tuple[str, ...]) -> None:
    with machine_of(little(name)[0], UNEVEN, places=places, tracked=True) as machine, torch.no_grad():
        masks = random_masks(machine.graph, 0, 0.2, 0.7, 1)
        expected = machine.scores(Variants.of(machine, machine.clean, masks).run())[0]
        found = torch.stack([softly(machine, torch.from_numpy(mask).float()) for mask in masks])
    assert found == pytest.approx(expected, abs=2e-5)
    assert float(expected.std()) > 1e-3


@pytest.mark.parametrize(
    ("name", "places"), [*((name, ()) for name in FAMILIES), ("llama", PLACES), ("gemma2", PLACES)]
)
def test_its_gradient_is_the_twins(name: str, places: tuple[str, ...]) -> None:
    """At random weights, of every edge, over prompts of several lengths."""
    model, body = little(name, dtype=torch.float64)
    with machine_of(model, UNEVEN, places=places, tracked=True) as machine:
        graph = machine.graph
        at = np.random.default_rng(5).random(graph.shape) * graph.allowed
        leaf = torch.tensor(at, requires_grad=True)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(softly(machine, leaf).sum(), leaf)
    expected = np.zeros(graph.shape)
    for pair in UNEVEN.pairs:
        spots = {pair.names[name]: number for number, name in enumerate(places)}
        own = [spots.get(position, len(places)) for position in range(len(pair.clean))]
        how = {"score": lambda logits: logits[-1, 5] - logits[-1, 7], "places": own}
        expected += naive_gradient(body, pair.clean, pair.corrupt, at, **how)
    assert np.abs(expected).max() > 1e-2
    allowed = graph.full()
    assert np.allclose(found.numpy()[allowed], expected[allowed], rtol=0, atol=2e-5 * np.abs(expected).max())


# training


@pytest.mark.parametrize("name", ["AND", "ADDER", "induction", "negative", "fraction", "reverse"])
def test_masks_of_edges_find_planted_circuits(name: str) -> None:
    planted, model, task = planted_model(name)
    steps = 100 if name == "induction" else 60
    found = find(model, task, by="edge-masks", size=len(planted.edges), steps=steps)
    assert names_of(found) == planted.edges
    chosen, rest = gates(found)[found.included], gates(found)[found.graph.full() & ~found.included]
    assert chosen.min() > rest.max()
    assert len(found.details["losses"]) == found.settings["settings"]["passes"] == steps


@pytest.mark.parametrize("name", ["AND", "ADDER", "negative", "fraction", "reverse"])
def test_masks_of_nodes_find_planted_nodes(name: str) -> None:
    """The gates of the nodes that matter are open, those of all others closed."""
    planted, model, task = planted_model(name)
    found = find(model, task, by="node-masks", steps=60)
    graph, scores = found.graph, gates(found)[0]
    own = {str(sender): float(np.nanmax(scores[:, u])) for u, sender in enumerate(graph.senders)}
    used = {edge.split(" -> ")[0] for edge in planted.edges}
    assert {sender for sender, gate in own.items() if gate > 0} == used
    assert max(gate for sender, gate in own.items() if sender not in used) < -3
    for u in range(len(graph.senders)):  # all edges of a node share its gate
        assert len(set(scores[graph.allowed[:, u], u].tolist())) == 1


def test_gates_are_driven_to_a_size() -> None:
    """Towards a smaller target fewer stay open, in a model where every edge matters a little."""
    left = {}
    for share in (0.1, 0.5):
        found = trained(size=share, steps=120)
        odds = torch.from_numpy(gates(found)[found.graph.full()])
        left[share] = float(open_share(odds).mean())
        assert found.size == int(share * found.graph.size)
        assert set(settled(odds).tolist()) >= {0.0, 1.0}
    assert left[0.1] < left[0.5] - 0.03
    assert left[0.5] == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_loss_of_one_is_the_gap_of_a_pair(name: str) -> None:
    """With nothing left: also where gaps of pairs cancel in the mean, as they do here on Llama."""
    found = find(little(name)[0], UNEVEN, by="edge-masks", steps=1, seed=0)
    assert found.details["losses"].max() < 2
    with machine_of(little(name)[0], UNEVEN, tracked=True) as machine:
        start, spread = edge_gates(machine.graph, machine.model.device)
        gap = float((machine.ends[0] - machine.ends[1]).abs().mean())
        assert float(Trainer(machine, Training(), start, spread, gap).loss(0 * spread(start))) == pytest.approx(
            1, abs=1e-3
        )


def test_settings_change_the_training() -> None:
    first = gates(trained(steps=5))
    assert np.array_equal(gates(trained(steps=5)), first, equal_nan=True)
    for other in ({"seed": 1}, {"rate": 0.05}, {"ablation": "zero"}, {"metric": "kl"}):
        assert not np.allclose(gates(trained(steps=5, **other)), first, equal_nan=True), other
    assert trained(steps=5, places=PLACES).graph.rooms == 3
    assert trained(by="node-masks", steps=5, places=PLACES).size > 0


def test_a_model_in_double_precision_can_be_trained() -> None:
    model = little("gpt2", 1, torch.float64)[0]
    found = find(model, UNEVEN, by="edge-masks", steps=5)
    assert np.allclose(gates(found), gates(trained(steps=5)), atol=1e-2, equal_nan=True)


def test_training_that_overflows_says_so() -> None:
    with machine_of(little("gpt2")[0], UNEVEN, tracked=True) as machine:
        start, spread = edge_gates(machine.graph, machine.model.device)
        trainer = Trainer(machine, Training(), start, spread, gap=1.0)
        with pytest.raises(NotFinite, match=r"the loss is nan at step 0: lower the rate, or use dtype float32"):
            trainer.loss(spread(start * float("nan")))


# kept on disk


@pytest.mark.parametrize(("by", "stop"), [("edge-masks", 53), ("node-masks", 30)])
def test_training_goes_on_to_the_same_bits(tmp_path: Path, by: str, stop: int) -> None:
    """Stopped some steps after the last that was kept: gates, optimisers and noise go on from there."""
    whole = trained(by=by, steps=STEPS)
    with pytest.raises(KeyboardInterrupt):
        trained(by=by, steps=STEPS, options=Options(journal=tmp_path, progress=Stopper(stop)))
    listener = Stopper()
    resumed = trained(by=by, steps=STEPS, options=Options(journal=tmp_path, progress=listener))
    assert np.array_equal(gates(resumed), gates(whole), equal_nan=True)
    assert np.array_equal(resumed.included, whole.included)
    kept = (stop - 2) // 25 * 25
    assert listener.seen == [kept, *[1] * (STEPS - kept)]
    assert np.array_equal(resumed.details["losses"], whole.details["losses"][kept:])
    again = trained(by=by, steps=STEPS, options=Options(journal=tmp_path))
    assert np.array_equal(gates(again), gates(whole), equal_nan=True)
    assert again.settings["settings"]["passes"] == 0


def test_training_belongs_to_its_question(tmp_path: Path) -> None:
    """Interrupted before anything was kept, the folder is taken all the same."""
    options = Options(journal=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trained(options=Options(journal=tmp_path, progress=Stopper(3)))
    for other in ({"seed": 1}, {"by": "node-masks"}, {"steps": 61}, {"metric": "prob"}, {"places": ("mid",)}):
        with pytest.raises(BadInput, match="unfinished work of another question"):
            trained(options=options, **other)
    with pytest.raises(BadInput, match="unfinished work of another question"):
        find(little("gpt2", 1)[0], make_task(*uneven()[:2]), by="edge-masks", steps=60, options=options)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    trained(steps=25, options=Options(journal=tmp_path))
    whole = (tmp_path / KEPT).read_bytes()
    (tmp_path / KEPT).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFile, match=r"training.safetensors.*Remove it, and training starts anew"):
        trained(steps=25, options=Options(journal=tmp_path))


def test_gates_lie_where_edges_are() -> None:
    graph = little("llama")[1].graph
    start, spread = edge_gates(graph, torch.device("cpu"))
    laid = spread(torch.arange(1.0, graph.size + 1))
    assert len(start) == graph.size
    assert laid[torch.from_numpy(graph.full())].tolist() == list(range(1, graph.size + 1))
    assert not laid[torch.from_numpy(~graph.full())].any()
    start, spread = node_gates(graph, torch.device("cpu"))
    assert len(start) == len(graph.senders)
    assert torch.equal(spread(torch.ones(len(start))) > 0, torch.from_numpy(graph.full()))
