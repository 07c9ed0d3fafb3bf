"""ACDC: in batches it keeps what it keeps one edge at a time, and that is what the definition and the truth say."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders_circuits import BUILDERS, Stopper, little, machine_of, names_of, planted_model
from crosspatch.circuits import Circuit, find
from crosspatch.circuits.acdc import edge_order
from crosspatch.circuits.measuring import Gauge
from crosspatch.core.errors import BadInput
from crosspatch.engine import Options
from crosspatch.tasks import Task
from naive.circuits import masked_logits, naive_acdc
from zoo import make_pair, make_task, uneven

UNEVEN = make_task(*uneven())
FAMILIES = ("gpt2", "llama", "gemma3", "gpt_neox", "falcon_40b", "olmo2", "mixtral", "bloom")
METRICS = ("logit_diff", "kl", "prob", "logprob")
planted_models = pytest.mark.parametrize("name", BUILDERS)


def gap(name: str, task: Task = UNEVEN, *, metric: str = "logit_diff", layers: int = 2) -> float:
    """Return the size of the gap between the mean metrics of the two runs."""
    with machine_of(little(name, layers)[0], task, metric=metric) as machine:
        clean, corrupt = (float(values[0].mean()) for values in machine.ends)
    return abs(clean - corrupt)


def acdc(name: str, threshold: float, *, layers: int = 2, **how: Any) -> Circuit:
    return find(little(name, layers)[0], UNEVEN, by="acdc", threshold=threshold, **how)


def both_ways(name: str, threshold: float, **how: Any) -> tuple[Circuit, Circuit]:
    return acdc(name, threshold, **how), acdc(name, threshold, **how, speculate=False)


def passes(circuit: Circuit) -> int:
    return circuit.settings["settings"]["passes"]


def same_search(one: Circuit, other: Circuit) -> bool:
    """Whether two searches made the same tests with the same outcomes."""
    assert one.details["losses"] == pytest.approx(other.details["losses"], abs=1e-5)
    steps = np.array_equal(one.details["steps"], other.details["steps"])
    return steps and np.array_equal(one.included, other.included)


def some_cases(count: int) -> list[tuple[str, float, Mapping[str, Any]]]:
    """Draw families, thresholds as shares of the gap, and settings; each family meets another metric each time."""
    rng, found = random.Random(0), []
    for number in range(count):
        how = {"order": rng.choice(("reverse", "forward")), "absolute": rng.random() < 0.5}
        how |= {"metric": METRICS[(number + number // 8) % 4]}
        how |= {"places": ("mid", "end")} if number % 6 == 5 else {}
        found.append((FAMILIES[number % len(FAMILIES)], 10 ** rng.uniform(-2.5, -0.3), how))
    return found


@pytest.mark.parametrize(("name", "share", "how"), some_cases(11))
def test_batches_keep_what_single_steps_keep(name: str, share: float, how: Mapping[str, Any]) -> None:
    """The same tests in the same order with the same outcomes, in fewer passes."""
    fast, slow = both_ways(name, share * gap(name, metric=how["metric"]), **how)
    assert same_search(fast, slow)
    assert passes(slow) > len(slow.details["steps"])
    assert passes(fast) < passes(slow)


# against the definition


@pytest.mark.parametrize(
    ("name", "share", "how"),
    [
        ("gpt2", 0.1, {}),
        ("gpt_neox", 0.1, {"order": "forward"}),
        ("gemma3", 0.1, {"absolute": True}),
        ("olmo2", 0.2, {"order": "forward"}),
        ("llama", 0.05, {"metric": "kl"}),
    ],
)
def test_it_is_the_published_algorithm(name: str, share: float, how: dict[str, Any]) -> None:
    """The twin tests every edge; ours leaves out those into what nobody reads, which change nothing."""
    (model, body), pair = little(name, layers=1, dtype=torch.float64), make_pair(6, (2, 4))
    full = body.graph.full().astype(float)
    ends = [masked_logits(body, pair.clean, pair.corrupt, weight * full) for weight in (1, 0)]
    clean = ends[0][-1].log_softmax(-1)
    side = 1 if ends[0][-1, 5] - ends[0][-1, 7] > ends[1][-1, 5] - ends[1][-1, 7] else -1

    def score(logits: torch.Tensor) -> torch.Tensor:
        if how.get("metric") == "kl":
            return -(clean.exp() * (clean - logits[-1].log_softmax(-1))).sum()
        return side * (logits[-1, 5] - logits[-1, 7])

    threshold = share * float(score(ends[0]) - score(ends[1]))
    rule = {"backwards": how.get("order") != "forward", "absolute": how.get("absolute", False)}
    expected = naive_acdc(body, pair.clean, pair.corrupt, score=score, threshold=threshold, **rule)
    found = find(model, make_task(pair), by="acdc", threshold=threshold, **how)
    assert np.array_equal(found.included, expected)
    assert 0 < found.size < found.graph.size


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_steps_tell_the_whole_search(name: str) -> None:
    """Played back edge by edge from the clean run: each loss and each rise, and edges without a test cost nothing."""
    threshold = 0.15 * gap(name)
    found = acdc(name, threshold, absolute=True)
    steps = [tuple(step) for step in found.details["steps"].tolist()]
    order, tested = edge_order(found.graph, "reverse"), {step[:3]: step[3] for step in steps}
    assert [step[:3] for step in steps] == [edge for edge in order if edge in tested]
    sign = -np.sign(found.settings["settings"]["clean"] - found.settings["settings"]["corrupt"])
    with machine_of(little(name)[0], UNEVEN) as machine:
        gauge, mask = Gauge(machine, 1 << 30), found.graph.full()

        def loss() -> float:
            return float(sign * gauge.alone(mask)[0].mean())

        current, losses = loss(), iter(found.details["losses"].tolist())
        for edge in order:
            mask[edge] = False
            if edge not in tested:
                assert loss() == pytest.approx(current, abs=1e-5), found.graph.edge(edge)
                continue
            without = loss()
            assert without == pytest.approx(next(losses), abs=1e-5)
            assert found.scores is not None
            assert found.scores[edge] == pytest.approx(without - current, abs=2e-5)
            assert tested[edge] == (abs(found.scores[edge]) >= threshold)
            mask[edge] = bool(tested[edge])
            current = current if mask[edge] else without
    assert np.array_equal(mask, found.included)
    assert (len(steps) < len(order)) == (name == "gpt2")  # a norm behind attention joins all heads


# against the truth


@planted_models
@pytest.mark.parametrize("order", ["reverse", "forward"])
def test_planted_circuits_are_found_exactly(name: str, order: str) -> None:
    """Each order is searched in batches and one edge at a time, each by a signed and by an absolute loss."""
    planted, model, task = planted_model(name)
    for absolute in (False, True):
        how = {"order": order, "absolute": absolute, "speculate": absolute == (order == "forward")}
        found = find(model, task, by="acdc", threshold=0.3, **how)
        assert names_of(found) in planted.kept(absolute=absolute), how
        assert names_of(found.pruned()) == names_of(found)


def test_one_input_of_or_is_kept() -> None:
    """By noise each is enough alone: which of them stays hangs on the order."""
    planted, model, task = planted_model("OR")
    found = {names_of(find(model, task, by="acdc", threshold=0.3, order=order)) for order in ("reverse", "forward")}
    assert found == set(planted.kept())


def test_a_metric_that_is_lower_in_the_clean_run() -> None:
    """A divergence grows as edges are cut, and so does a logit difference of swapped answers."""
    planted, model, task = planted_model("ADDER")
    assert names_of(find(model, task, by="acdc", threshold=0.05, metric="kl")) == planted.edges
    swapped = Task("swapped", tuple(make_swapped(task)), metric="logit_diff")
    found = find(model, swapped, by="acdc", threshold=0.3)
    assert names_of(found) == planted.edges
    assert found.settings["settings"]["clean"] < found.settings["settings"]["corrupt"]
    assert found.scores is not None
    assert (found.scores[found.included] > 0.3).all()


def make_swapped(task: Task) -> list[Any]:
    return [replace(pair, right=pair.wrong, wrong=pair.right) for pair in task.pairs]


# near ties


@pytest.mark.parametrize(("name", "layers", "absolute"), [("gpt2", 2, False), ("llama", 1, True)])
def test_a_threshold_at_the_very_rise_of_a_step(name: str, layers: int, absolute: bool) -> None:
    """Where rounding could decide, an edge is measured alone, so that batches and single steps agree."""
    found = acdc(name, 0.1 * gap(name, layers=layers), absolute=absolute, layers=layers)
    sign = np.sign(found.settings["settings"]["corrupt"] - found.settings["settings"]["clean"])
    current, rises = sign * found.settings["settings"]["clean"], []
    for (*_, kept), loss in zip(found.details["steps"].tolist(), found.details["losses"].tolist(), strict=True):
        rises.append(abs(loss - current) if absolute else loss - current)
        current = current if kept else loss
    was_kept = found.details["steps"][:, 3] > 0
    # Both thresholds decide as before up to this very step.
    for rise in (min(np.array(rises)[was_kept]), max(np.array(rises)[~was_kept])):
        assert rise > 1e-5
        assert same_search(*both_ways(name, float(rise), absolute=absolute, layers=layers)), rise


# kept on disk


@pytest.mark.parametrize(("name", "after"), [("gpt2", 3), ("gemma3", 6)])
def test_a_search_goes_on_where_it_was(tmp_path: Path, name: str, after: int) -> None:
    threshold, whole, done = 0.05 * gap(name), None, Stopper()
    whole = acdc(name, threshold)
    with pytest.raises(KeyboardInterrupt):
        acdc(name, threshold, options=Options(journal=tmp_path, progress=Stopper(after)))
    resumed = acdc(name, threshold, options=Options(journal=tmp_path, progress=done))
    assert same_search(resumed, whole)
    assert passes(resumed) < passes(whole)
    assert sum(done.seen) == done.total == whole.graph.size
    again = acdc(name, threshold, options=Options(journal=tmp_path))
    assert same_search(again, whole)
    assert passes(again) <= 2


CHILD = """
import sys
import time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from builders_circuits import little
from crosspatch.circuits import find
from crosspatch.engine import Options
from zoo import make_task, uneven

