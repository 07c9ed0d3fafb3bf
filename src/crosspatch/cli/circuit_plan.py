"""The dry run of a search for a circuit: its graph, its passes as far as they are known, its memory."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspatch.cli.say import Voice

if TYPE_CHECKING:
    from crosspatch.circuits import Method
    from crosspatch.circuits.opening import EdgeSweep
    from crosspatch.cli.circuit_find import Hunt


def show_hunt(hunt: "Hunt", folder: Path, voice: Voice) -> None:
    """Show what a search would do, without running the model."""
    sweep = hunt.sweep()
    sweep.method = hunt.how
    graph, passes = sweep.graph, passes_of(hunt.how, sweep)
    held = sweep.bytes_per_pair() * max(map(len, sweep.cuts.chunks))
    edges = None if hunt.how.by == "acdc" else hunt.how.count(graph.size)
    scored = 0 if hunt.scored_on is None else len(hunt.scored_on)
    memory = {"runs": held, "passes": sweep.room}
    voice.document(
        {
            "dry_run": True,
            "model": hunt.model.name,
            "task": hunt.task.name,
            "method": hunt.how.settings(),
            "metric": sweep.metrics[0].name,
            "nodes": graph.nodes,
            "edges": graph.size,
            "size": edges,
            "n": len(hunt.task),
            "scored_on": scored,
            "passes": passes,
            "chunks": len(sweep.cuts.chunks),
            "memory": memory,
            "folder": folder,
        }
    )
    taken = "as many as the threshold keeps" if edges is None else f"{edges:,} are taken"
    lines = [
        ("run", f"{hunt.model.name} · {hunt.task.name} · {hunt.how.title} · {sweep.metrics[0].name}"),
        ("graph", f"{graph.nodes:,} nodes, {graph.size:,} edges; {taken}"),
        ("pairs", f"{len(hunt.task)} to search on, {scored} to score on"),
        ("work", passes["text"]),
        ("memory", f"about {held / 2**30:.2f} GiB for the runs, up to {sweep.room / 2**30:.2f} GiB for passes"),
        ("folder", str(folder)),
    ]
    voice.show("\n".join(f"{name:<9}{text}" for name, text in lines))


def passes_of(how: "Method", sweep: "EdgeSweep") -> dict[str, Any]:
    """Say how many passes over the model a search takes, as far as that is known before it is run."""
    from crosspatch.circuits.measuring import MOST
    from crosspatch.circuits.pruning import Training

    chunks, edges = len(sweep.cuts.chunks), sweep.graph.size
    batches = f" in each of {chunks} batches of pairs" if chunks > 1 else ""
    if how.by == "acdc":
        text = f"one test an edge ({edges:,})" + ("" if how.speculate else ", one pass each")
        return {"tests": edges, "text": f"{text}; how many passes they share is known when they are run"}
    if how.by == "exact":
        least = -(-edges // MOST)
        return {"circuits": edges * chunks, "text": f"{edges:,} circuits{batches}, {least:,} passes or more"}
    if how.by.endswith("masks"):
        steps = how.steps or Training.steps
        return {"forwards": steps, "backwards": steps, "text": f"{steps:,} forwards and backwards of all pairs"}
    if how.by == "routes":
        return {"forwards": chunks, "text": f"1 forward{batches}"}
    if not how.by.startswith("eap"):
        return {"text": f"two forwards and some backwards{batches}"}
    points = {"eap": 1, "eap-clean-corrupted": 2}.get(how.by, how.steps or 5)
    parts = 2 * sweep.graph.layers if how.by == "eap-ig-activations" else 1
    count = points * parts
    return {
        "forwards": (2 + count) * chunks,
        "backwards": count * chunks,
        "text": f"2 runs, then {count:,} forwards and backwards{batches}"
        + (", each from its own layer on" if parts > 1 else ""),
    }
