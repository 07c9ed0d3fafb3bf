"""`lens`: what heads attend to, their labels, or every layer decoded by the logit lens or a tuned one."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.question import check_words, make_task, open_model
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput

if TYPE_CHECKING:
    from crosspatch.lenses import AttentionView, HeadLabels, LensView
    from crosspatch.models.model import Model
    from crosspatch.tasks import Task


class Run(StrEnum):
    """Which prompt of each pair is run."""

    clean = "clean"
    corrupt = "corrupt"


class View(StrEnum):
    """What is looked at: heads, or each layer's decoded distribution."""

    heads = "heads"
    logit = "logit"
    tuned = "tuned"


class At(StrEnum):
    """Which tokens of a prompt are decoded."""

    end = "end"
    all = "all"


Weighting = StrEnum("Weighting", ["pattern", "value"])  # "value" as a class attribute would hide the enum's own


Heads = Annotated[
    str | None,
    typer.Option("--heads", metavar="HEADS", help='Heads to look at, such as "attn.head[5, 3]".  [default: label all]'),
]
Of = Annotated[Run, typer.Option("--run", help="Which prompt of each pair.")]
How = Annotated[Weighting, typer.Option("--weighting", help="value: attention times the size of what it moves.")]
OnRepeated = Annotated[
    int | None,
    typer.Option("--repeated", min=1, metavar="N", help="Label on N prompts of random tokens said twice, no task."),
]

Look = Annotated[
    View, typer.Option("--view", help="heads: attention; logit, tuned: what each layer's stream decodes to.")
]
Where = Annotated[At, typer.Option("--at", help="Tokens that logit and tuned decode: the last, or all.")]
Trained = Annotated[
    Path | None,
    typer.Option("--lens", metavar="DIR", help="The saved lens of --view tuned (train_tuned_lens(…).save(DIR))."),
]


def lens(
    model: given.Model,
    *,
    task: given.MaybeTask = None,
    view: Look = View.heads,
    at: Where = At.end,
    trained: Trained = None,
    heads: Heads = None,
    weighting: How = Weighting.pattern,
    run: Of = Run.clean,
    repeated: OnRepeated = None,
    n: given.Pairs = None,
    seed: given.Seed = 0,
    settings: given.Settings = None,
    out: given.Out = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Show what heads attend to (without --heads, label them all), or what each layer decodes to.

    \b
    crosspatch lens gemma-3-270m --task ioi --heads "attn.head[12, 1]"
    crosspatch lens gemma-3-270m --task ioi
    crosspatch lens gemma-3-270m --repeated 16
    crosspatch lens gemma-3-270m --task ioi --view logit
    crosspatch lens gemma-3-270m --task ioi --view tuned --lens runs/tuned
    """
    from crosspatch.lenses import Repeated, attention, label_heads

    voice = Voice(json, quiet)
    if (task is None) == (repeated is None) or (repeated is not None and heads is not None):
        raise BadInput("give --task NAME (with --heads for their attention), or --repeated N to label heads.")
    _check_view(view, at, trained=trained, of_heads=heads is not None or repeated is not None)
    if task is not None:
        check_words(task, settings or (), sites=heads or "resid.pre")
    opened = open_model(model, voice, device=device, dtype=dtype)
    if task is None:
        found = label_heads(opened, Repeated(n=repeated or given.PAIRS, seed=seed))
    else:
        made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
        if view is not View.heads:
            found = _decoded(opened, made, at=at, run=run, trained=trained)
        elif heads is None:
            found = label_heads(opened, made, run=run.value)
        else:
            found = attention(opened, made, heads, run=run.value, weighting=weighting.value)
    if out is not None:
        found.save(out)
    voice.document(document(found, opened) | {"folder": out})
    show(found, voice)
    if out is not None:
        voice.show(f"saved → {out}")


def _check_view(view: View, at: At, *, trained: Path | None, of_heads: bool) -> None:
    """Raise BadInput for options that do not belong to the view."""
    if view is not View.heads and of_heads:
        raise BadInput(f"--view {view} decodes layers: leave --heads and --repeated out.")
    if view is View.heads and at is not At.end:
        raise BadInput("--at belongs to --view logit and --view tuned: a view of heads shows all tokens.")
    if (view is View.tuned) != (trained is not None):
        raise BadInput(
            "--view tuned and --lens DIR belong together: train_tuned_lens(model, texts).save(DIR) makes one."
        )


def _decoded(model: "Model", task: "Task", *, at: At, run: Run, trained: Path | None) -> "LensView":
    from crosspatch.lenses import TunedLens, logit_lens

    tuned = None if trained is None else TunedLens.load(trained, model)
    return logit_lens(model, task, at=at.value, run=run.value, lens=tuned)


def show(found: "AttentionView | HeadLabels | LensView", voice: Voice) -> None:
    """Show a title, a heat map a head or of all layers, and the table."""
    import numpy as np
    from rich.text import Text

    from crosspatch.draw import Scale, TerminalMap, nice_limit
    from crosspatch.lenses import AttentionView, LensView

    maps = [TerminalMap(found.panel(), Scale(1.0))] if isinstance(found, LensView) else []
    if isinstance(found, AttentionView):
        panels = found.panels()[:8]
        scale = Scale(nice_limit(np.stack([panel.values for panel in panels])))
        maps = [TerminalMap(panel, scale, legend=panel is panels[-1]) for panel in panels]
    voice.show(Text(found.title(), style="bold"), *maps, found.__rich__())


def document(found: "AttentionView | HeadLabels | LensView", model: "Model") -> dict[str, Any]:
    """Describe a view as JSON: each head's mean pattern between shared positions, or its scores, or each layer."""
    from crosspatch.lenses import AttentionView, LensView

    about: dict[str, Any] = {"model": found.model, "model_hash": model.fingerprint}
    if isinstance(found, LensView):
        return about | found.summary()
    if isinstance(found, AttentionView):
        mean = {str(head): values.tolist() for head, values in zip(found.heads, found.mean(), strict=True)}
        about |= {"task": found.task, "run": found.run, "weighting": found.weighting, "n": len(found.tokens)}
        return about | {"positions": list(found.shared), "labels": list(found.labels()), "mean": mean}
    names = ("head", "target", "attention", "chance", "queries")
    labels = [dict(zip(names, (str(row[0]), *row[1:]), strict=True)) for row in found.rows()]
    scores = [dict(zip(names, (str(row[0]), *row[1:]), strict=True)) for row in found.rows(every=True)]
    return about | {"prompts": found.prompts, "labels": labels, "scores": scores}
