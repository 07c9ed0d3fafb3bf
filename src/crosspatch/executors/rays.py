"""Ray: one actor a worker, placed by GPU where the job has one; Ray restarts actors and repeats lost units."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from crosspatch.core.errors import CrosspatchError, MissingExtra, WorkerLost
from crosspatch.core.journal import Journal
from crosspatch.core.progress import Progress
from crosspatch.executors.job import Dealer, Job, Setup

IN_FLIGHT = 2  # units an actor has at once
RESTARTS = 20  # of one actor, and repeats of one unit


class RayWorker:
    """An actor: its job and its own log."""

    def __init__(self, setup: Setup, fingerprint: str) -> None:
        gpus = _gpus()
        if gpus:
            # Where a scheduler has set the variable before, Ray leaves it, and all actors would land on the first GPU.
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self.journal = Journal.open(setup.folder, fingerprint)
        self.job = setup.open("cuda" if gpus else None)

    def run(self, unit: int) -> int:
        """Run a unit and commit it; return its number."""
        self.journal.append(unit, self.job.run(unit))
        return unit


def run_ray(job: Job, journal: Journal, setup: Setup, *, workers: int | None, progress: Progress) -> None:
    """Run the units that are not done on a Ray cluster: the one that is connected or named, else one of this machine.

    Raises:
        MissingExtra: Ray is not installed.
        WorkerLost: an actor could not be kept alive; what was finished is kept.
    """
    ray = _ray()
    journal.begin()
    dealer = Dealer.of(job, journal.done())
    with _connected(ray), _actors(ray, setup, journal, _count(ray, setup, workers, dealer.left)) as actors:
        running: dict[Any, tuple[int, int]] = {}
        while dealer.left or running:
            for number, actor in enumerate(actors):
                while sum(who == number for who, _ in running.values()) < IN_FLIGHT:
                    unit = dealer.take(number)
                    if unit is None:
                        break
                    running[actor.run.remote(unit)] = number, unit
            finished, _ = ray.wait(list(running), num_returns=1)
            for reference in finished:
                _, unit = running.pop(reference)
                _get(ray, reference)
                progress.advance(job.rows(unit))


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtra("the ray executor needs Ray: pip install 'crosspatch[ray]'.") from None
    return ray


def _get(ray: Any, reference: Any) -> int:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(getattr(error, "cause", None), CrosspatchError) else None
        raise (cause or error) from None
    except ray.exceptions.RayActorError as error:
        raise WorkerLost(
            f"a Ray worker could not be kept alive ({error}). What was finished is kept: use fewer --workers or less "
            "--memory, and resume."
        ) from error


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Use the cluster that this process is connected to, or that RAY_ADDRESS names, else one for this block alone."""
    if ray.is_initialized():
        yield
        return
    own = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    # Ray tells of dead workers on standard output, where results go.
    with redirect_stdout(sys.stderr):
        ray.init(log_to_driver=False, logging_level="ERROR", **own)
        try:
            yield
        finally:
            ray.shutdown()


def _count(ray: Any, setup: Setup, workers: int | None, units: int) -> int:
    """Choose how many actors: as asked, or as the cluster has GPUs, else as its processors hold."""
    there = ray.cluster_resources()
    fit = int(there.get("GPU", 0)) if setup.devices else int(there.get("CPU", 1) // max(setup.threads, 1))
    return max(1, min(workers or fit, units))


@contextmanager
def _actors(ray: Any, setup: Setup, journal: Journal, count: int) -> Iterator[list[Any]]:
    place = {"num_gpus": 1, "num_cpus": 1} if setup.devices else {"num_cpus": setup.threads}
    remote = ray.remote(**place, max_restarts=RESTARTS, max_task_retries=RESTARTS)(RayWorker)
    # Small arguments travel with the actor, so that it can be made again after the driver's node has gone.
    actors = [remote.remote(setup, journal.fingerprint) for _ in range(count)]
    try:
        yield actors
    finally:
        for actor in actors:
            with suppress(Exception):
                ray.kill(actor)


def _gpus() -> list[str]:
    import ray

    return [str(number) for number in ray.get_gpu_ids()]
