"""`audit`: patch in every customary way, and tell where the ways agree and which results not to believe."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.crew import crew_of, helper_rank, sweep_options
from crosspatch.cli.folder import JOURNAL, PAGE, ROOT, audit_in, writable
from crosspatch.cli.question import check_words, make_task, open_model, question_key, read_list, read_numbers
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput
from crosspatch.core.names import plain_name
from crosspatch.core.progress import Progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from crosspatch.models.model import Model
    from crosspatch.referee import Audit, AuditPlan
    from crosspatch.tasks import Task

AuditSites = Annotated[str, typer.Option("--sites", metavar="SITES", help="What to patch.")]
Draws = Annotated[int, typer.Option("--draws", min=1, metavar="N", help="Noise draws a pair.")]
Widths = Annotated[
    str, typer.Option("--windows", metavar="WIDTHS", help='Widths of joint windows of layers, as 3,5; "" for none.')
]
Corruptions = Annotated[
    str | None,
    typer.Option(
        "--corruptions",
        metavar="NAMES",
        help="How corrupt runs are made, as replace,gaussian; the first is the main one.  [default: all that fit, 4 at "
        "most]",
    ),
]
ReadMetrics = Annotated[str | None, typer.Option("--metrics", metavar="NAMES", help="Read off each run, as a,b.")]
AuditOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder.  [default: runs/audit-TASK-MODEL-HASH]", show_default=False),
]
Page = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="PAGE", help="The page.  [default: report.html in the folder]", show_default=False
    ),
]
METRICS = "logit_diff,prob,logprob,kl,accuracy"


def audit(
    model: given.Model,
    *,
    task: given.Task,
    sites: AuditSites = "attn.head, mlp.out",
    draws: Draws = 3,
    windows: Widths = "3,5",
    corruptions: Corruptions = None,
    metrics: ReadMetrics = METRICS,
    n: given.Pairs = None,
    seed: given.Seed = 0,
    settings: given.Settings = None,
    out: AuditOut = None,
    page: Page = None,
    executor: given.ExecutorOption = given.Executor.auto,
    workers: given.Workers = None,
    threads: given.Threads = None,
    cluster: given.Cluster = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    layout: given.LayoutOption = None,
    dry_run: given.DryRun = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Patch in every customary way; tell where the ways agree.

    Corruptions × directions × metrics × windows, with rules that name known pitfalls and their sources.

    \b
    crosspatch audit gemma-3-270m --task ioi
    crosspatch audit gemma-3-270m --task ioi --corruptions replace,gaussian --windows 5
    """
    voice, crew = Voice(json, quiet), crew_of(executor, workers, cluster)
    asked = check_words(task, settings or (), sites=sites, metric=metrics)
    widths = read_numbers(windows or None, "--windows")
    ways = read_list(corruptions, "--corruptions")
    from crosspatch.referee import AuditPlan
    from crosspatch.referee import audit as run_audit

    opened = open_model(model, voice, device=device, dtype=dtype, layout=layout)
    made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
    plan = AuditPlan(sites, corruptions=ways, metrics=asked, windows=widths, draws=draws, seed=seed)
    folder = out or default_folder(opened, made, plan)
    if dry_run:
        show_cost(opened, made, plan, voice)
        return
    _refuse_loss(folder)
    with writable(folder):
        listener = WholeSweeps(voice.progress())
        if (folder / JOURNAL).is_dir():
            voice.say(f"{folder} holds finished work of an audit that was stopped: the rest is run now.")
        try:
            how_run = sweep_options(memory=None, tokens=None, threads=threads, crew=crew)
            how_run = replace(how_run, progress=listener, journal=folder / JOURNAL)
            found = run_audit(opened, made, plan=plan, options=how_run)
            listener.check()
        except KeyboardInterrupt:
            voice.say(f"what was finished is kept in {folder}: the same command goes on from there.")
            raise
        if helper_rank(crew):
            voice.say("this rank's share is done; rank 0 keeps the results.")
            return
        found.save(folder)
        rmtree(folder / JOURNAL, ignore_errors=True)
        written = found.report(page or folder / PAGE)
    voice.document(document(found) | {"folder": folder, "report": written})
    voice.show(*lines(found), found.verdict(), f"report → {written}")


