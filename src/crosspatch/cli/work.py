"""`work`: take part in a run that another process has begun: its share of the units, committed to the same folder."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.folder import JOURNAL
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput, CorruptFile

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A run folder whose run is not finished.", show_default=False)
]
Share = Annotated[
    str | None,
    typer.Option(
        "--share", metavar="R/W", help="Share R, from 0, of W.  [default: by RANK and WORLD_SIZE or SLURM's; else all]"
    ),
]


def work(
    folder: Folder,
    *,
    share: Share = None,
    device: given.Device = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Run a share of an unfinished run's work.

    Any number of machines that reach the folder may take part, each with its share. The command that began the run
    then finds the work done, with --resume.

    \b
    crosspatch work runs/ioi-gemma-3-270m-7f3a2c --share 1/4
    """
    from crosspatch.core.journal import Journal
    from crosspatch.executors import Setup, run_units, share_of

    voice, place = Voice(json, quiet), read_share(share)
    journal = Journal.found(journal_in(folder))
    setup = Setup(opener_of(journal.plan, folder), journal.folder)
    job = setup.open(device)
    units, done = share_of(job, *place), journal.done()
    left, progress = [unit for unit in units if unit not in done], voice.progress()
    voice.say(f"share {place[0]} of {place[1]}: {len(left)} of {len(units)} units are to be run")
    progress.start(sum(job.rows(unit) for unit in left), "patches")
    try:
        with journal:
            run_units(job, journal, left, done=done, progress=progress)
    finally:
        progress.close()
        job.close()
    voice.document({"folder": folder, "share": list(place), "units": len(units), "run": len(left)})
    voice.show(f"share {place[0]} of {place[1]} is done: {len(left)} units run, {len(units) - len(left)} were there")


def journal_in(folder: Path) -> Path:
    """Return the journal of a run folder, or the folder itself if it is one."""
    return folder / JOURNAL if (folder / JOURNAL).is_dir() else folder


def opener_of(plan: dict[str, Any], folder: Path) -> str:
    """Return what opens a plan's job. Raises CorruptFile for anything that is not crosspatch's own."""
    opener = str(plan.get("opener", ""))
    if not opener.startswith("crosspatch."):
        raise CorruptFile(f"{str(folder)!r} holds no plan that this crosspatch can run: its opener is {opener!r}.")
    return opener


def read_share(text: str | None) -> tuple[int, int]:
    """Read `R/W`, or this process's place among ranks; one share of one without either. Raises BadInput."""
    from crosspatch.executors.ranks import place_of

    if text is None:
        return place_of(os.environ) or (0, 1)
    rank, _, world = text.partition("/")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise BadInput(f"--share {text!r}: write R/W with R from 0 and below W, such as 0/4.")
    return int(rank), int(world)
