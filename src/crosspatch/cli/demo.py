"""`demo`: the main job on a model that pip installs, in under a minute, with a second look at other prompts."""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.folder import Place, is_complete
from crosspatch.cli.question import Ask, Question, make_task, open_model, pose
from crosspatch.cli.running import keep, run_question, tell_failed
from crosspatch.cli.say import Voice
from crosspatch.cli.show import effects_text, ending, row_of

if TYPE_CHECKING:
    from crosspatch.engine.effects import Effects
    from crosspatch.engine.tables import Top
    from crosspatch.models.model import Model

MODEL, TASK = "gemma-3-270m", "ioi"
HEADS = "attn.head"
SITES = f"resid.post, attn.out, mlp.out, {HEADS}"
FOLDER = Path("crosspatch-demo")
BEST = 5  # heads compared between the two seeds

Open = Annotated[bool, typer.Option("--open/--no-open", help="Open the report in the browser.")]
DemoOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Run folder; a run that is there is replaced.")]


def demo(
    *,
    n: given.Pairs = 16,
    seed: given.Seed = 0,
    out: DemoOut = FOLDER,
    open_page: Open = False,
    device: given.Device = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Find what makes a small language model answer with the right name.

    The model is gemma-3-270m, the prompts are of the kind "When Mary and John went to the store, John gave a drink to",
    which Mary completes. The residual stream, the attention and MLP outputs and every head are patched; then other
    prompts, of the next seed, tell whether they find the same heads. It takes under a minute on two idle cores, and
    about a minute more the first time, for converting the model.
    """
    voice, place = Voice(json, quiet), Place(out)
    model = open_model(MODEL, voice, device=device)
    question, effects = _sweep(model, voice, sites=SITES, n=n, seed=seed)
    _, again = _sweep(model, voice, sites=HEADS, n=n, seed=seed + 1)
    outcome = keep(question, effects, place, top=10, report=True, required=0.5)
    heads = same_heads(outcome.effects, again)
    voice.document({**outcome.summary, "same_heads": heads})
    voice.show(*effects_text(outcome.effects, strongest(outcome.effects)))
    tell_failed(outcome)
    voice.show(heads_line(heads), *ending(outcome.effects, place.folder, outcome.page))
    if open_page and outcome.page is not None:
        webbrowser.open(outcome.page.resolve().as_uri())
    raise typer.Exit(outcome.code)


def _sweep(model: "Model", voice: Voice, *, sites: str, n: int, seed: int) -> "tuple[Question, Effects]":
    task = make_task(TASK, model, voice, n=n, seed=seed)
    question = pose(model, task, Ask(sites, "denoise", None))
    effects = run_question(question, Place(FOLDER), voice)
    if not is_complete(effects):
        raise KeyboardInterrupt  # half of a demo is not worth keeping
    return question, effects


def strongest(effects: "Effects") -> "Top":
    """List the strongest site of each stream, then the strongest heads."""
    from crosspatch.engine.tables import Top

    counts = {kind: BEST if kind == HEADS else 1 for kind in effects.kinds}
    rows = [row for kind, count in counts.items() for row in effects.top(count, kind=kind)]
    return Top(tuple(rows), effects.top(1).headers)


def same_heads(first: "Effects", second: "Effects") -> dict[str, Any]:
    """Compare the strongest heads of two runs: both lists, and which heads are on both."""
    lists = [list(effects.top(BEST, kind=HEADS)) for effects in (first, second)]
    names = [{(row.site.layer, row.site.unit) for row in rows} for rows in lists]
    shared = [row for row in lists[0] if (row.site.layer, row.site.unit) in names[1]]
    return {
        "of": min(len(lists[0]), len(lists[1])),
        "shared": [_name(row_of(row)) for row in shared],
        "first": [row_of(row) for row in lists[0]],
        "second": [row_of(row) for row in lists[1]],
    }


def heads_line(heads: dict[str, Any]) -> str:
    """Write the comparison of heads as one line."""
    return f"the same heads with another seed: {len(heads['shared'])} of {heads['of']} ({', '.join(heads['shared'])})"


def _name(row: dict[str, Any]) -> str:
    return f"L{row['layer']} H{row['unit']} {row['effect']:+.2f}"
