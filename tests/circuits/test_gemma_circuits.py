"""Circuits of the real Gemma-3-270M on IOI: faithful on held-out pairs, and ACDC in few passes."""

import numpy as np
import pytest

from builders_gemma import gemma
from crosspatch.circuits import find, graph_of, score, split
from crosspatch.models.model import Model
from crosspatch.tasks import Task, ioi

pytestmark = pytest.mark.gemma


@pytest.fixture(scope="module", name="gemma")
def fixture_gemma() -> Model:
    return gemma()


@pytest.fixture(scope="module")
def pairs(gemma: Model) -> tuple[Task, Task]:
    return split(ioi(gemma, n=12, template=0))


def test_the_graph_is_that_of_the_model(gemma: Model) -> None:
    graph = graph_of(gemma)
    assert (graph.layers, graph.heads, graph.kv_heads, graph.size, graph.nodes) == (18, 4, 1, 5644, 92)


def test_a_few_edges_are_faithful_on_held_out_pairs(gemma: Model, pairs: tuple[Task, Task]) -> None:
    here, held_out = pairs
    circuit = find(gemma, here, by="eap-ig", size=200)
    card = score(circuit, gemma, held_out, random=3, knockouts=0, minimality=False)
    assert card.faithfulness.value > 0.7
    assert abs(card.rest.value) < 0.1
    assert np.abs(card.drawn).max() < 0.1
    assert card.curves["absolute"].faithfulness[-1] == pytest.approx(1, abs=1e-3)
    assert not card.warnings


def test_acdc_needs_a_tenth_of_the_passes(gemma: Model, pairs: tuple[Task, Task]) -> None:
    circuit = find(gemma, pairs[0], by="acdc", threshold=2.0)
    tests = len(circuit.details["steps"])
    assert tests > 500
    assert circuit.settings["settings"]["passes"] * 10 <= tests
    assert 0 < circuit.size < 100
