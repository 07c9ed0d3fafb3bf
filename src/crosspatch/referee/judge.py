"""`audit`: the referee of a patching result."""

import time
from dataclasses import asdict

from crosspatch.core.provenance import here
from crosspatch.engine import Options
from crosspatch.engine.patching import task_hash
from crosspatch.models.model import Model
from crosspatch.referee.grid import AuditPlan, run_grid
from crosspatch.referee.result import Audit
from crosspatch.tasks import Task


def audit(model: Model, task: Task, *, plan: AuditPlan | None = None, options: Options | None = None) -> Audit:
    """Patch a task in every customary way and say where the ways agree, and which results not to believe.

    The grid is corruption × metric × direction × window (`AuditPlan`). Each corruption and direction is one sweep: all
    metrics are read off the same runs, and windows ride along with single sites. Rules and where they come from:
    docs/practice.md.

    Raises:
        UnknownName, BadInput: a part of the plan that this model or task does not have.
        NotFinite, MemoryShortage: as `patch` does.

    >>> found = audit(model, task)  # doctest: +SKIP
    >>> found.findings, found.agreement()  # doctest: +SKIP
    """
    began, plan, options = time.perf_counter(), plan or AuditPlan(), options or Options()
    run = run_grid(model, task, plan, options)
    settings = {
        "model": model.name,
        "model_hash": model.fingerprint,
        "task": task.name,
        "task_settings": dict(task.settings),
        "data_hash": task_hash(task),
        "n": len(task),
        "plan": {key: str(value) for key, value in asdict(plan).items()},
        "seconds": time.perf_counter() - began,
    }
    return Audit(run, here(**settings))