class Speaker:
    seen = 0

    def start(self, total, unit): pass
    def advance(self, done, note=""):
        print(done, flush=True)
        self.seen += 1
        if self.seen == 8:  # however slow who kills us is
            time.sleep(600)
    def close(self): pass

options = Options(journal=Path(sys.argv[2]), progress=Speaker())
how = {"by": "acdc", "threshold": float(sys.argv[3]), "speculate": False}
find(little("gpt2", 1)[0], make_task(*uneven()), **how, options=options)
print("done", flush=True)
"""


def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    threshold, tests = 0.05 * gap("gpt2", layers=1), str(Path(__file__).parents[1])
    command = [sys.executable, "-c", CHILD, tests, str(tmp_path), str(threshold)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(8):  # then it waits
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    assert "done" not in child.communicate()[0]
    whole = acdc("gpt2", threshold, layers=1, speculate=False)
    resumed = acdc("gpt2", threshold, layers=1, speculate=False, options=Options(journal=tmp_path))
    assert same_search(resumed, whole)
    assert passes(resumed) <= passes(whole) - 6


def test_another_question_cannot_use_the_journal(tmp_path: Path) -> None:
    options = Options(journal=tmp_path)
    acdc("gpt2", 0.01, options=options)
    others: list[dict[str, Any]] = [
        {"threshold": 0.02},
        {"threshold": 0.01, "order": "forward"},
        {"threshold": 0.01, "absolute": True},
        {"threshold": 0.01, "metric": "kl"},
        {"threshold": 0.01, "places": ("mid",)},
        {"threshold": 0.01, "ablation": "zero"},
        {"by": "exact"},
    ]
    for other in others:
        with pytest.raises(BadInput, match="unfinished work of another question"):
            find(little("gpt2")[0], UNEVEN, options=options, **other)
    with pytest.raises(BadInput, match="unfinished work of another question"):
        find(little("gpt2")[0], make_task(*uneven()[:2]), threshold=0.01, options=options)
