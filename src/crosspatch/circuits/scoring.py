"""`score`: run a circuit, what is left without it, parts of it and circuits like it, and say how good it is."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.circuits.areas import MIB_FRACTIONS, FaithfulnessCurve, faithfulness_curve
from crosspatch.circuits.circuit import Circuit, top_edges
from crosspatch.circuits.finding import ablation_of, described, pair_hash
from crosspatch.circuits.knocking import Knocking
from crosspatch.circuits.measuring import Measured, measure
from crosspatch.circuits.opening import ELSEWHERE, EdgeSweep, edge_sweep, graph_of
from crosspatch.circuits.regime import Regime
from crosspatch.circuits.scorecard import Scorecard
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.core.provenance import here
from crosspatch.engine import Options
from crosspatch.metrics import Metric
from crosspatch.models.model import Model
from crosspatch.tasks import Task
from crosspatch.tasks.pair import take

Included = Bool[np.ndarray, "place receiver sender"]


@dataclass(frozen=True)
class Scoring:
    """What is scored, and under which ablation. `metric` is the one the circuit was found by unless given.

    `random`: circuits of the same size drawn at random. `knockouts`: random sets of nodes for completeness, beside
    those by class and a greedy one (0: none at all). `minimality`: leave out each node in turn. `curve`: circuits of
    growing size by the scores, at MIB's fractions.
    """

    metric: str | Metric | None = None
    regime: Regime = field(default_factory=Regime)
    random: int = 10
    knockouts: int = 10
    minimality: bool = True
    curve: bool = True
    seed: int = 0


def score(circuit: Circuit, model: Model, task: Task, *, options: Options | None = None, **settings: Any) -> Scorecard:
    """Score a circuit on a task's pairs: best on others than it was found on (`split`), or a warning says so.

    Settings are those of `Scoring`. The circuit alone costs three runs a batch: clean, corrupt and its own.

    Raises:
        BadInput: an empty circuit, one of another model's graph or vocabulary, or runs without a gap in the metric.
        UnknownName: a setting or metric that does not exist.
        NotFinite: the metric of some run is not a number.

    >>> found = score(circuit, model, held_out)  # doctest: +SKIP
    >>> found.faithfulness, found.kl_quantiles  # doctest: +SKIP
    """
    how, began = _scoring(settings), time.perf_counter()
    circuit = _checked(circuit, model, how.regime)
    sweep = _sweep(circuit, model, task, how, options)
    graph, rng = circuit.graph, np.random.default_rng(how.seed)
    run = _Runs(how.regime, circuit)
    asked: dict[str, list[Included]] = {
        "circuit": [run(circuit.included)],
        "complement": [run(graph.full() & ~circuit.included)],
        "random": [run(_random(circuit, rng)) for _ in range(how.random)],
    }
    ranked = _ranked(circuit) if how.curve else {}
    asked |= {name: [run(mask) for mask in masks] for name, masks in ranked.items()}
    knocking = Knocking(circuit, how, rng)
    asked |= {name: [run(mask) for mask in masks] for name, masks in knocking.asked().items()}
    count = sum(map(len, asked.values())) + knocking.later + 1  # and the circuit's divergence
    sweep.options.progress.start(count * len(task.pairs), "circuit runs")
    measured = measure(sweep, [mask for masks in asked.values() for mask in masks])
    values = _by_name(asked, measured)
    _require_gap(measured, sweep)
    kl = measure(_sweep(circuit, model, task, replace(how, metric="kl"), options), asked["circuit"])
    shares = {name: _shares(found, measured) for name, found in values.items()}
    completeness = knocking.knockouts(shares, lambda masks: _again(sweep, run, masks))
    sweep.options.progress.close()
    return Scorecard(
        size=circuit.size,
        of=graph.size,
        values=values["circuit"][0],
        full=measured.full[0],
        empty=measured.empty[0],
        complement=values["complement"][0],
        kl=kl.values[0, 0],
        drawn=shares["random"],
        completeness=completeness,
        minimality=knocking.minimality(shares),
        curves={name: _curve(values[name], measured) for name in ranked},
        warnings=tuple(_warnings(circuit, model, task, sweep)),
        settings=here(
            **described(sweep, task),
            regime=how.regime.settings(circuit),
            scored=_settings(circuit),
            passes=measured.calls + kl.calls,
            seconds=round(time.perf_counter() - began, 3),
        ),
    )


def measure_circuits(
    circuits: Sequence[Circuit], model: Model, task: Task, *, options: Options | None = None, **settings: Any
) -> Measured:
    """Run several circuits of one graph and return their metric on every pair, with those of model and no edges.

    Three runs a batch for one circuit: clean, corrupt, its own.
    Raises:
        BadInput, UnknownName, NotFinite: as `score` does.
    """
    how = _scoring(settings)
    if not circuits or any(each.graph != circuits[0].graph for each in circuits):
        raise BadInput("give one or more circuits of one graph.")
    checked = [_checked(each, model, how.regime) for each in circuits]
    sweep = _sweep(checked[0], model, task, how, options)
    return measure(sweep, [how.regime.run_with(each.graph, each.included) for each in checked])


def split(task: Task, share: float = 0.5, *, seed: int = 0) -> tuple[Task, Task]:
    """Split a task's pairs at random: some to find a circuit on, the others (held out) to score it on.

    Raises:
        BadInput: a share outside (0, 1), or too few pairs for both.
    """
    count = round(share * len(task.pairs))
    if not 0 < share < 1 or not 0 < count < len(task.pairs):
        raise BadInput(f"a share of {share} of {len(task.pairs)} pairs leaves nothing for one side: give more pairs.")
    order = np.random.default_rng(seed).permutation(len(task.pairs)).tolist()
    return take(task, sorted(order[:count])), take(task, sorted(order[count:]))


def _scoring(settings: Mapping[str, Any]) -> Scoring:
    for name in settings:
        if name not in Scoring.__dataclass_fields__:
            raise UnknownName.of("setting", name, list(Scoring.__dataclass_fields__))
    return Scoring(**settings)


def _settings(circuit: Circuit) -> Mapping[str, Any]:
    """Return how a circuit was found; nothing for one that was made by hand."""
    found = circuit.settings.get("settings", circuit.settings)
    return {name: value for name, value in found.items() if name not in ("pairs", "plan")}


def _checked(circuit: Circuit, model: Model, regime: Regime) -> Circuit:
    """Refuse what cannot be scored on this model; tell places apart if the regime asks for some.

    Raises:
        BadInput: an empty circuit, another graph, or another vocabulary.
    """
    if circuit.size == 0:
        raise BadInput("the circuit has no edges: nothing can be scored. Lower the threshold, or raise the size.")
    own = replace(graph_of(model), places=circuit.graph.places)
    if own != circuit.graph:
        raise BadInput(
            f"the circuit is of a graph with {circuit.graph.layers} layers and {circuit.graph.heads} heads "
            f"({circuit.graph.kv_heads} for keys and values), {model.name} has {own.layers} and {own.heads} "
            f"({own.kv_heads}): find the circuit on this model."
        )
    vocabulary = _settings(circuit).get("vocab_size")
    if vocabulary is not None and vocabulary != model.vocab_size:
        raise BadInput(
            f"the circuit was found on a model with {vocabulary:,} tokens, {model.name} has {model.vocab_size:,}: the "
            "tokenizers differ, and so do the pairs. Find the circuit on this model."
        )
    if regime.positions is None or circuit.graph.places:
        return circuit
    graph = replace(circuit.graph, places=(*regime.positions, ELSEWHERE))
    scores = None if circuit.scores is None else np.broadcast_to(circuit.scores, graph.shape)
    return replace(circuit, graph=graph, included=np.broadcast_to(circuit.included, graph.shape), scores=scores)


def _sweep(circuit: Circuit, model: Model, task: Task, how: Scoring, options: Options | None) -> EdgeSweep:
    metric = how.metric if how.metric is not None else _settings(circuit).get("metric")
    return edge_sweep(model, task, circuit.graph, [metric], ablation=ablation_of(how.regime.value), options=options)


@dataclass(frozen=True)
class _Runs:
    """Turns a circuit into the edges that are run."""

    regime: Regime
    circuit: Circuit

    def __call__(self, included: Included) -> Included:
        return self.regime.run_with(self.circuit.graph, included)


def _random(circuit: Circuit, rng: np.random.Generator) -> Included:
    """Draw as many edges as the circuit has from all of the graph's."""
    flat = np.flatnonzero(circuit.graph.full())
    included = np.zeros(circuit.graph.shape, dtype=bool)
    included.reshape(-1)[rng.choice(flat, size=circuit.size, replace=False)] = True
    return included


