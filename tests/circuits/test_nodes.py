"""Searches by nodes: what planted models' nodes are worth, and edges between the nodes that are left."""

from typing import Any

import numpy as np
import pytest

from builders_circuits import little, planted_model
from crosspatch.attribution import attribute
from crosspatch.circuits import Circuit, Graph, find
from crosspatch.circuits.nodes import edges_between
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.tasks import corrupt
from zoo import make_pair, make_task, uneven

UNEVEN = make_task(*uneven())
# Models in which gradients see all that matters: in the others hard attention, or a backup, hides some of it.
SEEN = ("ADDER", "negative", "fraction", "reverse")


def worth(circuit: Circuit) -> dict[str, float]:
    return {str(s): float(x) for s, x in zip(circuit.graph.senders, circuit.details["nodes"], strict=True)}


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("by", ["nodes", "hisp"])
def test_idle_nodes_are_worth_nothing(name: str, by: str) -> None:
    planted, model, task = planted_model(name)
    own = worth(find(model, task, by=by))
    used = {edge.split(" -> ")[0] for edge in planted.edges}
    idle = [score for sender, score in own.items() if sender not in used]
    assert min(own[sender] for sender in used) > 0.1
    assert max(idle) < 1e-4


@pytest.mark.parametrize("estimator", ["atp", "ig", "relp"])
def test_worth_is_the_estimated_loss(estimator: str) -> None:
    """Of noise, along the gap, averaged over pairs; whatever its sign."""
    _, model, task = planted_model("negative")
    own = worth(find(model, task, by="nodes", estimator=estimator))
    assert own["attn.head[0, 0]"] == pytest.approx(12, rel=1e-3)
    assert own["attn.head[0, 1]"] == pytest.approx(4, rel=1e-3)
    assert own["embed"] == pytest.approx(8, rel=1e-3)
    little_one = little("llama")[0]
    found = attribute(little_one, UNEVEN, sites="attn.head@all", by=estimator, direction="noise")
    expected = np.abs(found.raw.mean(1))
    own = worth(find(little_one, UNEVEN, by="nodes", estimator=estimator))
    assert [own[str(site).partition("@")[0]] for site in found.sites] == pytest.approx(expected.tolist(), rel=1e-4)


def test_hisp_is_over_its_layers_norm() -> None:
    """Absolute slopes are averaged over pairs, so that none cancels, and each layer's have length one."""
    model = little("llama")[0]
    found = attribute(model, UNEVEN, sites="attn.head@all, mlp.out@all", by="atp", direction="noise")
    size = {
        str(site).partition("@")[0]: float(row)
        for site, row in zip(found.sites, np.abs(found.raw).mean(1), strict=True)
    }
    own = worth(find(model, UNEVEN, by="hisp"))
    for layer in range(2):
        parts = {
            name: value for name, value in size.items() if name.startswith((f"attn.head[{layer}", f"mlp.out[{layer}"))
        }
        norm = float(np.linalg.norm(list(parts.values())))
        assert [own[name] for name in parts] == pytest.approx([value / norm for value in parts.values()], rel=1e-4)
    assert own["embed"] == pytest.approx(1)


@pytest.mark.parametrize("graph", [Graph(2, 4, 2), Graph(2, 2, 2, sequential=False), Graph(2, 2, 1, places=("a", "b"))])
def test_a_threshold_leaves_all_edges_between_the_nodes_above_it(graph: Graph) -> None:
    """The logits are always there; a key-value head is, where one of its query heads is."""
    nodes = np.random.default_rng(1).random(len(graph.senders))
    scores = edges_between(graph, nodes)
    for threshold in (0.2, 0.5, 0.8):
        there = {sender for sender, worth in zip(graph.senders, nodes, strict=True) if worth > threshold}
        for index in np.argwhere(graph.full()).tolist():
            edge = graph.edge(tuple(index))
            owners = graph.node_of(edge.receiver)
            expected = edge.sender in there and (not owners or bool(there & set(owners)))
            assert (scores[tuple(index)] > threshold) == expected, str(edge)
    assert np.isnan(scores[~graph.full()]).all()


@pytest.mark.parametrize("by", ["nodes", "hisp"])
def test_a_search_by_nodes_looks_at_its_runs(by: str) -> None:
    """Their metrics are in the settings; without a gap or a slope there is nothing to find."""
    model = little("gpt2")[0]
    about = find(model, UNEVEN, by=by).settings["settings"]
    expected = find(model, UNEVEN, by="eap").settings["settings"]
    for end in ("clean", "corrupt"):
        assert about[end] == pytest.approx(expected[end], abs=1e-5)
    noisy = corrupt(make_task(*(make_pair(7, (2,), seed=seed) for seed in range(2))), "gaussian", draws=2)
    about = find(model, noisy, by=by).settings["settings"]
    assert np.isfinite([about["clean"], about["corrupt"]]).all()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"metric": "kl"}, "has no slope"),
        ({"metric": "accuracy"}, "does not change smoothly"),
        ({"ablation": "zero"}, "leave the ablation out"),
    ]
    for how, words in refused:
        with pytest.raises(BadInput, match=words):
            find(model, UNEVEN, by=by, **how)
    with pytest.raises(UnknownName, match="unknown estimator 'nope'"):
        find(model, UNEVEN, by="nodes", estimator="nope")


def test_places_share_their_nodes_scores() -> None:
    found = find(little("gpt2")[0], UNEVEN, by="nodes", places=("mid", "end"))
    assert found.scores is not None
    assert found.scores.shape[0] == 3
    assert np.array_equal(found.scores[0], found.scores[2], equal_nan=True)
