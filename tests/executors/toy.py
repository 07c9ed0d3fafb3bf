"""A job that costs time and nothing else: its numbers are known, so that what executors do to it can be checked."""

import time
from pathlib import Path

import numpy as np

UNITS, GROUPS, ROWS = 40, 3, 5
FINGERPRINT = "toy"


def value(unit: int) -> np.ndarray:
    """The numbers of a unit, whoever computes them."""
    return np.random.default_rng(unit).random(ROWS).astype(np.float32)


class Toy:
    """Units that sleep; `spoiled` names a unit that fails, `SLEEP` in the folder how long one takes."""

    def __init__(self, sleep: float = 0.0, spoiled: int | None = None, deadly: int | None = None) -> None:
        self.sleep, self.spoiled, self.deadly, self.ran, self.closed = sleep, spoiled, deadly, [], 0

    @property
    def groups(self):
        return [list(range(first, UNITS, GROUPS)) for first in range(GROUPS)]

    def rows(self, unit):
        return ROWS

    def work(self, unit):
        return 1.0

    def run(self, unit):
        import os
        import signal

        from crosspatch.core.errors import NotFinite

        if unit == self.spoiled:
            raise NotFinite(f"unit {unit} gives no number")
        if unit == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.sleep)
        self.ran.append(unit)
        return {"cell": np.full(ROWS, unit, np.int32), "value": value(unit)}

    def close(self):
        self.closed += 1


def open_toy(folder: Path, device: str | None) -> Toy:
    """Open the job as its folder's name says: `sleep-0.05`, `spoiled-7`, `deadly-7`."""
    what, _, number = Path(folder).name.partition("-")
    (Path(folder) / f"opened-{device}").touch()
    if what == "spoiled":
        return Toy(spoiled=int(number))
    if what == "deadly":
        return Toy(deadly=int(number))
    return Toy(float(number or 0))


def check(rows: dict[str, np.ndarray]) -> None:
    """Every unit is there, once, with its numbers."""
    assert sorted(rows["unit"].tolist()) == sorted(np.repeat(np.arange(UNITS), ROWS).tolist())
    for unit in range(UNITS):
        np.testing.assert_array_equal(rows["value"][rows["unit"] == unit], value(unit))
