"""A circuit in words: how it was found, and what its scores say, in one sentence."""

from collections.abc import Mapping
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from crosspatch.circuits.graph import CircuitEdge
from crosspatch.core.names import counted

if TYPE_CHECKING:
    from crosspatch.circuits.areas import Area
    from crosspatch.circuits.circuit import Circuit
    from crosspatch.circuits.scorecard import Scorecard


def about(circuit: "Circuit") -> Mapping[str, Any]:
    """Return how a circuit was found; what its source says of one that was read or published."""
    return circuit.settings.get("settings", circuit.settings)


def title_of(circuit: "Circuit") -> str:
    """Name a circuit's method, or where it comes from."""
    found = about(circuit)
    if found.get("title"):
        return str(found["title"])
    if found.get("known"):
        return f"the published {found['known']} circuit"
    return str(found.get("file") or "a circuit made by hand")


def held_out(circuit: "Circuit", score: "Scorecard") -> bool:
    """Tell whether a circuit's origin is known, and none of the pairs it was scored on belongs to it."""
    known, seen = about(circuit).get("pairs"), score.settings.get("settings", {}).get("pairs", ())
    return bool(known) and not set(known) & set(seen)


def finding(circuit: "Circuit", score: "Scorecard | None" = None) -> str:
    """Say in one sentence how many edges there are and, if scored, what they do alone and what is left without them."""
    name, size = title_of(circuit), f"{circuit.size:,} of {circuit.graph.size:,} edges"
    name = name[:1].upper() + name[1:]
    if not circuit.size:
        return f"{name}: no edge is in the circuit."
    if score is None:
        task = about(circuit).get("task")
        return f"{name}: {size}{f' for {task}' if task else ''}, not scored yet."
    told = score.settings.get("settings", {})
    shares = [_share(area) for area in (score.faithfulness, score.rest)]
    ablated = told.get("regime", {}).get("direction") == "cut"
    alone, without = reversed(shares) if ablated else shares
    count = len(score.values)
    pairs = counted(count, "held-out pair" if held_out(circuit, score) else "pair")
    task = told.get("task") or "the behaviour"
    return f"{name}: {size} do {alone} of {task} on {pairs}; without them {without} is left."


def _share(area: "Area") -> str:
    """Write a share in hundredths: nobody reads more of it, and so near nothing is nothing."""
    value, low, high = (f"{round(number, 2) + 0.0:.2f}" for number in (area.value, area.low, area.high))
    return value if isnan(area.low) else f"{value} [{low}, {high}]"


def in_order(circuit: "Circuit") -> tuple[tuple[CircuitEdge, ...], Float[np.ndarray, " edge"], str]:
    """Return a graph's edges that are included or have a score, the circuit first, with their scores and the order.

    Within the circuit and behind it the largest scores come first, by magnitude where they have a sign.
    """
    graph, scores = circuit.graph, circuit.scores
    if scores is None:
        return circuit.edges, np.full(circuit.size, np.nan), "in the order of their receivers"
    keys = np.abs(scores) if circuit.signed else scores
    keys = np.where(np.isnan(keys), -np.inf, keys).astype(np.float64)
    there = np.flatnonzero((circuit.included | (graph.full() & ~np.isnan(scores))).ravel())
    included = circuit.included.ravel()[there]
    order = np.lexsort((-keys.ravel()[there], ~included))
    by = "by |score|" if circuit.signed else "by score"
    inside, outside = keys.ravel()[there[included]], keys.ravel()[there[~included]]
    if len(inside) and len(outside) and inside.min() < outside.max():
        by = f"the circuit first, then {by}"
    at = [(int(p), int(r), int(s)) for p, r, s in zip(*np.unravel_index(there[order], graph.shape), strict=True)]
    return tuple(map(graph.edge, at)), np.array([float(scores[index]) for index in at]), by
