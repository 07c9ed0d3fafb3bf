"""From a circuit and its scores to what its page shows."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from crosspatch.circuits.areas import FaithfulnessCurve
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.scorecard import Scorecard
from crosspatch.circuits.telling import about, finding, in_order, title_of
from crosspatch.core.errors import BadInput
from crosspatch.core.names import counted
from crosspatch.report.circuit_content import CircuitContent, CircuitCurve, ScoreLine

RANDOM = "random edges"
NOTES = {
    "faithfulness": "what the circuit alone does of the gap between the whole model and no edges",
    "all but the circuit": "what is left without the circuit's edges",
    "KL from the model, median (5–95 %)": "nats, quantiles over examples",
    "largest incompleteness": "how far circuit and model are apart without the same nodes",
    "nodes it could do without": "share of nodes whose loss moves faithfulness by less than 1 %",
    "random circuits, best": "faithfulness of random edges, as many",
    "CPR": "area under faithfulness by number of edges: higher is better",
    "CMD": "area between faithfulness and 1: lower is better",
}


def content_of_circuit(circuit: Any, score: Any = None) -> CircuitContent:
    """Put together what the page of a Circuit shows, with its Scorecard if there is one.

    Raises BadInput for what is neither.
    """
    if not isinstance(circuit, Circuit) or not isinstance(score, Scorecard | None):
        raise BadInput(
            f"a {type(circuit).__name__} with the score {type(score).__name__} is no circuit to show: give a "
            "circuits.Circuit, and its Scorecard or none."
        )
    found = about(circuit)
    edges, scores, order = in_order(circuit)
    told = score.settings.get("settings", {}) if score is not None else {}
    ranked = not order.startswith("the circuit first")  # else the first edges are not those that the curve was run with
    return CircuitContent(
        finding=finding(circuit, score),
        graph=circuit.graph,
        edges=edges,
        scores=scores,
        size=circuit.size,
        signed=circuit.signed,
        order=order,
        method=title_of(circuit),
        model=str(told.get("model") or found.get("model") or ""),
        task=str(told.get("task") or found.get("task") or ""),
        chips=tuple(_chips(found, told, score)),
        curves=tuple(_curves(circuit, score, ranked=ranked)) if score is not None else (),
        lines=tuple(ScoreLine(*row, note=NOTES.get(row[0], "")) for row in score.rows()) if score is not None else (),
        kl=None if score is None else score.kl,
        warnings=score.warnings if score is not None else (),
        provenance=_provenance(circuit, told),
    )


def _chips(found: Mapping[str, Any], told: Mapping[str, Any], score: Scorecard | None) -> Iterator[tuple[str, str]]:
    if found.get("n"):
        yield "found on", counted(int(found["n"]), "pair")
    if score is not None:
        yield "scored on", counted(len(score.values), "pair")
        regime = told.get("regime", {})
        yield "absent edges carry", _value(regime.get("value"))
        if regime.get("direction") == "cut":
            yield "scored", "what is left without the circuit"
        if regime.get("grain") == "node":
            yield "ablated", "whole nodes"
    yield "metric", str(told.get("metric") or found.get("metric") or "")


def _value(value: Any) -> str:
    return str(value.get("by", "")) if isinstance(value, Mapping) else str(value or "")


def _curves(circuit: Circuit, score: Scorecard, *, ranked: bool) -> Iterator[CircuitCurve]:
    title, size = title_of(circuit), np.array([float(circuit.size)])
    own, regime = score.faithfulness, score.settings.get("settings", {}).get("regime", {})
    if regime.get("direction") == "cut":
        title, ranked = f"without the first edges of {title}", False
    for name, curve in score.curves.items():
        label = title if name == "absolute" else f"{title}, by sign"
        made = _curve(label, curve, circuit.graph.size)
        # The circuit itself is a point of the curve that its edges are the first of.
        if name == "absolute" and ranked:
            yield _with_point(made, circuit.size, (own.value, own.low, own.high))
        else:
            yield made if ranked or name != "absolute" else replace(made, name=f"{title}, by |score|")
    if len(score.drawn):
        mean, low, high = (
            np.array([float(each)]) for each in (score.drawn.mean(), score.drawn.min(), score.drawn.max())
        )
        yield CircuitCurve(RANDOM, size, mean, low, high, reference=True)


def _curve(name: str, curve: FaithfulnessCurve, edges: int) -> CircuitCurve:
    counts = np.floor(curve.fractions * edges)
    there = counts >= 1  # the smallest shares of a small graph hold no edge
    return CircuitCurve(name, counts[there], curve.faithfulness[there], curve.low[there], curve.high[there])


def _with_point(curve: CircuitCurve, size: int, point: tuple[float, float, float]) -> CircuitCurve:
    others = curve.edges != size
    order = np.argsort([*curve.edges[others], float(size)], kind="stable")
    columns = zip((curve.edges, curve.mean, curve.low, curve.high), (float(size), *point), strict=True)
    edges, mean, low, high = (np.append(values[others], new)[order] for values, new in columns)
    return CircuitCurve(curve.name, edges, mean, low, high)


def _provenance(circuit: Circuit, told: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(circuit.settings)
    if "settings" in made:
        hidden = [name for name in ("passes", "circuits_run") if not made["settings"].get(name)]  # gradients count none
        hidden += ["pairs", "plan"]
        made["settings"] = {name: value for name, value in made["settings"].items() if name not in hidden}
    kept = ("task", "n", "metric", "regime", "device", "dtype", "passes", "seconds")
    scored = {name: told[name] for name in kept if name in told}
    return made | ({"scored": scored} if scored else {})
