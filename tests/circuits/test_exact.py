"""Exact scores: each edge cut alone, against the twin; what is kept on disk; signs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders_circuits import BUILDERS, Stopper, little, names_of, planted_model
from crosspatch.circuits import Circuit, exact, find
from crosspatch.core.errors import BadInput, NotFinite
from crosspatch.engine import Options
from crosspatch.metrics import metric_from
from crosspatch.tasks import Task
from naive.circuits import masked_logits
from zoo import make_pair, make_task, uneven

UNEVEN = make_task(*uneven())


def exactly(name: str, task: Task = UNEVEN, *, layers: int = 2, **how: Any) -> Circuit:
    return find(little(name, layers)[0], task, by="exact", **how)


def scores(circuit: Circuit) -> np.ndarray:
    assert circuit.scores is not None
    return circuit.scores


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "falcon_40b"])
def test_a_score_is_what_the_metric_loses_without_the_edge(name: str) -> None:
    """One edge of eleven, of pairs of two lengths; positive where the metric moves to the corrupt run's."""
    model, body = little(name, dtype=torch.float64)
    task = make_task(make_pair(6, (2, 4)), make_pair(5, (1, 4), seed=3))
    found, full = find(model, task, by="exact"), body.graph.full().astype(float)

    def mean(mask: np.ndarray) -> float:
        last = [masked_logits(body, pair.clean, pair.corrupt, mask)[-1] for pair in task.pairs]
        return float(np.mean([float(logits[5] - logits[7]) for logits in last]))

    whole = mean(full)
    for edge in np.argwhere(body.graph.full())[:: 9 if name == "gpt2" else 13].tolist():
        mask = full.copy()
        mask[tuple(edge)] = 0
        expected = (whole - mean(mask)) * np.sign(whole - mean(0 * full))
        assert scores(found)[tuple(edge)] == pytest.approx(expected, abs=1e-5)
    assert np.array_equal(np.isnan(scores(found)), ~body.graph.full())


@pytest.mark.parametrize("name", BUILDERS)
def test_planted_edges_are_those_that_matter_alone(name: str) -> None:
    """All others lose nothing at all, and the edges that matter lose at least a fifth of the gap."""
    planted, model, task = planted_model(name)
    found = find(model, task, by="exact", size=len(planted.edges))
    assert names_of(found) == planted.used("noise")
    gap = abs(found.settings["settings"]["clean"] - found.settings["settings"]["corrupt"])
    matters = np.abs(scores(found)[found.graph.full()]) / gap
    assert ((matters < 1e-4) | (matters > 0.2)).all()
    assert (matters > 0.2).sum() == len(planted.edges)


def test_an_edge_that_hurts_has_a_negative_score() -> None:
    planted, model, task = planted_model("negative")
    swapped = Task("swapped", tuple(replace(p, right=p.wrong, wrong=p.right) for p in task.pairs), metric=task.metric)
    for each in (task, swapped):
        found = find(model, each, by="exact", size=4)
        assert found.signed
        told = {str(edge): round(found.score(edge), 3) for edge in found.edges}
        assert [told[f"attn.head[0, {head}] -> logits"] for head in (0, 1)] == [12, -4]
        assert [told[f"embed -> attn.v[0, {head}]"] for head in (0, 1)] == [12, -4]
    assert len(planted.edges) == 4


def test_a_divergence_is_lost_upwards() -> None:
    """Zero in the clean run, it can only rise: no edge has a negative score."""
    found = exactly("gpt2", metric="kl")
    assert found.settings["settings"]["clean"] == pytest.approx(0, abs=1e-6)
    assert np.nanmin(scores(found)) > -1e-6
    assert np.nanmax(scores(found)) > 1e-5


@pytest.mark.parametrize("how", [{}, {"places": ("mid",)}, {"ablation": "zero"}])
def test_chunks_do_not_matter(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    layers = 1 if how else 2
    whole = scores(exactly("llama", layers=layers, **how))
    monkeypatch.setattr(exact, "AT_ONCE", 7)
    parts = scores(exactly("llama", layers=layers, options=Options(memory=40_000), **how))
    assert np.allclose(whole, parts, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("memory", "after"), [(None, 2), (40_000, 4)])
def test_finished_edges_are_not_run_again(tmp_path: Path, memory: int | None, after: int) -> None:
    """Stopped and taken up again, with the chunks that it was begun with; to the same bits in as much memory."""

    def run(**options: Any) -> Circuit:
        return exactly("gpt2", layers=1, options=Options(**options))

    whole = run(memory=memory)
    with pytest.raises(KeyboardInterrupt):
        run(journal=tmp_path, memory=memory, progress=Stopper(after))
    resumed = run(journal=tmp_path)
    slack = 0 if memory is None else 1e-6
    assert np.allclose(scores(resumed), scores(whole), rtol=0, atol=slack, equal_nan=True)
    runs = [circuit.settings["settings"]["circuits_run"] for circuit in (resumed, whole)]
    assert 0 < runs[0] < runs[1]
    again = run(journal=tmp_path)
    assert again.settings["settings"]["circuits_run"] == 0
    assert np.array_equal(scores(again), scores(resumed), equal_nan=True)
    with pytest.raises(BadInput, match="unfinished work of another question"):
        exactly("gpt2", layers=1, metric="prob", options=Options(journal=tmp_path))


def test_a_run_that_overflows_is_an_error() -> None:
    """The two whole runs are finite; a circuit between them is not."""
    seen: list[int] = []

    def late(out: Any) -> torch.Tensor:
        seen.append(1)
        value = out.right[:, 0] - out.wrong[:, 0]
        return value * float("nan") if len(seen) > 4 else value

    with pytest.raises(NotFinite, match="with some edges only, on example 0: the run overflows"):
        exactly("gpt2", metric=metric_from(late, name="late"))
