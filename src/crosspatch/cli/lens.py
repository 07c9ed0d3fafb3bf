"""`lens`: attention of chosen heads on a task, or labels of all heads by what they attend to."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.question import check_words, make_task, open_model
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput

if TYPE_CHECKING:
    from crosspatch.lenses import AttentionView, HeadLabels
    from crosspatch.models.model import Model


class Run(StrEnum):
    """Which prompt of each pair is run."""

    clean = "clean"
    corrupt = "corrupt"


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


def lens(
    model: given.Model,
    *,
    task: given.MaybeTask = None,
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
    """Show what heads attend to; without --heads, label them all.

    \b
    crosspatch lens gemma-3-270m --task ioi --heads "attn.head[12, 1]"
    crosspatch lens gemma-3-270m --task ioi
    crosspatch lens gemma-3-270m --repeated 16
    """
    from crosspatch.lenses import Repeated, attention, label_heads

    voice = Voice(json, quiet)
    if (task is None) == (repeated is None) or (repeated is not None and heads is not None):
        raise BadInput("give --task NAME (with --heads for their attention), or --repeated N to label heads.")
    if task is not None:
        check_words(task, settings or (), sites=heads or "resid.pre")
    opened = open_model(model, voice, device=device, dtype=dtype)
    if task is None:
        found = label_heads(opened, Repeated(n=repeated or given.PAIRS, seed=seed))
    else:
        made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
        if heads is None:
            found = label_heads(opened, made, run=run.value)
        else:
            found = attention(opened, made, heads, run=run.value, weighting=weighting.value)
    if out is not None:
        found.save(out)
    voice.document(document(found, opened) | {"folder": out})
    show(found, voice)
    if out is not None:
        voice.show(f"saved → {out}")


def show(found: "AttentionView | HeadLabels", voice: Voice) -> None:
    """Show a title, a heat map a head where heads were chosen, and the table."""
    import numpy as np
    from rich.text import Text

    from crosspatch.draw import Scale, TerminalMap, nice_limit
    from crosspatch.lenses import AttentionView

    maps = []
    if isinstance(found, AttentionView):
        panels = found.panels()[:8]
        scale = Scale(nice_limit(np.stack([panel.values for panel in panels])))
        maps = [TerminalMap(panel, scale, legend=panel is panels[-1]) for panel in panels]
    voice.show(Text(found.title(), style="bold"), *maps, found.__rich__())


def document(found: "AttentionView | HeadLabels", model: "Model") -> dict[str, Any]:
    """Describe a view as JSON: the mean pattern of each head between shared positions, or every head's scores."""
    from crosspatch.lenses import AttentionView

    about: dict[str, Any] = {"model": found.model, "model_hash": model.fingerprint}
    if isinstance(found, AttentionView):
        mean = {str(head): values.tolist() for head, values in zip(found.heads, found.mean(), strict=True)}
        about |= {"task": found.task, "run": found.run, "weighting": found.weighting, "n": len(found.tokens)}
        return about | {"positions": list(found.shared), "labels": list(found.labels()), "mean": mean}
    names = ("head", "target", "attention", "chance", "queries")
    labels = [dict(zip(names, (str(row[0]), *row[1:]), strict=True)) for row in found.rows()]
    scores = [dict(zip(names, (str(row[0]), *row[1:]), strict=True)) for row in found.rows(every=True)]
    return about | {"prompts": found.prompts, "labels": labels, "scores": scores}