def _ranked(circuit: Circuit) -> dict[str, list[Included]]:
    """Return circuits of MIB's sizes by the scores: by magnitude, and by sign where they have one."""
    if circuit.scores is None:
        return {}
    ways = {"absolute": circuit.signed} | ({"signed": False} if circuit.signed else {})
    graph, scores = circuit.graph, circuit.scores
    return {
        name: [top_edges(graph, scores, int(k * graph.size), absolute=absolute) for k in MIB_FRACTIONS]
        for name, absolute in ways.items()
    }


def _by_name(asked: Mapping[str, Sequence[Included]], measured: Measured) -> dict[str, Float[np.ndarray, "c example"]]:
    found, first = {}, 0
    for name, masks in asked.items():
        found[name] = measured.values[0, first : first + len(masks)]
        first += len(masks)
    return found


def _shares(values: Float[np.ndarray, "circuit example"], measured: Measured) -> Float[np.ndarray, " circuit"]:
    gap = (measured.full[0] - measured.empty[0]).mean(dtype=np.float64)
    return (values - measured.empty[0]).mean(1, dtype=np.float64) / gap


def _again(sweep: EdgeSweep, run: _Runs, masks: Sequence[Included]) -> Float[np.ndarray, " circuit"]:
    measured = measure(sweep, [run(mask) for mask in masks])
    return _shares(measured.values[0], measured)


