"""`attribute`: split a logit into what parts of the model write, or estimate patching from gradients."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.crew import crew_of, sweep_options
from crosspatch.cli.folder import default_folder, find_places
from crosspatch.cli.planning import show_plan
from crosspatch.cli.question import Ask, Guess, check_words, make_task, open_model, parse_size, pose
from crosspatch.cli.running import Keeping, run_and_keep, tell
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput

if TYPE_CHECKING:
    from crosspatch.attribution import Decomposition


class Method(StrEnum):
    """How a behaviour is attributed: exact parts of a logit, or estimates of patching."""

    direct = "direct"
    atp = "atp"
    atp_qk = "atp-qk"
    atp_drop = "atp-drop"
    atp_star = "atp*"
    ig = "ig"
    ig_activations = "ig-activations"
    relp = "relp"


class Grain(StrEnum):
    """How finely it is split."""

    component = "component"
    head = "head"
    neuron = "neuron"
    token = "token"


class Run(StrEnum):
    """Which prompt of each pair is run."""

    clean = "clean"
    corrupt = "corrupt"


class Answer(StrEnum):
    """Which logit is split: right minus wrong, or one of them."""

    diff = "diff"
    right = "right"
    wrong = "wrong"


class Preset(StrEnum):
    """A set of rules of relevance propagation."""

    ln = "ln"
    relp = "relp"
    repo = "repo"
    attnlrp = "attnlrp"
    cp = "cp"


class Points(StrEnum):
    """Where the steps of integrated gradients lie."""

    left = "left"
    midpoint = "midpoint"
    right = "right"


BY_HELP = (
    "direct: what each part writes into the last stream, exactly. Estimates of patching: atp, atp-qk, atp-drop, atp*, "
    "ig, ig-activations, relp."
)
By = Annotated[Method, typer.Option("--by", metavar="METHOD", help=BY_HELP)]
Parts = Annotated[Grain | None, typer.Option("--parts", help="direct: how finely to split.  [default: head]")]
Of = Annotated[Run | None, typer.Option("--run", help="direct: which prompt of each pair.  [default: clean]")]
Which = Annotated[
    Answer | None, typer.Option("--answer", help="direct: right minus wrong logit, or one of them.  [default: diff]")
]
SitesToEstimate = Annotated[
    str | None,
    typer.Option("--sites", metavar="SITES", help=f"Estimates: what would be patched.  [default: {given.SITES}]"),
]
Direction = Annotated[
    given.Direction | None,
    typer.Option("--direction", help=f"Estimates: {given.DIRECTION_HELP}  [default: denoise]", show_default=False),
]
Verified = Annotated[
    int | None,
    typer.Option(
        "--verify", min=0, metavar="K", help="Estimates: patch the top K, and K others, exactly.  [default: 20]"
    ),
]
RulesOption = Annotated[Preset | None, typer.Option("--preset", help="relp: which rules.  [default: relp]")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, metavar="N", help="ig: number of steps.  [default: 10]")]
Where = Annotated[Points | None, typer.Option("--points", help="ig: where the steps lie.  [default: midpoint]")]
Checkpoint = Annotated[bool, typer.Option("--checkpoint", help="Estimates: less memory, each block run twice.")]
VERIFY = 20


def attribute(
    model: given.Model,
    *,
    task: given.Task,
    by: By = Method.direct,
    parts: Parts = None,
    run: Of = None,
    answer: Which = None,
    sites: SitesToEstimate = None,
    direction: Direction = None,
    preset: RulesOption = None,
    steps: Steps = None,
    points: Where = None,
    verify: Verified = None,
    checkpoint: Checkpoint = False,
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
    """Split a logit into parts that add up to it, or estimate patching.

    \b
    crosspatch attribute gemma-3-270m --task ioi --by direct
    crosspatch attribute gemma-3-270m --task ioi --parts token
    crosspatch attribute gemma-3-270m --task ioi --by relp --preset ln
    crosspatch attribute gemma-3-270m --task ioi --by "atp*" --sites attn.head,attn.q,attn.k
    """
    estimates = {"--sites": sites, "--direction": direction, "--preset": preset, "--steps": steps}
    estimates |= {"--points": points, "--verify": verify, "--metric": metric, "--resume": resume, "--memory": memory}
    estimates |= {"--checkpoint": checkpoint or None, "--dry-run": dry_run or None, "--workers": workers}
    estimates |= {"--executor": None if executor is given.Executor.auto else executor, "--threads": threads}
    direct = {"--parts": parts, "--run": run, "--answer": answer}
    _refuse(by, direct if by is not Method.direct else estimates)
    voice, room, crew = Voice(json, quiet), parse_size(memory), crew_of(executor, workers, cluster)
    metrics = check_words(task, settings or (), sites=sites or given.SITES, metric=metric)
    count = VERIFY if verify is None else verify
    guess = Guess(by.value, preset and preset.value, steps, points and points.value, count, checkpoint)
    if by is not Method.direct:
        guess.estimator()  # what is misspelled is found before a model is opened
    opened = open_model(model, voice, device=device, dtype=dtype, layout=layout)
    made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
    if by is Method.direct:
        from crosspatch.attribution import direct as split

        grain, which, side = parts or Grain.head, run or Run.clean, answer or Answer.diff
        tell_parts(split(opened, made, by=grain.value, run=which.value, answer=side.value), voice, top=top, out=out)
        return
    way = direction or given.Direction.denoise
    question = pose(opened, made, Ask(sites or given.SITES, way.value, metrics, guess=guess))
    how_run = sweep_options(memory=room, tokens=None, threads=threads, crew=crew)
    if dry_run:
        show_plan(question, voice, out or default_folder(question), options=how_run)
        return
    places = find_places(question, out=out, resume=resume, voice=voice)
    outcomes = run_and_keep(question, places, voice, how=Keeping(top, report, require_accuracy, how_run))
    raise typer.Exit(tell(outcomes, places, voice, top=top))


def _refuse(by: Method, others: dict[str, Any]) -> None:
    """Refuse options of the other kind of attribution. Raises BadInput."""
    wrong = next((name for name, value in others.items() if value is not None), None)
    if wrong is not None:
        which = "estimates (--by atp, relp, …)" if by is Method.direct else "--by direct"
        raise BadInput(f"{wrong} with --by {by.value}: it belongs to {which}. Leave it out, or choose another --by.")


def tell_parts(found: "Decomposition", voice: Voice, *, top: int, out: Any) -> None:
    """Save and show a decomposition."""
    if out is not None:
        found.save(out)
    voice.document(document(found, top) | {"method": Method.direct.value, "folder": out})
    show(found, voice, top)
    if out is not None:
        voice.show(f"saved → {out}")


def show(found: "Decomposition", voice: Voice, top: int) -> None:
    """Show a title, a heat map a kind of part, the largest parts and what a reader must know."""
    import numpy as np
    from rich.text import Text

    from crosspatch.draw import Scale, TerminalMap, nice_limit

    panels = found.panels()
    scale = Scale(nice_limit(np.concatenate([panel.values.ravel() for panel in panels])) if panels else 1.0)
    maps = [TerminalMap(panel, scale, legend=panel is panels[-1]) for panel in panels]
    voice.show(Text(found.title(), style="bold"), *maps, found.top(top).__rich__())
    voice.show("\n".join(found.notes()))


def document(found: "Decomposition", top: int) -> dict[str, Any]:
    """Describe a decomposition as JSON: what was split, the check of its sum, the largest parts."""
    rows = [
        {
            "part": str(row.part),
            "kind": row.part.kind,
            "layer": row.part.layer,
            "unit": row.part.unit,
            "position": row.part.position,
            "mean": row.mean,
            "low": row.low,
            "high": row.high,
            "share": row.share,
        }
        for row in found.top(top)
    ]
    named = {name: getattr(found, name) for name in ("model", "task", "by", "run", "answer", "error", "tolerance")}
    logits = {"n": len(found.logits), "logits": float(found.logits.mean()), "softcap": found.softcap}
    return {
        **named,
        **logits,
        "parts": len(found),
        "whole": dict(found.whole),
        "notes": list(found.notes()),
        "top": rows,
    }
