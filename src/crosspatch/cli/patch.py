"""`patch`: the main job, from a model and a task to a finding and a run folder."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from crosspatch.cli import options as given
from crosspatch.cli.folder import default_folder, find_place, writable
from crosspatch.cli.question import Ask, Question, check_words, make_task, open_model, parse_size, pose
from crosspatch.cli.running import keep, run_question, tell_failed, tell_interrupted
from crosspatch.cli.say import INTERRUPTED, Voice
from crosspatch.cli.show import effects_text, ending

if TYPE_CHECKING:
    from crosspatch.cli.estimate import Cost
    from crosspatch.engine.plan import Plan


def patch(
    model: given.Model,
    *,
    task: given.Task,
    sites: given.Sites = given.SITES,
    direction: given.DirectionOption = given.Direction.denoise,
    n: given.Pairs = 16,
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
    device: given.Device = None,
    dtype: given.Dtype = None,
    dry_run: given.DryRun = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Patch each site of a selection; show which carry the behaviour.

    \b
    crosspatch patch gemma-3-270m --task ioi
    crosspatch patch gemma-3-270m --task ioi --sites attn.head@end
    crosspatch patch gemma-3-270m --task ioi --set template=0 --dry-run
    """
    voice, room = Voice(json, quiet), parse_size(memory)
    check_words(task, settings or (), sites=sites, metric=metric)
    opened = open_model(model, voice, device=device, dtype=dtype)
    made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
    question = pose(opened, made, Ask(sites, direction.value, metric))
    if dry_run:
        show_plan(question, voice, out or default_folder(question), memory=room, tokens=tokens)
        return
    place = find_place(question, out=out, resume=resume, voice=voice)
    with writable(place.folder):
        effects = run_question(question, place, voice, memory=room, tokens=tokens)
        outcome = keep(question, effects, place, top=top, report=report, required=require_accuracy)
    voice.document(outcome.summary)
    if outcome.code == INTERRUPTED:
        tell_interrupted(outcome, place)
        raise typer.Exit(INTERRUPTED)
    voice.show(*effects_text(outcome.effects, outcome.effects.top(top)))
    tell_failed(outcome)
    voice.show(*ending(outcome.effects, place.folder, outcome.page))
    raise typer.Exit(outcome.code)


def show_plan(question: Question, voice: Voice, folder: Path, *, memory: int | None, tokens: int | None) -> None:
    """Show what a run would do, and what it would cost on this machine, without running it."""
    from crosspatch.cli.estimate import cost_of
    from crosspatch.engine import Options

    plan = question.plan(Options(memory=memory, tokens=tokens))
    cost = cost_of(plan, question.model)
    voice.document(
        {
            "dry_run": True,
            "model": question.model.name,
            "task": question.task.name,
            "n": len(question.task.pairs),
            "direction": question.ask.direction,
            "metric": question.metric,
            "sites": len(question.sites),
            "plan": asdict(plan) | {"forwards": plan.forwards, "forwards_saved": plan.forwards_saved},
            "estimate": asdict(cost) | {"usual": cost.usual, "bytes": plan.peak_bytes},
            "folder": folder,
        }
    )
    lines = [*plan_lines(question, plan), *cost_lines(plan, cost), ("folder", str(folder))]
    voice.show("\n".join(f"{name:<9}{text}" for name, text in lines))


def plan_lines(question: Question, plan: "Plan") -> list[tuple[str, str]]:
    """Write what would be run as named lines."""
    ask, pairs = question.ask, len(question.task.pairs)
    naive = plan.forwards + plan.forwards_saved
    return [
        ("run", f"{question.model.name} · {question.task.name} · {ask.direction} · {question.metric}"),
        ("sites", f"{len(question.sites):,} of {ask.sites}"),
        ("patches", f"{plan.patches:,} on {pairs} pairs"),
        ("", f"{plan.rows:,} to run, {plan.zero:,} exactly zero, {plan.absent:,} absent"),
        ("work", f"{plan.forwards:,.0f} forwards (one forward a patch would take {naive:,.0f})"),
    ]


def cost_lines(plan: "Plan", cost: "Cost") -> list[tuple[str, str]]:
    """Write what that would cost as named lines."""
    from crosspatch.cli.estimate import clock

    return [
        ("memory", f"about {plan.peak_bytes / 2**30:.2f} GiB besides the weights"),
        ("time", f"about {clock(cost.usual)}, at least {clock(cost.least)}"),
        ("", f"({plan.flops / 1e12:.3g} TFLOP; matrix products run at {cost.speed / 1e9:.0f} GFLOP/s now)"),
    ]
