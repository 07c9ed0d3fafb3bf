"""SLURM: one job array through submitit, each task with a fixed share of the units; the tasks outlive this process."""

import sys
import time
from pathlib import Path
from typing import Any

from crosspatch.core.errors import BadInput, MissingExtra, WorkerLost
from crosspatch.core.journal import Journal
from crosspatch.core.progress import Progress
from crosspatch.executors.execute import Crew
from crosspatch.executors.job import Job, Setup
from crosspatch.executors.ranks import LOOK_EVERY

LOGS = "slurm"  # the tasks' own output, in the journal's folder


class Share:
    """One task of the array: the command that runs a share of a journal's plan; preempted, it begins again."""

    def __init__(self, folder: str, rank: int, world: int) -> None:
        self.command = [sys.executable, "-m", "crosspatch", "work", folder, "--share", f"{rank}/{world}", "--quiet"]

    def __call__(self) -> None:
        """Run the share in a process of its own. Raises WorkerLost with what it said if it fails."""
        import subprocess

        done = subprocess.run(self.command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WorkerLost(f"{' '.join(self.command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")

    def checkpoint(self) -> Any:
        """Ask for the same again: what is committed is not run twice."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_slurm(job: Job, journal: Journal, setup: Setup, *, crew: Crew, progress: Progress) -> None:
    """Submit an array of shares and wait for it; Ctrl-C cancels it, a killed driver leaves it running.

    `crew.cluster` goes to submitit as it is (`slurm_partition`, `timeout_min`, `gpus_per_node`, …); `cluster="local"`
    runs the tasks as processes of this machine.

    Raises:
        MissingExtra: submitit is not installed.
        BadInput: SLURM is not there, or a setting that submitit does not know.
        WorkerLost: a task failed; what was finished is kept.
    """
    journal.begin()
    folder, world = Path(journal.folder).resolve(), crew.workers or 2
    executor = _executor(folder / LOGS, crew, setup.threads)
    with executor.batch():  # one array; each task is a Share, since submitit looks for its `checkpoint`
        tasks = [executor.submit(Share(str(folder), rank, world)) for rank in range(world)]
    try:
        _wait(job, journal, tasks, progress=progress)
    except KeyboardInterrupt:
        for task in tasks:
            task.cancel()
        raise


def _executor(logs: Path, crew: Crew, threads: int) -> Any:
    try:
        import submitit
    except ImportError:
        raise MissingExtra("the slurm executor needs submitit: pip install 'crosspatch[slurm]'.") from None
    settings = dict(crew.cluster)
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=settings.pop("cluster", None) or "slurm")
        executor.update_parameters(**{"name": "crosspatch", "cpus_per_task": threads} | settings)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise BadInput(
            f"submitit cannot use these settings: {error}. Give --cluster KEY=VALUE with names that submitit knows, "
            "such as slurm_partition, timeout_min, gpus_per_node; cluster=local runs without SLURM."
        ) from error
    return executor


def _wait(job: Job, journal: Journal, tasks: list[Any], *, progress: Progress) -> None:
    """Tell progress of what the tasks commit, until all have ended."""
    told = journal.done()
    while True:
        ended = all(task.done() for task in tasks)
        new = journal.done() - told
        progress.advance(sum(job.rows(unit) for unit in new))
        told |= new
        if ended:
            break
        time.sleep(LOOK_EVERY)
    units = {unit for group in job.groups for unit in group}
    if units - told:
        failed = next((task.exception() for task in tasks if task.exception() is not None), None)
        raise WorkerLost(f"{len(units - told)} of {len(units)} units are missing. {failed or ''} Resume to run them.")
