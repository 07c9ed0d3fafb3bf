"""Choose an executor and run a job's unfinished units with it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.core.journal import Journal, Notes
from crosspatch.core.progress import Progress
from crosspatch.executors.job import Job, Setup, run_units

EXECUTORS = ("auto", "inline", "local", "ray", "ranks", "slurm")


@dataclass(frozen=True)
class Crew:
    """Who runs the units: an executor, how many workers (None: it chooses), and what a cluster must be told."""

    executor: str = "auto"
    workers: int | None = None
    cluster: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UnknownName.of("executor", self.executor, EXECUTORS)
        if self.workers is not None and self.workers < 1:
            raise BadInput(f"{self.workers} workers: give 1 or more, or None to let crosspatch choose.")
        if self.workers is not None and self.workers > 1 and self.executor == "inline":
            raise BadInput(
                f"{self.workers} workers with the inline executor, which is this process alone: choose executor "
                "'local', 'ray' or 'slurm', or leave workers out."
            )


def pick(crew: Crew) -> str:
    """Name the executor that "auto" means here: ranks under a launcher, else this process.

    A cluster or further processes are only used when they are asked for, by name or by a number of workers.
    """
    from crosspatch.executors.ranks import place_of

    if crew.executor != "auto":
        return crew.executor
    if place_of(os.environ) is not None:
        return "ranks"
    if os.environ.get("RAY_ADDRESS"):
        return "ray"
    return "local" if crew.workers is not None and crew.workers > 1 else "inline"


def execute(job: Job, journal: Journal | Notes, setup: Setup, *, crew: Crew, progress: Progress) -> None:
    """Run all units that the journal does not hold; on return it holds them all (ranks: all but other ranks' own).

    Raises:
        MissingExtra: the executor needs a package that is not installed.
        WorkerLost: workers were killed again and again.
        DiskFull: there is no room for results. In all cases what was finished is kept.
    """
    chosen, done = pick(crew), journal.done()
    if done:
        progress.advance(sum(job.rows(unit) for unit in done))
    try:
        if chosen == "inline":
            run_units(job, journal, [unit for group in job.groups for unit in group], done=done, progress=progress)
        elif isinstance(journal, Notes):
            raise RuntimeError("only this process can write to notes in memory")
        elif chosen == "local":
            from crosspatch.executors.local import run_local

            workers = crew.workers or max(len(setup.devices), 1)
            run_local(job, journal, setup, workers=workers, progress=progress)
        elif chosen == "ray":
            from crosspatch.executors.rays import run_ray

            run_ray(job, journal, setup, workers=crew.workers, progress=progress)
        elif chosen == "ranks":
            from crosspatch.executors.ranks import run_rank

            run_rank(job, journal, done=done, progress=progress)
        else:
            from crosspatch.executors.slurm import run_slurm

            run_slurm(job, journal, setup, crew=crew, progress=progress)
    finally:
        job.close()
