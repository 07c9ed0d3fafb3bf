"""`knockout`: cut the attention from one position to another, from each layer on, and see what is lost."""

from typing import Annotated

import typer

from crosspatch.cli import options as given
from crosspatch.cli.crew import crew_of, sweep_options
from crosspatch.cli.folder import default_folder, find_places
from crosspatch.cli.planning import show_plan
from crosspatch.cli.question import Ask, check_words, make_task, open_model, parse_size, pose, read_numbers
from crosspatch.cli.running import Keeping, run_and_keep, tell
from crosspatch.cli.say import Voice

Query = Annotated[
    str, typer.Option("--query", metavar="PLACE", help="The position that attends: an index or a name of the task.")
]
Key = Annotated[
    str, typer.Option("--key", metavar="PLACE", help="The position that it may not attend to.", show_default=False)
]
Heads = Annotated[str | None, typer.Option("--heads", metavar="HEADS", help="Cut these alone, such as 0,3.")]
Width = Annotated[
    int, typer.Option("--width", min=0, metavar="N", help="Cut N layers from each on; 0 cuts to the last.")
]


def knockout(
    model: given.Model,
    *,
    task: given.Task,
    key: Key,
    query: Query = "end",
    heads: Heads = None,
    width: Width = 0,
    n: given.Pairs = None,
    seed: given.Seed = 0,
    settings: given.Settings = None,
    metric: given.Metrics = None,
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
    """Cut attention between two positions, layer by layer.

    \b
    crosspatch knockout gemma-3-270m --task ioi --query end --key S1
    crosspatch knockout gemma-3-270m --task ioi --key S2 --width 5
    """
    voice, chosen = Voice(json, quiet), read_numbers(heads, "--heads")
    room, crew = parse_size(memory), crew_of(executor, workers, cluster)
    metrics = check_words(task, settings or (), sites="attn.pattern", metric=metric)
    opened = open_model(model, voice, device=device, dtype=dtype, layout=layout)
    from crosspatch.engine import cuts

    made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
    groups = cuts(opened, _place(query), _place(key), heads=chosen or None, width=width)
    question = pose(opened, made, Ask(cut_text(query, key, chosen, width=width), "noise", metrics), sites=groups)
    how_run = sweep_options(memory=room, tokens=tokens, threads=threads, crew=crew)
    if dry_run:
        show_plan(question, voice, out or default_folder(question), options=how_run)
        return
    places = find_places(question, out=out, resume=resume, voice=voice)
    outcomes = run_and_keep(question, places, voice, how=Keeping(top, report, require_accuracy, how_run))
    raise typer.Exit(tell(outcomes, places, voice, top=top))


def _place(text: str) -> int | str:
    """Read a position: an index from either end, else a name."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def cut_text(query: str, key: str, heads: tuple[int, ...], *, width: int) -> str:
    """Say what is cut."""
    of = f" of heads {', '.join(map(str, heads))}" if heads else ""
    return f"cuts of attention from {query} to {key}{of}" + (f", {width} layers at a time" if width else "")
