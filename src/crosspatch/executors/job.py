"""What executors run: a job of fixed units, how other processes open it, and how its units are dealt out."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

from crosspatch.core.journal import Columns, Journal, Notes
from crosspatch.core.progress import Progress


@runtime_checkable
class Job(Protocol):
    """One question cut into units, numbered from 0. A unit's rows do not depend on who runs it, or on what ran before.

    `groups` lists units that share a costly set-up (two runs of the same pairs): they are best run by one worker.
    """

    @property
    def groups(self) -> Sequence[Sequence[int]]:
        """The units, those of one set-up together."""
        ...

    def rows(self, unit: int) -> int:
        """Return how many rows of results a unit has that progress should count."""
        ...

    def work(self, unit: int) -> float:
        """Return what a unit costs, in any measure that can be compared."""
        ...

    def run(self, unit: int) -> Columns:
        """Run a unit and return its rows. What it sets up may stay open until `close`."""
        ...

    def close(self) -> None:
        """Put back everything that running has changed; may be called twice."""
        ...


@dataclass(frozen=True)
class Setup:
    """How another process opens a job: `opener` names a function "module:function" of (folder, device).

    `threads` are the processor threads that a unit runs with. `devices` are handed to the workers in turn ("cuda:0",
    "cuda:1"); with none, the job chooses. `helps`: the process that starts local workers runs units itself until the
    first of them is ready.
    """

    opener: str
    folder: Path
    threads: int = 1
    devices: tuple[str, ...] = ()
    helps: bool = False

    def open(self, device: str | None = None) -> Job:
        """Open the job in this process."""
        module, _, name = self.opener.partition(":")
        return getattr(import_module(module), name)(self.folder, device)

    def device(self, worker: int) -> str | None:
        """Return the device of a worker, or None."""
        return self.devices[worker % len(self.devices)] if self.devices else None


@dataclass
class Dealer:
    """Deals units to workers, so that a worker stays with its group, and helps with another's only at the end."""

    groups: Sequence[deque[int]]
    at: dict[int, int] = field(default_factory=dict)  # the group that a worker is in

    @classmethod
    def of(cls, job: Job, done: Collection[int]) -> "Dealer":
        """Make a dealer of the units that are not done."""
        return cls([deque(unit for unit in group if unit not in done) for group in job.groups])

    @property
    def left(self) -> int:
        """Units that nobody has."""
        return sum(map(len, self.groups))

    def take(self, worker: int) -> int | None:
        """Return the worker's next unit; None when there is none left."""
        own = self.at.get(worker)
        if own is None or not self.groups[own]:
            own = self._next(worker)
            if own is None:
                return None
            self.at[worker] = own
        return self.groups[own].popleft()

    def _next(self, worker: int) -> int | None:
        """Choose a group: one that nobody is in if there is any, else the one with the most left."""
        live = [number for number, group in enumerate(self.groups) if group]
        others = {group for who, group in self.at.items() if who != worker}
        fresh = [number for number in live if number not in others]
        return max(fresh or live, key=lambda number: len(self.groups[number]), default=None)

    def give_back(self, units: Sequence[int]) -> None:
        """Take back units that a worker did not finish; they are dealt again last, for one of them may be deadly."""
        for unit in units:
            for number, group in enumerate(self._members):
                if unit in group:
                    self.groups[number].append(unit)

    def __post_init__(self) -> None:
        self._members = [frozenset(group) for group in self.groups]


def share_of(job: Job, rank: int, world: int) -> list[int]:
    """Return the units of one of `world` ranks: a run of neighbours, all ranks with about the same work.

    It is cut over all units, finished or not, so that ranks that start at different times agree.
    """
    units = [unit for group in job.groups for unit in group]
    total = sum(job.work(unit) for unit in units)
    share, before = [], 0.0
    for unit in units:
        middle = before + job.work(unit) / 2
        if total and min(int(middle / total * world), world - 1) == rank:
            share.append(unit)
        before += job.work(unit)
    return share


def run_units(
    job: Job, journal: Journal | Notes, units: Sequence[int], *, done: Collection[int], progress: Progress
) -> None:
    """Run units that are not done, one after the other in this process, and commit each."""
    for unit in units:
        if unit not in done:
            journal.append(unit, job.run(unit))
            if rows := job.rows(unit):
                progress.advance(rows)
