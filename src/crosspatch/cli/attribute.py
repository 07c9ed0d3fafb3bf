"""`attribute`: split the answers' logits into what parts of the model write, and check that they add up."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.question import check_words, make_task, open_model
from crosspatch.cli.say import Voice

if TYPE_CHECKING:
    from crosspatch.attribution import Decomposition


class Method(StrEnum):
    """How a logit is attributed."""

    direct = "direct"


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


By = Annotated[Method, typer.Option("--by", help="direct: what each part writes into the last stream.")]
Parts = Annotated[Grain, typer.Option("--parts", help="How finely to split.")]
Of = Annotated[Run, typer.Option("--run", help="Which prompt of each pair.")]
Which = Annotated[Answer, typer.Option("--answer", help="Right minus wrong logit, or one of them.")]


def attribute(
    model: given.Model,
    *,
    task: given.Task,
    by: By = Method.direct,
    parts: Parts = Grain.head,
    run: Of = Run.clean,
    answer: Which = Answer.diff,
    n: given.Pairs = None,
    seed: given.Seed = 0,
    settings: given.Settings = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="Parts to list.")] = 10,
    out: given.Out = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Split the answers' logits into parts that add up to them.

    \b
    crosspatch attribute gemma-3-270m --task ioi --by direct
    crosspatch attribute gemma-3-270m --task ioi --parts token
    """
    from crosspatch.attribution import direct

    voice = Voice(json, quiet)
    check_words(task, settings or (), sites="resid.pre")
    opened = open_model(model, voice, device=device, dtype=dtype)
    made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
    found = direct(opened, made, by=parts.value, run=run.value, answer=answer.value)
    if out is not None:
        found.save(out)
    voice.document(document(found, top) | {"method": by.value, "folder": out})
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