def show_cost(model: "Model", task: "Task", plan: "AuditPlan", voice: Voice) -> None:
    """Show what an audit would run, and about how long it would take on this machine."""
    from dataclasses import asdict

    from crosspatch.cli.estimate import Cost, clock, matrix_speed
    from crosspatch.engine import Options
    from crosspatch.referee import plan_grid

    found = plan_grid(model, task, plan, Options())
    speed = matrix_speed(model)
    cost = Cost(speed, found.flops / speed)
    voice.document({"dry_run": True, **asdict(found), "estimate": asdict(cost) | {"usual": cost.usual}})
    voice.show(
        f"{found.settings} settings off {found.sweeps} sweeps, the work of {found.forwards:,.0f} forwards",
        f"about {clock(cost.usual)} here ({clock(cost.least)} at the speed of bare matrix products)",
        *(f"left out: {text}" for text in found.left_out),
    )


class WholeSweeps:
    """Passes progress on; a sweep that Ctrl-C cut short ends the audit, for halves of sweeps cannot be compared."""

    def __init__(self, listener: Progress) -> None:
        self._listener = listener
        self._left = 0

    def start(self, total: int, unit: str) -> None:
        """Begin a sweep, if the last one came to its end. Raises KeyboardInterrupt if not."""
        self.check()
        self._left = total
        self._listener.start(total, unit)

    def advance(self, done: int, note: str = "") -> None:
        """Report `done` further units."""
        self._left -= done
        self._listener.advance(done, note)

    def close(self) -> None:
        """End the sweep."""
        self._listener.close()

    def check(self) -> None:
        """Raise KeyboardInterrupt if the last sweep was cut short."""
        if self._left > 0:
            raise KeyboardInterrupt


def default_folder(model: "Model", task: "Task", plan: "AuditPlan") -> Path:
    """Name the folder of an audit."""
    from crosspatch.engine.patching import task_hash

    key = question_key(model.fingerprint, task_hash(task), plan)
    return ROOT / f"audit-{plain_name(task.name)}-{plain_name(model.name)}-{key}"


def _refuse_loss(folder: Path) -> None:
    """Refuse a folder that holds something else than an audit. Raises BadInput."""
    others = [path for path in folder.iterdir() if path.name != JOURNAL] if folder.is_dir() else []
    if others and not audit_in(folder):
        raise BadInput(f"{folder} holds other files and no audit: give another --out.")


def lines(found: "Audit") -> "Iterator[RenderableType]":
    """Yield a title, the agreement of the settings, what the rules found, what was left out and the cost."""
    from rich.text import Text

    from crosspatch.draw import rich_table
    from crosspatch.referee.result import settings_words

    effects = found.effects[found.main]
    yield Text(f"{effects.model} · {effects.task} · {effects.n} pairs: audit of {len(found.settings)} settings", "bold")
    yield settings_words(found.settings)
    yield rich_table(("site", "found by", "sign", "effect"), found.table())
    yield f"Effects are those of the main setting: {found.main}."
    yield ""
    yield from (f"! [{each.rule}] {each.text} ({each.source})" for each in found.findings)
    yield from (f"left out: {text}" for text in found.run.left_out)
    yield ""
    yield f"{found.cost()}."


def document(found: "Audit") -> dict[str, Any]:
    """Describe an audit as JSON."""
    from dataclasses import asdict

    effects = found.effects[found.main]
    agreement = [asdict(row) | {"share": row.share, "sign": row.sign} for row in found.agreement()]
    return {
        "model": effects.model,
        "task": effects.task,
        "n": effects.n,
        "verdict": found.verdict(),
        "settings": [asdict(setting) for setting in found.settings],
        "main": asdict(found.main),
        "telling": [str(setting) for setting in found.telling],
        "correlations": found.correlations.tolist(),
        "agreement": agreement,
        "findings": [asdict(finding) for finding in found.findings],
        "left_out": list(found.run.left_out),
        "cost": {"text": found.cost(), "forwards": found.run.forwards, "single": found.run.single},
    }
