"""What results on disk cost: cells written in units, read, compacted, queried, and a cache of activations filled.

python bench/store.py [--cells 10000000] [--unit 5000] [--kill] [--json FILE]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds

from crosspatch.core.journal import Journal
from crosspatch.core.tensors import TensorFile
from machine import describe

EXAMPLES = 1000
MIB = 1 << 20
WRITER = "import sys; sys.path.insert(0, sys.argv[1]); import store; store.write(sys.argv[2], *map(int, sys.argv[3:]))"


def unit_of(number: int, size: int) -> dict[str, np.ndarray]:
    """Return the rows of a unit: sites × examples in order, effects that do not compress."""
    cells = np.arange(number * size, (number + 1) * size)
    value = np.random.default_rng(number).standard_normal(size).astype(np.float32)
    return {
        "site": (cells // EXAMPLES).astype(np.int32),
        "example": (cells % EXAMPLES).astype(np.int32),
        "0 logit_diff": value,
    }


def write(folder: str, cells: int, size: int) -> None:
    """Write what is missing."""
    with Journal.open(folder, "bench") as journal:
        done = journal.done()
        for number in range(cells // size):
            if number not in done:
                journal.append(number, unit_of(number, size))


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=10_000_000)
    parser.add_argument("--unit", type=int, default=5000)
    parser.add_argument("--json", type=Path, default=Path("bench/out/store.json"))
    given = parser.parse_args()
    given.device, given.seed = "cpu", 0
    found: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        results(Path(folder) / "journal", given.cells, given.unit, found)
        killed(Path(folder) / "killed", given.cells // 10, given.unit, found)
        activations(Path(folder) / "cache.safetensors", found)
    for name, value in found.items():
        print(f"{name:<52}{value:>14,.2f}")
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(describe(given) | {"figures": found}, indent=1))


@contextmanager
def timed(found: dict[str, float], name: str) -> Iterator[None]:
    """Note processor seconds and wall seconds of a block."""
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    found[f"{name}, processor seconds"] = time.process_time() - cpu
    found[f"{name}, seconds"] = time.perf_counter() - wall


def results(folder: Path, cells: int, size: int, found: dict[str, float]) -> None:
    """Write, read, compact and query cells."""
    rows = [unit_of(number, size) for number in range(cells // size)]
    with timed(found, f"{cells:,} cells written"), Journal.open(folder, "bench") as journal:
        for number in range(cells // size):
            journal.append(number, rows[number])
    found["log, MiB"] = sum(log.stat().st_size for log in folder.glob("*.log")) / MIB
    with timed(found, "all read from the log"):
        whole = journal.read()
    assert len(whole["site"]) == cells
    with timed(found, "which units are done"):
        assert len(journal.done()) == cells // size
    with timed(found, "compacted to Parquet"):
        table = journal.compact()
    assert table is not None
    found["Parquet, MiB"] = table.stat().st_size / MIB
    with timed(found, "all read from Parquet"):
        again = journal.read()
    assert all(np.array_equal(again[name], whole[name]) for name in whole)
    found |= queried(table)


def queried(table: Path) -> dict[str, float]:
    """Ask for one site's mean over examples, and for the mean of every site."""

    def one() -> float:
        part = ds.dataset(table).to_table(columns=["0 logit_diff"], filter=pc.field("site") == 7)
        return pc.mean(part["0 logit_diff"]).as_py()

    def every() -> int:
        whole = ds.dataset(table).to_table(columns=["site", "0 logit_diff"])
        return len(whole.group_by("site").aggregate([("0 logit_diff", "mean")]))

    found: dict[str, float] = {}
    questions: dict[str, Callable[[], object]] = {"query of one site": one, "mean of every site": every}
    for name, ask in questions.items():
        ask()
        with timed(found, name):
            ask()
    return found


def killed(folder: Path, cells: int, size: int, found: dict[str, float]) -> None:
    """Kill the writer at random moments until it gets through; compare with a writer that nobody disturbed."""
    rng, kills = np.random.default_rng(0), 0
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(folder), str(cells), str(size)]
    while True:
        child = subprocess.Popen(command)
        if kills == 5:
            child.wait()
            break
        while not list(folder.glob("*.log")):
            time.sleep(0.01)
        time.sleep(rng.uniform(0.2, 0.6))
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
    rows = Journal.found(folder).read()
    order = np.argsort(rows["unit"], kind="stable")
    wanted = np.concatenate([unit_of(number, size)["0 logit_diff"] for number in range(cells // size)])
    assert np.array_equal(rows["0 logit_diff"][order], wanted)
    found["writers killed before an identical table"] = kills


def activations(path: Path, found: dict[str, float]) -> None:
    """Fill a gibibyte of bfloat16: 512 prompts of 64 tokens, 16 sites of width 1024; read a prompt and a site."""
    widths = {f"resid.post[{layer}]": ("BF16", 1024) for layer in range(16)}
    body = {name: os.urandom(64 * 1024 * 2) for name in widths}
    with timed(found, "1 GiB of activations written"):
        file = TensorFile.open(path, "bench", widths=widths, parts=[64] * 512)
        for prompt in range(512):
            file.fill(prompt, body)
    assert file.done.all()
    with timed(found, "one prompt at all sites read"):
        first, last = file.part(100)
        sum(int(file.array(name, "<u2")[first:last].sum()) for name in widths)
    with timed(found, "one site at one position of all prompts read"):
        file.array("resid.post[5]", "<u2")[7::64].sum()


if __name__ == "__main__":
    main()
