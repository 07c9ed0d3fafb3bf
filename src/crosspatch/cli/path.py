"""`path`: what senders change at chosen receivers alone, along paths without other heads."""

from typing import Annotated

import typer

from crosspatch.cli import options as given
from crosspatch.cli.crew import crew_of, sweep_options
from crosspatch.cli.folder import default_folder, find_places
from crosspatch.cli.planning import show_plan
from crosspatch.cli.question import Ask, check_words, make_task, open_model, parse_size, pose
from crosspatch.cli.running import Keeping, run_and_keep, tell
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput

LOGITS = "logits"

Senders = Annotated[
    str, typer.Option("--senders", metavar="SITES", help='Where paths begin, one at a time, such as "attn.head@end".')
]
To = Annotated[
    str,
    typer.Option("--to", metavar="SITES", help='Where they end, all together, such as "attn.q[9, 6]@end"; or logits.'),
]
ThroughOption = Annotated[
    given.Through, typer.Option("--through", help="What paths pass: MLPs, which are recomputed, or nothing.")
]


def path(
    model: given.Model,
    *,
    task: given.Task,
    senders: Senders = "attn.head",
    to: To = LOGITS,
    through: ThroughOption = given.Through.mlps,
    direction: given.DirectionOfPaths = given.Direction.noise,
    n: given.Pairs = None,
    seed: given.Seed = 0,
    settings: given.Settings = None,
    metric: given.Metric = None,
    top: given.Top = 10,
    out: given.Out = None,
    report: given.Report = True,
    resume: given.Resume = None,
    require_accuracy: given.RequireAccuracy = 0.5,
    memory: given.Memory = None,
    tokens: given.Tokens = None,
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
    """Patch the paths from senders to receivers, other heads held.

    \b
    crosspatch path gemma-3-270m --task ioi --senders attn.head@end
    crosspatch path gemma-3-270m --task ioi --to "attn.q[9, 0]@end"
    """
    voice, room, crew = Voice(json, quiet), parse_size(memory), crew_of(executor, workers, cluster)
    metrics = check_words(task, settings or (), sites=senders, metric=metric)
    _check(task, to, metrics)
    opened = open_model(model, voice, device=device, dtype=dtype, layout=layout)
    made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
    ask = Ask(senders, direction.value, metrics, to=to, through=through.value)
    question = pose(opened, made, ask)
    how_run = sweep_options(memory=room, tokens=tokens, threads=threads, crew=crew)
    if dry_run:
        show_plan(question, voice, out or default_folder(question), options=how_run)
        return
    places = find_places(question, out=out, resume=resume, voice=voice)
    outcomes = run_and_keep(question, places, voice, how=Keeping(top, report, require_accuracy, how_run))
    raise typer.Exit(tell(outcomes, places, voice, top=top))


def _check(task: str, to: str, metrics: tuple[str, ...]) -> None:
    """Find what is wrong with the receivers and metrics before a model is opened. Raises BadInput."""
    if len(metrics) > 1:
        raise BadInput(f"--metric {','.join(metrics)}: paths are measured by one metric: run them once for each.")
    if to != LOGITS:
        check_words(task, (), sites=to)
