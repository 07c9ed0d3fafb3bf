"""What executors cost: the same sweep inline, by one local worker and by two, single-threaded units, equal bits.

python bench/executors.py [--shape gpt2-small] [--pairs 8] [--length 15] [--repeat 2] [--json FILE]

Workers are other processes: their start (imports, opening the model) is part of their time and shown apart.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

import crosspatch as xp
from machine import describe
from shapes import SHAPES, Build, make_task, open_shape

WAYS = {"inline": xp.Crew("inline"), "one local worker": xp.Crew("local", 1), "two local workers": xp.Crew("local", 2)}


@dataclass(frozen=True)
class Row:
    """Seconds of one way in each repetition, of which `start` passed before the first unit was committed."""

    way: str
    seconds: list[float]
    start: list[float]
    same: bool


class FirstCommit:
    """Notes when the first finished patches are told."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first = float("nan")

    def start(self, total: int, unit: str) -> None:
        """Begin."""
        del total, unit
        self.began = time.perf_counter()

    def advance(self, done: int, note: str = "") -> None:
        """Note the first."""
        del note
        if done and self.first != self.first:
            self.first = time.perf_counter() - self.began

    def close(self) -> None:
        """End."""


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-small")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--length", type=int, default=15)
    parser.add_argument("--sites", default="resid.pre, attn.out, mlp.out")
    parser.add_argument("--texts", default="second")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("bench/out/executors.json"))
    given = parser.parse_args()
    given.device, given.seed = "cpu", 0
    with TemporaryDirectory() as folder:
        open_shape(Build(given.shape)).module.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
        rows = measure(xp.open_model(folder), given)
    inline = median(rows[0].seconds)
    for row in rows:
        spent, began = median(row.seconds), median(row.start)
        print(
            f"{row.way:<20}{spent:8.1f} s   {inline / spent:5.2f}x of inline   first patches after {began:5.1f} s   "
            f"{'the same bits' if row.same else 'OTHER NUMBERS'}"
        )
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"machine": describe(given), "rows": [asdict(row) for row in rows]}, indent=1))


def measure(model: xp.Model, given: argparse.Namespace) -> list[Row]:
    """Run each way once a repetition, in turns."""
    torch.set_num_threads(1)
    task = make_task(given.texts, pairs=given.pairs, length=given.length, vocab=model.vocab_size)
    found: dict[str, list[tuple[float, float, np.ndarray]]] = {way: [] for way in WAYS}
    for _ in range(given.repeat):
        for way, crew in WAYS.items():
            progress = FirstCommit()
            began = time.perf_counter()
            options = xp.Options(threads=1, crew=crew, progress=progress)
            effects = xp.patch(model, task, sites=given.sites, options=options)
            found[way].append((time.perf_counter() - began, progress.first, effects.raw))
    first = found["inline"][0][2]
    return [
        Row(way, [run[0] for run in runs], [run[1] for run in runs], all(np.array_equal(run[2], first) for run in runs))
        for way, runs in found.items()
    ]


if __name__ == "__main__":
    main()
