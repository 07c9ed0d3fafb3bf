"""Run a sweep on processes that hold the model together: in step, each a pack of its own where the model allows that.

Processes that hold parts of each matrix (tensor parallelism) must run the same rows. Those that fetch each block's
weights from each other (FSDP2) need only call the same blocks in the same order, so every round gives each of them a
pack of its own, and blocks where a pack has no row yet are called on an idle token.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist

from crosspatch.core.journal import Columns, Journal, Notes, by_unit
from crosspatch.core.progress import Progress
from crosspatch.engine.units import SweepJob
from crosspatch.models.model import Model
from crosspatch.models.weights import is_fsdp


def run_together(job: SweepJob, journal: Journal | Notes, *, progress: Progress) -> None:
    """Run all units that the journal of rank 0 does not hold; all ranks call this, and all hold all rows afterwards.

    A unit is committed by the rank that ran it, else by rank 0. Ranks may share the journal's folder or have their own.
    """
    sweep = job.sweep
    found: dict[int, Columns] = of_rank_0(sweep.model, dict(by_unit(journal.read())))
    if found:
        progress.advance(sum(job.rows(unit) for unit in found))
    try:
        _run_rounds(job, journal, found, progress)
    finally:
        sweep.take(_joined(found))


def _run_rounds(job: SweepJob, journal: Journal | Notes, found: dict[int, Columns], progress: Progress) -> None:
    """Run what is not found yet, and add it."""
    rank = dist.get_rank()
    for units in _rounds(job, [unit for group in job.groups for unit in group if unit not in found]):
        alone = len(units) == 1 or not _apart(job)
        mine = units[0] if alone else units[rank] if rank < len(units) else None
        rows = job.run(units[0]) if alone else job.run_in_step(mine, units)
        if mine is not None and (not alone or rank == 0):
            journal.append(mine, rows)
        found |= {units[0]: rows} if alone else _gathered(mine, rows)
        if rows_run := sum(job.rows(unit) for unit in units):
            progress.advance(rows_run)


def _apart(job: SweepJob) -> bool:
    """Whether ranks may run packs of their own: weights are fetched block by block, and by nothing else."""
    model = job.sweep.model
    return is_fsdp(model.module) and model.anatomy.readout.direct and job.sweep.steps


def _rounds(job: SweepJob, left: Sequence[int]) -> Iterator[list[int]]:
    """Yield the units that are run at once: packs of one chunk, one a rank, where ranks may run their own."""
    size, waiting = dist.get_world_size(), list(left)
    while waiting:
        chunk, pack, *_ = job.sweep.units[waiting[0]]
        together = 1
        if pack is not None and _apart(job):
            while together < min(size, len(waiting)) and job.sweep.units[waiting[together]].chunk == chunk:
                together += 1
        yield waiting[:together]
        del waiting[:together]


def of_rank_0(model: Model, value: Any) -> Any:
    """Return what rank 0 gives, if several processes hold the model."""
    if not model.together:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def _gathered(unit: int | None, rows: Columns) -> dict[int, Columns]:
    """Return what all ranks ran in a round."""
    held: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(held, (unit, rows))
    return {number: each for number, each in held if number is not None}


def _joined(found: dict[int, Columns]) -> Columns:
    notes = Notes({})
    for unit, rows in found.items():
        notes.append(unit, rows)
    return {name: np.asarray(values) for name, values in notes.read().items()}
