"""Local processes: one spawned worker a device, each in an executor of its own, which is rebuilt when it is killed."""

import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from crosspatch.core.errors import WorkerLost
from crosspatch.core.journal import Journal
from crosspatch.core.progress import Progress
from crosspatch.executors.job import Dealer, Job, Setup, run_units

IN_FLIGHT = 2  # units a worker has at once, so that it never waits for the next
HERE = -1  # the driver among the workers
OPENING = -1  # in the place of a unit: the job is being opened
DEATHS_AT_MOST = 4  # of workers at one unit, or of one worker in a row while it opens the job
LESS = "Most often memory has run out: use fewer --workers, less --memory or fewer --tokens. What was finished is kept."

_here: dict[str, Any] = {}  # in a worker: its job and journal


def run_local(job: Job, journal: Journal, setup: Setup, *, workers: int, progress: Progress) -> None:
    """Run the units that are not done in `workers` processes of this machine.

    A worker that dies is started anew; one that dies again and again while it opens the job is given up, as long as
    there are others.

    Raises:
        WorkerLost: a unit killed its worker again and again, or no worker is left; what was finished is kept.
    """
    dealer = Dealer.of(job, journal.done())
    deadly: Counter[int] = Counter()
    with _bench(setup, journal, min(workers, max(dealer.left, 1))) as bench:
        while dealer.left or any(worker.running for worker in bench):
            for worker in bench:
                worker.feed(dealer)
            early = setup.helps and not any(worker.opened for worker in bench)
            helped = early and _help(job, journal, dealer, progress)
            futures = [future for worker in bench for future in worker.running]
            finished, _ = wait(futures, timeout=0 if helped else None, return_when=FIRST_COMPLETED)
            for worker in list(bench):
                for unit in worker.collect(finished):
                    progress.advance(job.rows(unit))
                if worker.dead:
                    for unit in worker.lay_down(journal.done()):
                        progress.advance(job.rows(unit))
                    dealer.give_back(worker.lost)
                    _replace(worker, bench, deadly)


def _help(job: Job, journal: Journal, dealer: Dealer, progress: Progress) -> bool:
    """Run one unit here, while workers are still opening the job; False if none is left."""
    unit = dealer.take(HERE)
    if unit is not None:
        run_units(job, journal, [unit], done=(), progress=progress)
    return unit is not None


def _replace(worker: "_Worker", bench: "list[_Worker]", deadly: Counter[int]) -> None:
    """Start a dead worker anew, or give it up. Raises WorkerLost as `run_local` does."""
    if not worker.opened:
        worker.failures += 1
        if worker.failures >= DEATHS_AT_MOST:
            bench.remove(worker)
            if not bench:
                raise WorkerLost(f"every worker was killed {worker.failures} times while it opened the model. {LESS}")
            return
    elif worker.lost:
        deadly[worker.lost[0]] += 1  # the one that it was at
        if deadly[worker.lost[0]] >= DEATHS_AT_MOST:
            raise WorkerLost(f"unit {worker.lost[0]} killed its worker {DEATHS_AT_MOST} times. {LESS}")
    worker.start()


@dataclass
class _Worker:
    """One process and the units that it has; `lost` are those it had when it died, in their order."""

    number: int
    setup: Setup
    fingerprint: str
    running: dict[Future, int] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    failures: int = 0
    opened: bool = False
    dead: bool = False

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start a process and let it open the job."""
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        self.pool = ProcessPoolExecutor(1, mp_context=context)
        self.dead, self.opened, self.lost = False, False, []
        self.running[self.pool.submit(_open, self.setup, self.fingerprint, self.setup.device(self.number))] = OPENING

    def feed(self, dealer: Dealer) -> None:
        """Give the worker units until it has enough."""
        while len(self.running) < IN_FLIGHT and not self.dead:
            unit = dealer.take(self.number)
            if unit is None:
                return
            try:
                self.running[self.pool.submit(_run, unit)] = unit
            except BrokenProcessPool:  # it died a moment ago
                self.dead = True
                self.lost.append(unit)

    def collect(self, finished: set[Future]) -> Iterator[int]:
        """Yield the units that this worker has finished; note if it has died. Raises what a unit raised."""
        for future, unit in list(self.running.items()):
            if future not in finished:
                continue
            try:
                future.result()
            except BrokenProcessPool:
                self.dead = True
                continue
            del self.running[future]
            self.opened, self.failures = True, 0
            if unit != OPENING:
                yield unit

    def lay_down(self, done: Collection[int]) -> list[int]:
        """Clear away after a death: what is `lost` is run again; return what was committed a moment before."""
        had = [*(unit for unit in self.running.values() if unit != OPENING), *self.lost]
        self.lost = [unit for unit in had if unit not in done]
        self.running.clear()
        self.pool.shutdown(wait=False, cancel_futures=True)
        return [unit for unit in had if unit in done]


@contextmanager
def _bench(setup: Setup, journal: Journal, workers: int) -> Iterator[list[_Worker]]:
    """Start workers; however the block ends, they end too."""
    journal.begin()
    bench = [_Worker(number, setup, journal.fingerprint) for number in range(workers)]
    try:
        yield bench
    finally:
        for worker in bench:
            processes = list((worker.pool._processes or {}).values())
            worker.pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()  # a unit that is cut off is run again; it is not committed by halves


def _open(setup: Setup, fingerprint: str, device: str | None) -> None:
    """Open the job and this worker's own log."""
    threading.Thread(target=_end_with_driver, daemon=True).start()
    _here["journal"] = Journal.open(setup.folder, fingerprint)
    _here["job"] = setup.open(device)


def _run(unit: int) -> None:
    _here["journal"].append(unit, _here["job"].run(unit))


def _end_with_driver() -> None:
    """Wait for the driver's end and go with it: nobody would collect what this worker does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
