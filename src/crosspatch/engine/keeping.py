"""Run a sweep's units with its crew and keep them in its journal; tell questions apart by their hash."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist

from crosspatch.core.errors import BadInput
from crosspatch.core.journal import Journal, Notes
from crosspatch.core.provenance import here
from crosspatch.engine import together
from crosspatch.engine.shipping import describe, require_described
from crosspatch.engine.sweep import Sweep
from crosspatch.engine.units import SweepJob
from crosspatch.executors import Crew, Setup, execute, pick
from crosspatch.tasks import Task


def run_kept(sweep: Sweep, task: Task) -> None:
    """Run a sweep's units with its crew; a journal's finished units are taken over, new ones are written to it.

    Ctrl-C ends early and keeps what is done.

    Raises:
        BadInput: the journal is that of another question, or the question cannot be told to other processes.
        MemoryShortage: not even one pair fits into what is free.
        NotFinite, MemoryShortage, DiskFull, WorkerLost: as the executors do; what was finished is kept.
    """
    crew, chosen = sweep.options.crew, pick(sweep.options.crew)
    if sweep.model.together and crew.executor not in ("auto", "inline", "ranks"):
        raise BadInput(
            f"executor {crew.executor!r} for a model that {dist.get_world_size()} processes hold together: they run "
            "it themselves. Leave the executor out."
        )
    if sweep.options.journal is not None:
        _run_in(sweep, task, sweep.options.journal)
    elif sweep.model.together or chosen == "inline" or (chosen == "ranks" and crew.executor == "auto"):
        _run(sweep, Notes({"cuts": sweep.cuts.to_json()}), Path())
    elif chosen == "ranks":
        raise BadInput("ranks work through a folder that all of them reach: give Options(journal=folder), or --out.")
    else:
        with TemporaryDirectory(prefix="crosspatch-") as folder:
            _run_in(sweep, task, Path(folder) / "journal")


def _run_in(sweep: Sweep, task: Task, folder: Path) -> None:
    shipped = pick(sweep.options.crew) not in ("inline", "ranks")
    if shipped:
        require_described(sweep)
    plan = {
        "cuts": sweep.cuts.to_json(),
        "units": len(sweep.units),
        "opener": sweep.opener,
        "command": here()["command"],
        "question": describe(sweep, folder, shipped=shipped),
    }
    with Journal.open(folder, question_hash(sweep, task), plan=plan) as journal:
        _run(sweep, journal, folder)


def _run(sweep: Sweep, journal: Journal | Notes, folder: Path) -> None:
    sweep.adopt(together.of_rank_0(sweep.model, journal.plan["cuts"]))
    sweep.sizes.require_room()
    job, progress = SweepJob(sweep), sweep.options.progress
    # On a GPU this process would need the memory of a second set of runs.
    setup = Setup(sweep.opener, folder, sweep.cuts.threads, _devices(sweep), helps=sweep.model.device.type == "cpu")
    try:
        progress.start(sum(unit.rows for unit in sweep.units), "patches")
        if sweep.model.together:
            together.run_together(job, journal, progress=progress)
            return
        crew = Crew("inline") if isinstance(journal, Notes) else sweep.options.crew
        execute(job, journal, setup, crew=crew, progress=progress)
    except KeyboardInterrupt:
        if sweep.model.together:  # each process holds what all of them have finished
            return
    finally:
        job.close()
        progress.close()
        sweep.packs, sweep.halvings = job.packs, job.halvings
    sweep.take(journal.read())


def _devices(sweep: Sweep) -> tuple[str, ...]:
    """Return the devices that local workers share out: all GPUs for a model on one, else none in particular."""
    import torch

    layout = sweep.model.layout
    if sweep.model.device.type != "cuda" or (layout is not None and layout.places):
        return ()
    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))


def question_hash(sweep: Sweep, task: Task) -> str:
    """Return a short hash of everything that a sweep's numbers depend on, but for their last bits."""
    # By their repr: two groups of one name may hold other sites.
    asked = [repr(site) for site in sweep.sites], sweep.direction, [metric.name for metric in sweep.metrics]
    dtype = str(next(sweep.model.module.parameters()).dtype)
    text = repr((sweep.model.fingerprint, dtype, task_hash(task), asked, sweep.corruption, sweep.ablation, sweep.how()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def task_hash(task: Task) -> str:
    """Return a short hash of the pairs' tokens and answers, and of how they are corrupted."""
    text = repr([(p.clean, p.corrupt, p.right, p.wrong, sorted(p.names.items())) for p in task.pairs])
    text += repr(task.corruption) if task.corruption.of_embeddings else ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