def _curve(values: Float[np.ndarray, "fraction example"], measured: Measured) -> FaithfulnessCurve:
    return faithfulness_curve(values, full=measured.full[0], empty=measured.empty[0])


def _require_gap(measured: Measured, sweep: EdgeSweep) -> None:
    full, empty = (float(values[0].mean(dtype=np.float64)) for values in (measured.full, measured.empty))
    if abs(full - empty) < 1e-6 * max(abs(full), abs(empty), 1e-6):
        raise BadInput(
            f"{sweep.metrics[0].name} is {full:.4g} with all edges and {empty:.4g} without any: faithfulness has no "
            "scale. Use another metric, or pairs that the model tells apart."
        )


def _warnings(circuit: Circuit, model: Model, task: Task, sweep: EdgeSweep) -> list[str]:
    found, about = [], _settings(circuit)
    known = set(circuit.settings.get("settings", {}).get("pairs", ()))
    seen = sum(pair_hash(pair) in known for pair in task.pairs)
    if seen:
        found.append(
            f"{seen} of {len(task.pairs)} pairs are ones that the circuit was found on: scores on them flatter it. "
            "Hold pairs out (split), or make new ones with another seed."
        )
    if about.get("model_hash") not in (None, model.fingerprint):
        found.append(f"The circuit was found on another model ({about.get('model')}).")
    if about.get("metric") not in (None, sweep.metrics[0].name):
        found.append(f"The circuit was found by {about['metric']}, and is scored by {sweep.metrics[0].name}.")
    return found
