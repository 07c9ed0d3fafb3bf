"""`runs`: the run folders under ./runs, listed, shown again, checked, joined, removed."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from crosspatch.cli import options as given
from crosspatch.cli.circuit_show import show as show_circuit
from crosspatch.cli.circuit_text import run_line
from crosspatch.cli.folder import (
    JOURNAL,
    META,
    PAGE,
    ROOT,
    audit_in,
    is_complete,
    read_summary,
    remove_run,
    run_folders,
    what_in,
)
from crosspatch.cli.say import BAD_INPUT, Voice, error
from crosspatch.cli.shards import merge, verify
from crosspatch.cli.show import effects_text, ending
from crosspatch.cli.study import show_study
from crosspatch.core.errors import CrosspatchError
from crosspatch.core.names import counted
from crosspatch.report.summary import summary_of

LISTED = ("model", "task", "n", "direction", "metric", "complete", "done", "resume", "time", "finding")
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

HELP = """List the runs in ./runs, show, check, join or remove them.

\b
crosspatch runs
crosspatch runs show runs/ioi-gemma-3-270m-7f3a2c
"""


class ListByDefault(TyperGroup):
    """A group of verbs that lists when none of them is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` where no verb stands, then parse."""
        named = bool(args) and (not args[0].startswith("-") or args[0] == "--help")
        return super().parse_args(ctx, args if named else ["list", *args])


runs_app = typer.Typer(cls=ListByDefault, help=HELP, rich_markup_mode=None)


@runs_app.command("list")
def list_runs(*, json: given.Json = False, quiet: given.Quiet = False) -> None:
    """List the runs in ./runs, the latest first."""
    voice = Voice(json, quiet)
    found = [_line(folder) for folder in run_folders()]
    voice.document({"runs": found})
    if not found:
        voice.say(f"no runs in {ROOT}/ here. `crosspatch patch` makes them.")
    for run in found:
        voice.show(run_text(run))


@runs_app.command("show")
def show_run(
    folder: given.RunFolder, *, top: given.Top = 10, json: given.Json = False, quiet: given.Quiet = False
) -> None:
    """Show a saved run as `patch` did."""
    from crosspatch import load

    if what_in(folder) == "circuit":
        show_circuit(folder, top=top, report=False, json=json, quiet=quiet)
        return
    if what_in(folder) == "study":
        show_study(folder, None, Voice(json, quiet))
        return
    voice, effects = Voice(json, quiet), load(folder)
    page = folder / PAGE if (folder / PAGE).is_file() else None
    voice.document(summary_of(effects, top=top, more={"folder": folder, "report": page}))
    voice.show(*effects_text(effects, effects.top(top)))
    voice.show(*ending(effects, folder, page))
    if not is_complete(effects):
        voice.say(f"interrupted: {_how_to_go_on(read_summary(folder))}")


@runs_app.command("remove")
def remove(folder: given.RunFolder, *, yes: Yes = False, json: given.Json = False, quiet: given.Quiet = False) -> None:
    """Remove a run: what crosspatch wrote, and the folder if it is empty then."""
    voice = Voice(json, quiet)
    if not yes and not _confirmed(folder):
        error(f"{folder} is kept. Answer y, or add --yes.", label="not removed")
        raise typer.Exit(BAD_INPUT)
    left = remove_run(folder)
    voice.document({"removed": folder, "left": left})
    voice.show(f"removed {folder}" if not left else f"removed the run; {folder} keeps {', '.join(left)}")


runs_app.command("verify")(verify)
runs_app.command("merge")(merge)


def _confirmed(folder: Path) -> bool:
    try:
        return typer.confirm(f"Remove the run in {folder}?", err=True)
    except typer.Abort:  # no one there to answer
        return False


def _line(folder: Path) -> dict[str, Any]:
    """Describe a run folder; one that cannot be read is listed with the reason."""
    try:
        if audit_in(folder):
            return {"folder": str(folder), "audit": True, **_audit(folder)}
        if not (folder / META).exists():
            return {"folder": str(folder), "complete": False, **_stopped(folder / JOURNAL)}
        if what_in(folder) == "study":
            return {"folder": str(folder), "study": True, **_study(folder)}
        summary = read_summary(folder)
    except CrosspatchError as problem:
        return {"folder": str(folder), "damaged": str(problem)}
    if summary.get("what") == "circuit":
        named = (*LISTED, "title", "edges", "of", "what")
        return {"folder": str(folder), **{name: summary.get(name) for name in named}}
    return {"folder": str(folder), **{name: summary.get(name) for name in LISTED}}


def _audit(folder: Path) -> dict[str, Any]:
    """Describe an audit by its first setting."""
    settings = sorted(path for path in folder.iterdir() if (path / META).exists())
    first = read_summary(settings[0])
    return {"settings": len(settings), **{name: first.get(name) for name in ("model", "task", "n", "time")}}


def _study(folder: Path) -> dict[str, Any]:
    """Describe a study by what it is of, and how many of its findings stand how to the paper."""
    from crosspatch.core.store import read_result

    told = read_result(folder)[1]
    verdicts = [finding["verdict"] for finding in told["findings"]]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    return {"title": told["title"], "model": told["model"], "time": told["provenance"]["time"], "verdicts": counts}


def _stopped(journal: Path) -> dict[str, Any]:
    """Describe a run that was killed: its journal is all there is."""
    from crosspatch.core.journal import ABOUT, Journal

    if not (journal / ABOUT).exists():
        return {"units": None, "done": None, "resume": None}
    found = Journal.found(journal)
    return {"units": found.plan.get("units"), "done": len(found.done()), "resume": found.plan.get("command")}


def _how_to_go_on(run: dict[str, Any]) -> str:
    """Say how much of an interrupted run is done and how it is continued: what it shows so far is no finding."""
    done = f"{run['done']:.0%} done. " if run.get("done") is not None else ""
    return f"{done}Continue with: {run.get('resume') or 'the command that started it, and --resume'}"


def _when(run: dict[str, Any]) -> str:
    return str(run["time"] or "").replace("T", " ")[:16]


def run_text(run: dict[str, Any]) -> str:
    """Write a run as lines: its folder, what it was, what it found."""
    if "damaged" in run:
        return f"{run['folder']}\n  damaged: {run['damaged']}\n"
    if "audit" in run:
        what = f"{run['model']} · {run['task']}, {counted(run['n'], 'pair')} · {run['settings']} settings"
        return f"{run['folder']}  (audit, {_when(run)})\n  {what}\n"
    if "study" in run:
        found = ", ".join(f"{count} {verdict}" for verdict, count in run["verdicts"].items())
        return f"{run['folder']}  (study, {_when(run)})\n  {run['model']} · {run['title']}\n  {found}\n"
    if "units" in run:
        how = f"{run['done']} of {run['units']} units are done. " if run["units"] else ""
        return f"{run['folder']}  (killed)\n  {how}Continue with: {run['resume'] or 'the command that started it'}\n"
    if run.get("what") == "circuit":
        state = "" if run["complete"] else "interrupted, "
        told = run["finding"] if run["complete"] else _how_to_go_on(run)
        return f"{run['folder']}  (circuit, {state}{_when(run)})\n  {run_line(run)}\n  {told}\n"
    state = "complete" if run["complete"] else "interrupted"
    told = run["finding"] if run["complete"] else _how_to_go_on(run)
    what = f"{run['model']} · {run['task']}, {counted(run['n'], 'pair')} · {run['direction']} · {run['metric']}"
    return f"{run['folder']}  ({state}, {_when(run)})\n  {what}\n  {told}\n"
