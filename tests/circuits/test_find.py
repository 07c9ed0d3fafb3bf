"""`find`: what it refuses and how it says so, what is taken by scores, and circuits that are kept and read again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders_circuits import Stopper, little, names_of, planted_model
from crosspatch.circuits import Circuit, Method, find, load_circuit, save_circuit
from crosspatch.circuits.circuit import prune
from crosspatch.circuits.method import METHODS
from crosspatch.core.errors import BadInput, MemoryShortage, NotFinite, UnknownName
from crosspatch.engine import Options
from crosspatch.metrics import metric_from
from crosspatch.models.open import open_model
from crosspatch.tasks import Task
from handmade import handmade
from zoo import fresh, make_pair, make_task, opened, uneven

UNEVEN = make_task(*uneven())
ACDC: dict[str, Any] = {"by": "acdc", "threshold": 0.01}
# In as few steps as there are; with settings that each method needs.
WAYS: dict[str, dict[str, Any]] = {by: {"by": by} for by in METHODS if by != "routes"}
WAYS |= {"acdc": ACDC, "edge-masks": {"by": "edge-masks", "steps": 2}, "node-masks": {"by": "node-masks", "steps": 2}}
every_method = pytest.mark.parametrize("by", WAYS)


def found(task: Task = UNEVEN, **how: Any) -> Circuit:
    return find(little("gpt2")[0], task, **how)


# settings


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"by": "acd"}, r"unknown method 'acd'\. Did you mean 'acdc'\? Known: acdc, eap"),
        ({"by": "eap", "treshold": 1}, r"unknown setting 'treshold'\. Did you mean 'threshold'"),
        ({"by": "eap", "metric": "nope"}, r"unknown metric 'nope'\. Known: logit_diff"),
        ({"by": "eap", "ablation": "noise"}, r"unknown ablation 'noise'\. Known: corrupt, zero, mean, resample"),
        ({"by": "eap", "select": "best"}, r"unknown selection 'best'\. Known: top, greedy"),
        ({**ACDC, "order": "back"}, r"unknown order 'back'\. Known: reverse, forward"),
    ],
)
def test_unknown_names(how: dict[str, Any], words: str) -> None:
    with pytest.raises(UnknownName, match=words):
        found(**how)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"by": "acdc"}, r"threshold=None: ACDC needs a positive one, in the metric's unit"),
        ({"by": "acdc", "threshold": -0.1}, r"threshold=-0.1: ACDC needs a positive one"),
        ({"by": "acdc", "threshold": 0.0}, r"threshold=0.0: ACDC needs a positive one"),
        ({"by": "acdc", "threshold": float("nan")}, r"threshold=nan: ACDC needs a positive one"),
        ({**ACDC, "size": 5}, r"ACDC finds its own size: give a threshold, not a size"),
        ({"by": "eap", "threshold": 0.1}, r"has no threshold, order, absolute or speculate: these are ACDC's"),
        ({"by": "exact", "absolute": True}, r"these are ACDC's"),
        ({"by": "eap", "size": 0}, r"size=0: give a number of edges \(1, 2, …\) or a share of them in \(0, 1\]"),
        ({"by": "eap", "size": -2}, r"size=-2: give a number"),
        ({"by": "eap", "size": 0.0}, r"size=0.0: give a number"),
        ({"by": "eap", "size": 1.5}, r"size=1.5: give a number"),
        ({"by": "eap", "size": float("nan")}, r"size=nan: give a number"),
        ({"by": "eap", "steps": 5}, r"steps=5 with by='eap': integrals and masks take a positive number"),
        ({"by": "eap-ig", "steps": 0}, r"steps=0 with by='eap-ig'"),
        ({"by": "edge-masks", "rate": 0.0}, r"rate=0.0: give a positive learning rate"),
        ({"by": Method("eap"), "size": 5}, r"a Method has its settings already: leave size out"),
        ({"by": "eap", "places": ("mid", "mid")}, r"give each once; 'elsewhere' is there in any case"),
        ({"by": "eap", "places": ("elsewhere",)}, r"give each once; 'elsewhere' is there in any case"),
    ],
)
def test_settings_that_make_no_sense(how: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        found(**how)


@every_method
def test_a_place_that_a_pair_does_not_have(by: str) -> None:
    with pytest.raises(UnknownName, match=r"unknown position 'nope'.*end"):
        found(**WAYS[by], places=("mid", "nope"))
    with pytest.raises(UnknownName, match="outside this prompt"):
        found(**WAYS[by], places=("mid+99",))


def test_a_place_beside_a_named_one() -> None:
    names = {str(edge).partition("@")[2] for edge in found(by="eap", places=("mid+1",), size=1.0).edges}
    assert names == {"mid+1", "elsewhere"}


def test_a_method_may_be_given_whole() -> None:
    how = Method("eap-ig", size=7, steps=2)
    circuit = found(by=how)
    assert circuit.size == 7
    assert circuit.settings["settings"]["method"] == how.settings()
    assert circuit.settings["settings"]["title"] == "EAP-IG over inputs"


# runs that cannot be searched


def flat(out: Any) -> torch.Tensor:
    return 0 * out.right[:, 0] + 1


@every_method
def test_without_a_gap_there_is_nothing_to_find(by: str) -> None:
    words = "no behaviour to look for" if not by.startswith("eap") else "has no slope"
    with pytest.raises(BadInput, match=f"^flat .*{words}"):
        found(**WAYS[by], metric=metric_from(flat, name="flat"))


@every_method
def test_a_task_of_another_tokenizer(by: str) -> None:
    pair = make_pair(7, (2,))
    words = r"example 1 has token id 500, but GPT2LMHeadModel knows ids 0\.\.96"
    for wrong in (replace(pair, right=((500,),)), replace(pair, clean=(500, *pair.clean[1:]))):
        with pytest.raises(BadInput, match=words):
            found(make_task(pair, wrong), **WAYS[by])


@pytest.mark.parametrize("by", ["acdc", "edge-masks", "node-masks"])
def test_searches_over_means_need_all_pairs_at_once(by: str) -> None:
    words = rf"by='{by}' holds the runs of all 3 pairs at once, and 1 fit .* Take fewer pairs, or allow more memory"
    with pytest.raises(MemoryShortage, match=words):
        found(**WAYS[by], options=Options(memory=40_000))
    assert found(by="eap", options=Options(memory=40_000)).size > 0


@every_method
def test_a_model_without_heads(by: str) -> None:
    with pytest.raises(BadInput, match=r"attn.head cannot be used on this Handmade model: .* It offers: resid.pre"):
        find(open_model(handmade()), UNEVEN, **WAYS[by])


@every_method
def test_weights_that_are_no_numbers(by: str) -> None:
    module = fresh("gpt2", n_layer=2)
    model = open_model(module)
    with torch.no_grad():
        module.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.raises(NotFinite, match=r"logit_diff of the base run is nan on example 0"):
        find(model, UNEVEN, **WAYS[by])
    with pytest.raises(NotFinite):
        open_model(module)


# what comes back


@every_method
def test_what_a_circuit_says_of_itself(by: str) -> None:
    circuit = found(**WAYS[by])
    about = circuit.settings["settings"]
    assert about["by"] == by
    assert about["title"] == METHODS[by]
    assert about["metric"] == "logit_diff"
    assert np.isfinite([about["clean"], about["corrupt"]]).all()
    assert about["n"] == len(about["pairs"]) == 3
    assert circuit.scores is not None
    assert circuit.scores.dtype == np.float32
    assert np.isnan(circuit.scores[~circuit.graph.full()]).all()
    if by != "acdc":
        assert circuit.size == int(0.05 * circuit.graph.size)
        assert not np.isnan(circuit.scores[circuit.graph.full()]).any()


@every_method
def test_a_circuit_is_kept_and_read_again(by: str, tmp_path: Path) -> None:
    circuit = found(**WAYS[by], places=("mid",))
    again = load_circuit(save_circuit(circuit, tmp_path))
    assert again.graph == circuit.graph
    assert again.signed == circuit.signed
    assert np.array_equal(again.included, circuit.included)
    assert circuit.scores is not None
    assert np.array_equal(again.scores, circuit.scores, equal_nan=True)
    assert set(again.details) == set(circuit.details)
    for name, value in circuit.details.items():
        assert np.array_equal(again.details[name], value)
    told = again.settings["settings"]
    assert {name: told[name] for name in ("by", "title", "clean", "passes")} == {
        name: circuit.settings["settings"][name] for name in ("by", "title", "clean", "passes")
    }


@pytest.mark.parametrize("select", ["top", "greedy"])
def test_edges_are_taken_by_score(select: str) -> None:
    """By magnitude, as many as were asked for; "greedy" only where the logits hear of them."""
    circuit = found(by="eap", size=20, select=select)
    assert circuit.scores is not None
    assert circuit.size == 20
    size = np.abs(circuit.scores)
    best = np.sort(size[circuit.graph.full()])[-20]
    if select == "top":
        assert (size[circuit.included] >= best).all()
        return
    heard, graph = {"logits"}, circuit.graph
    for edge in reversed(circuit.edges):  # receivers from the logits down
        owners = {str(node) for node in graph.node_of(edge.receiver)} or {"logits"}
        assert owners & heard, str(edge)
        heard.add(str(edge.sender))
    assert (size[circuit.included] < best).any()


def test_greedy_leaves_out_what_is_not_connected() -> None:
    """Planted: with scores of the truth, both selections take it; greedy never takes an edge into an idle head."""
    planted, model, task = planted_model("induction")
    top, grown = (find(model, task, by="exact", size=3, select=select) for select in ("top", "greedy"))
    assert names_of(top) == names_of(grown) == planted.edges
    more = find(model, task, by="exact", size=12, select="greedy")
    assert planted.edges < names_of(more)
    assert more.size == 12


@every_method
def test_pruned_circuits_hold_paths_only(by: str) -> None:
    circuit = found(**WAYS[by])
    slim = circuit.pruned()
    assert not (slim.included & ~circuit.included).any()
    assert np.array_equal(prune(circuit.graph, slim.included), slim.included)
    fed = {"embed"} | {str(node) for edge in slim.edges for node in circuit.graph.node_of(edge.receiver)}
    heard = {str(edge.sender) for edge in slim.edges}
    assert heard <= fed
    assert all(
        not circuit.graph.node_of(edge.receiver) or heard & {str(n) for n in circuit.graph.node_of(edge.receiver)}
        for edge in slim.edges
    )
    assert slim.settings == circuit.settings


@pytest.mark.parametrize("by", ["exact", "eap", "acdc", "edge-masks"])
def test_progress_ends_where_it_said(by: str) -> None:
    listener = Stopper()
    found(**WAYS[by], options=Options(progress=listener))
    assert sum(listener.seen) == listener.total > 0


@pytest.mark.parametrize("name", ["falcon_7b", "bloom", "mpt", "gptj", "gpt_bigcode"])
def test_models_with_attention_of_their_own(name: str) -> None:
    for how in ({"by": "eap"}, {"by": "acdc", "threshold": 0.05}):
        assert find(opened(name), make_task(make_pair(6, (2, 4))), **how).graph.heads == 4


def test_the_module_is_left_as_it_was() -> None:
    module = fresh("llama", num_hidden_layers=2)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    model = open_model(module)
    ways: list[Callable[[], Circuit]] = [lambda how=how: find(model, UNEVEN, **how) for how in WAYS.values()]
    for way in ways:
        way()
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
