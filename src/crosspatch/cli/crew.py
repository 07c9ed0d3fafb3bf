"""From the options about workers to the crew that runs a plan."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crosspatch.cli.options import Executor
from crosspatch.core.errors import BadInput

if TYPE_CHECKING:
    from crosspatch.engine import Options
    from crosspatch.executors import Crew


def crew_of(executor: Executor, workers: int | None, cluster: Sequence[str] | None) -> "Crew":
    """Put a crew together. Raises BadInput for settings that do not fit."""
    from crosspatch.executors import Crew

    if cluster and executor is not Executor.slurm:
        raise BadInput(f"--cluster {cluster[0]}: only the slurm executor has settings. Add --executor slurm.")
    return Crew(executor.value, workers, dict(map(_setting, cluster or ())))


def _setting(text: str) -> tuple[str, str | int]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip() or not value.strip():
        raise BadInput(f"--cluster {text!r}: write KEY=VALUE, such as slurm_partition=gpu or timeout_min=120.")
    return key.strip(), int(value) if value.strip().isdecimal() else value.strip()


def sweep_options(*, memory: int | None, tokens: int | None, threads: int | None, crew: "Crew") -> "Options":
    """Put the options of a sweep together."""
    from crosspatch.engine import Options

    return Options(memory=memory, tokens=tokens, threads=threads, crew=crew)


def helper_rank(crew: "Crew") -> tuple[int, int] | None:
    """Return this process's place among ranks if another one, rank 0, keeps the results."""
    from crosspatch.executors import pick
    from crosspatch.executors.ranks import place_of

    place = place_of(os.environ) if pick(crew) == "ranks" else None
    return place if place and place[0] > 0 else None
