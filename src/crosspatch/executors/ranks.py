"""Ranks: processes that a launcher starts alike (torchrun, srun, job arrays), each with a fixed share of the units."""

import os
import time
from collections.abc import Callable, Collection, Mapping

from crosspatch.core.errors import BadInput
from crosspatch.core.journal import ABOUT, Journal
from crosspatch.core.progress import Progress
from crosspatch.executors.job import Job, run_units, share_of

# What launchers call a process's number and the number of processes; the first that is set counts.
NAMES = (("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("SLURM_PROCID", "SLURM_NTASKS"))
LOOK_EVERY = 0.5  # seconds
PATIENCE = 60.0  # seconds without news from other ranks after which the first one does their work


def place_of(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Return this process's rank and the number of ranks, or None where no launcher has set them.

    Raises:
        BadInput: they are no numbers, or the rank is not below the number.
    """
    for rank, world in NAMES:
        if rank in environment and world in environment:
            given = f"{rank}={environment[rank]!r}, {world}={environment[world]!r}"
            try:
                place = int(environment[rank]), int(environment[world])
            except ValueError:
                raise BadInput(f"{given}: both must be whole numbers.") from None
            if not 0 <= place[0] < place[1]:
                raise BadInput(f"{given}: the rank must be 0 or more and below the number of ranks.")
            return place if place[1] > 1 else None
    return None


def run_rank(job: Job, journal: Journal, *, done: Collection[int], progress: Progress) -> None:
    """Run this rank's share and wait for the others'; rank 0 does what ranks that have gone silent left."""
    rank, world = place_of(os.environ) or (0, 1)
    share = share_of(job, rank, world)
    run_units(job, journal, share, done=done, progress=progress)
    told = {*done, *share}
    units = [unit for group in job.groups for unit in group]

    def tell(found: set[int]) -> None:
        progress.advance(sum(job.rows(unit) for unit in found - told))
        told.update(found)

    patience = PATIENCE if rank == 0 else 2 * PATIENCE  # rank 0 begins with what is missing before the others give up
    if not wait_for(journal, len(units), seconds=patience, tell=tell) and rank == 0:
        run_units(job, journal, units, done=journal.done(), progress=progress)


def wait_for(journal: Journal, units: int, *, seconds: float, tell: Callable[[set[int]], None]) -> bool:
    """Wait until the journal holds so many units; False when nothing new has come for `seconds`, or it was removed.

    `tell` hears at each look which there are.
    """
    have, since = -1, time.monotonic()
    while True:
        found = journal.done()
        tell(found)
        if len(found) >= units:
            return True
        if len(found) > have:
            have, since = len(found), time.monotonic()
        elif time.monotonic() - since > seconds or not (journal.folder / ABOUT).exists():
            return False
        time.sleep(LOOK_EVERY)
