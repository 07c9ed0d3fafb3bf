"""Circuits as a user of a terminal reads them, and as one JSON document."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from crosspatch.core.names import counted

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from crosspatch.circuits import Circuit, Scorecard


def summary_of(circuit: "Circuit", score: "Scorecard | None", *, top: int = 10, **more: Any) -> dict[str, Any]:
    """Describe a circuit as a JSON document: how it was found, its first edges, its scores, the cautions."""
    from crosspatch.circuits.telling import about, finding, in_order

    found = about(circuit)
    edges, scores, order = in_order(circuit)
    count = min(top, circuit.size)
    named = ("model", "model_hash", "task", "task_settings", "n", "seed", "metric", "ablation", "method", "title")
    rows = [
        {"edge": str(edge), "sender": str(edge.sender), "receiver": str(edge.receiver), "place": edge.place, "score": s}
        for edge, s in zip(edges[:count], scores[:count].tolist(), strict=True)
    ]
    return {
        "what": "circuit",
        "crosspatch": circuit.settings.get("crosspatch"),
        "time": circuit.settings.get("time"),
        "complete": True,
        **{name: found.get(name) for name in named},
        "seed": circuit.settings.get("seed"),
        "edges": circuit.size,
        "of": circuit.graph.size,
        "nodes": len(circuit.nodes),
        "places": list(circuit.graph.places),
        "passes": found.get("passes") or None,  # gradients count none
        "seconds": found.get("seconds"),
        "finding": finding(circuit, score),
        "order": order,
        "top": rows,
        "score": None if score is None else score_document(score),
        "cautions": [] if score is None else list(score.warnings),
        **more,
    }


def score_document(score: "Scorecard") -> dict[str, Any]:
    """Describe scores as JSON."""
    told = score.settings.get("settings", {})
    areas = {"faithfulness": score.faithfulness, "rest": score.rest, "cpr": score.cpr, "cmd": score.cmd}
    knockouts = [
        {"name": each.name, "nodes": list(each.nodes), "circuit": each.circuit, "model": each.model}
        for each in score.completeness
    ]
    return {
        "n": len(score.values),
        **{name: told.get(name) for name in ("model", "task", "metric", "regime", "passes", "seconds")},
        **{name: area and {"value": area.value, "low": area.low, "high": area.high} for name, area in areas.items()},
        "kl_quantiles": list(score.kl_quantiles),
        "incompleteness": score.incompleteness,
        "completeness": knockouts,
        "minimality": dict(score.minimality),
        "idle": list(score.idle),
        "random": score.drawn.tolist(),
        "chance": score.chance if len(score.drawn) else None,
    }


def title(circuit: "Circuit") -> str:
    """Name what was looked for and how, in one line."""
    from crosspatch.circuits.telling import about, title_of

    found = about(circuit)
    seconds, n = found.get("seconds"), found.get("n")
    words = [found.get("model"), found.get("task"), title_of(circuit), found.get("metric")]
    line = " · ".join(str(word) for word in words if word)
    on = f" on {counted(n, 'pair')}" if n else ""
    took = f" in {seconds:.1f} s" if isinstance(seconds, int | float) else ""
    return f"{line}: {circuit.size:,} of {circuit.graph.size:,} edges{on}{took}"


def circuit_text(circuit: "Circuit", score: "Scorecard | None", *, top: int = 10) -> "Iterator[RenderableType]":
    """Yield a title, a table of the first edges, one of the scores, and the cautions."""
    from rich.text import Text

    from crosspatch.circuits.telling import in_order
    from crosspatch.draw import edge_table, score_table

    yield Text(title(circuit), style="bold")
    edges, scores, _ = in_order(circuit)
    count = min(top, circuit.size)
    yield edge_table(edges[:count], scores[:count], most=count, total=circuit.size)
    if score is None:
        return
    yield score_table(score.rows())
    yield from (f"! {caution}" for caution in score.warnings)
    if score.warnings:
        yield ""


def ending(circuit: "Circuit", score: "Scorecard | None", folder: "Path", page: "Path | None") -> tuple[str, str]:
    """Give the last lines: the finding, and where its report (or at least its numbers) went."""
    return circuit.finding(score), f"report → {page}" if page is not None else f"saved → {folder}"


def run_line(run: Mapping[str, Any]) -> str:
    """Say in one line what a listed circuit is of."""
    words = [run.get("model"), f"{run.get('task')}, {run.get('n')} pairs" if run.get("n") else run.get("task")]
    words += [run.get("title"), run.get("metric")]
    return " · ".join(str(word) for word in words if word)
