"""ACDC in speculative batches against one edge at a time: the same circuit, passes and seconds, in one process.

    python bench/acdc.py --task ioi --pairs 8 --thresholds 1.0 0.3

Both ways make the same tests in the same order; "passes" are calls of the model's blocks that wait for each other.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import crosspatch as xp
from crosspatch import circuits


def measured(model: xp.Model, task: Any, threshold: float, *, metric: str | None) -> dict[str, Any]:
    """Find one circuit both ways."""
    found, row = {}, {"threshold": threshold, "pairs": len(task.pairs)}
    for name, speculate in (("speculative", True), ("one by one", False)):
        began = time.perf_counter()
        how = circuits.Method("acdc", threshold=threshold, speculate=speculate)
        found[name] = circuits.find(model, task, by=how, metric=metric)
        told = found[name].settings["settings"]
        row[name] = {"seconds": time.perf_counter() - began, "passes": told["passes"], "runs": told["circuits_run"]}
    first, second = found.values()
    row |= {
        "edges": first.size,
        "tests": len(first.details["steps"]),
        "same": bool((first.included == second.included).all()),
    }
    return row


def line(row: dict[str, Any]) -> str:
    """Write a row for the terminal."""
    fast, slow = row["speculative"], row["one by one"]
    return (
        f"threshold {row['threshold']:g}, {row['pairs']} pairs: {row['edges']} edges after {row['tests']} tests; "
        f"passes {fast['passes']} against {slow['passes']} ({slow['passes'] / fast['passes']:.1f}x fewer), "
        f"{fast['seconds']:.1f} against {slow['seconds']:.1f} s ({slow['seconds'] / fast['seconds']:.2f}x), "
        f"{'the same circuit' if row['same'] else 'ANOTHER CIRCUIT'}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--metric")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[1.0, 0.3])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    model = xp.open_model(given.model)
    task = getattr(xp.tasks, given.task)(model, n=given.pairs)
    rows = []
    for threshold in given.thresholds:
        rows.append(measured(model, task, threshold, metric=given.metric))
        print(line(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
