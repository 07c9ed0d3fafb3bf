"""Compare methods of finding circuits on Gemma-3-270M; write the tables of docs/circuits.md: `python docs/circuits.py`.

Each measurement is kept under runs/circuits as it comes, so that the script goes on where it was stopped.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

import crosspatch as xp
from crosspatch import circuits

SAVED = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/circuits")
ONLY = sys.argv[2].split(",") if len(sys.argv) > 2 else ()  # tasks to measure now; all, if none are named
PAGE = Path(__file__).with_name("circuits.md")
TASKS = {
    "ioi": {"template": 0, "order": "ABBA"},
    "greater_than": {},
    "capitals": {"template": 0},
    "sva": {},
    "docstring": {},
}
FOUND_ON, SCORED_ON = 4, 12  # pairs: those that circuits are found on, and those held out
# ACDC's thresholds are shares of the gap in the metric, since tasks differ in its unit.
METHODS = {
    "eap": {},
    "eap-ig": {"steps": 5},
    "eap-clean-corrupted": {},
    "eap-ig-activations": {"steps": 5},
    "nodes": {},
    "nodes by RelP": {"by": "nodes", "estimator": "relp"},
    "hisp": {},
    "routes": {},
    "random": {},
    "exact": {},
    "acdc 1 %": {"by": "acdc", "share": 0.01},
    "acdc 1 %, absolute": {"by": "acdc", "share": 0.01, "absolute": True},
    "edge-masks": {"steps": 150, "rate": 0.3, "size": 0.05},
    "node-masks": {"steps": 150, "rate": 0.3},
}
SIZES = (0.005, 0.02, 0.05, 0.2)  # shares of edges in the table


def run(model, name: str, settings: dict, method: str, how: dict) -> dict:
    """Find a circuit on some pairs and score it on others; areas, faithfulness by size, and the time to find it."""
    task = getattr(xp.tasks, name)(model, n=FOUND_ON + SCORED_ON, seed=0, **settings)
    here, held_out = circuits.split(task, FOUND_ON / (FOUND_ON + SCORED_ON))
    began = time.perf_counter()
    circuit = found(model, here, method, dict(how))
    seconds = time.perf_counter() - began
    card = circuits.score(circuit, model, held_out, metric=here.metric, random=0, knockouts=0, minimality=False)
    f = card.faithfulness
    row = {
        "task": name,
        "method": method,
        "seconds": seconds,
        "size": circuit.size,
        "faithfulness": [f.value, f.low, f.high],
    }
    row |= {"kl": card.kl_quantiles, "passes": circuit.settings.get("settings", {}).get("passes")}
    for area, value in (("cpr", card.cpr), ("cmd", card.cmd)):
        row[area] = [value.value, value.low, value.high]
    curve = card.curves["absolute"]
    row["curve"] = {f"{k:g}": float(v) for k, v in zip(curve.fractions, curve.faithfulness, strict=True)}
    return row


def found(model, task, method: str, how: dict):
    """Find a circuit by a method of the table."""
    if method == "random":
        graph = circuits.graph_of(model)
        scores = np.random.default_rng(0).random(graph.shape).astype(np.float32)
        included = scores > np.quantile(scores[graph.full()], 0.95)
        return circuits.Circuit(graph, included & graph.full(), np.where(graph.full(), scores, np.nan))
    share = how.pop("share", None)
    if share is not None:
        runs = circuits.measure_circuits([whole(model)], model, task)
        how["threshold"] = share * abs(float((runs.full[0] - runs.empty[0]).mean()))
    return circuits.find(model, task, by=how.pop("by", method), **how)


def whole(model) -> circuits.Circuit:
    """Return all edges."""
    graph = circuits.graph_of(model)
    return circuits.Circuit(graph, graph.full())


def main() -> None:
    """Measure what is missing, the cheap methods first, and write the page's tables."""
    SAVED.mkdir(parents=True, exist_ok=True)
    model = xp.open_model("gemma-3-270m")
    for method, how in METHODS.items():
        for name, settings in TASKS.items():
            kept = SAVED / f"{name}-{method.replace(' ', '_')}.json"
            if not kept.exists() and (not ONLY or name in ONLY):
                row = run(model, name, settings, method, how)
                kept.write_text(json.dumps(row), encoding="utf-8")
                print(
                    f"{name:13} {method:20} {row['seconds']:7.1f} s  CPR {row['cpr'][0]:.2f}  CMD {row['cmd'][0]:.3f}",
                    flush=True,
                )
    write()


def write() -> None:
    """Put the tables into the page."""
    rows = {
        (row["task"], row["method"]): row for row in (json.loads(p.read_text()) for p in sorted(SAVED.glob("*.json")))
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in (("areas", areas(rows)), ("sizes", sizes(rows)), ("times", times(rows))):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        text = text.split(begin)[0] + begin + "\n".join(lines) + "\n" + end + text.split(end)[1]
    PAGE.write_text(text, encoding="utf-8")


def done(rows: dict) -> list[str]:
    """List the methods that were measured."""
    return [method for method in METHODS if any((task, method) in rows for task in TASKS)]


def head(first: str) -> list[str]:
    """Return the first two lines of a table with a column a task."""
    return [f"| {first} | " + " | ".join(TASKS) + " |", "|---" * (len(TASKS) + 1) + "|"]


def line(rows: dict, method: str, cell) -> str:
    """Return a method's line."""
    cells = [cell(rows[task, method]) if (task, method) in rows else "not measured" for task in TASKS]
    return f"| {method} | " + " | ".join(cells) + " |"


def areas(rows: dict) -> list[str]:
    """CPR and CMD with their intervals."""

    def cell(row: dict) -> str:
        (cpr, *a), (cmd, *b) = row["cpr"], row["cmd"]
        return f"{cpr:.2f} [{a[0]:.2f}, {a[1]:.2f}] / {cmd:.3f} [{b[0]:.3f}, {b[1]:.3f}]"

    return head("CPR / CMD") + [line(rows, method, cell) for method in done(rows)]


def sizes(rows: dict) -> list[str]:
    """Faithfulness of circuits of some sizes."""

    def cell(row: dict) -> str:
        return " ".join(f"{row['curve'][f'{k:g}']:.2f}" for k in SIZES)

    return head("faithfulness at " + ", ".join(f"{k:.1%}" for k in SIZES)) + [line(rows, m, cell) for m in done(rows)]


def times(rows: dict) -> list[str]:
    """Seconds to find, edges of what a method takes by itself, and how faithful these are."""

    def cell(row: dict) -> str:
        f, low, high = row["faithfulness"]
        return f"{row['seconds']:.1f} s, {row['size']} edges: {f:.2f} [{low:.2f}, {high:.2f}]"

    return head("time, size, faithfulness") + [line(rows, method, cell) for method in done(rows)]


if __name__ == "__main__":
    main()
