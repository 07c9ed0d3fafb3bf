"""The dry run: what a question would do, and what it would cost on this machine."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from crosspatch.cli.question import Question
from crosspatch.cli.running import how_words
from crosspatch.cli.say import Voice

if TYPE_CHECKING:
    from crosspatch.cli.estimate import Cost
    from crosspatch.engine import Options
    from crosspatch.engine.plan import Plan


def show_plan(question: Question, voice: Voice, folder: Path, *, options: "Options") -> None:
    """Show what a run would do, and what it would cost on this machine, without running it."""
    from crosspatch.cli.estimate import cost_of

    plan = question.plan(options)
    cost = cost_of(plan, question.model)
    voice.document(
        {
            "dry_run": True,
            "model": question.model.name,
            "task": question.task.name,
            "n": len(question.task.pairs),
            "direction": question.ask.direction,
            "metric": metrics_text(question),
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
        ("run", f"{question.model.name} · {question.task.name} · {how_words(question)} · {metrics_text(question)}"),
        ("sites", f"{len(question.sites):,} of {ask.text}"),
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


def metrics_text(question: Question) -> str:
    """Name the question's metrics."""
    return ", ".join(one.metric for one in question.each)
