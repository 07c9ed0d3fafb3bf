"""`demo`: the main job on a model that pip installs, in under a minute, with a second look at other prompts."""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.beside import Beside
from crosspatch.cli.folder import Place, find_place, is_complete, writable
from crosspatch.cli.question import Ask, Question, make_task, open_model, pose
from crosspatch.cli.running import Keeping, keep, run_question, tell_failed
from crosspatch.cli.say import Voice
from crosspatch.cli.show import effects_text, ending
from crosspatch.report.summary import row_of

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
DemoOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Run folder.")]


def demo(
    *,
    n: given.FixedPairs = 16,
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
    voice = Voice(json, quiet)
    model = open_model(MODEL, voice, device=device)
    question = _pose(model, voice, sites=SITES, n=n, seed=seed)
    # A folder that the user names may hold a run worth keeping; the demo's own holds a demo.
    place = Place(out) if out == FOLDER else find_place(question, out=out, resume=None, voice=voice)
    with writable(place.folder):
        effects = _sweep(question, place, voice)
        again = _sweep(_pose(model, voice, sites=HEADS, n=n, seed=seed + 1), place, voice)
        outcome = keep(question, effects, place, how=Keeping(), beside=Beside(question, place, voice, [effects]))
    heads = same_heads(outcome.effects, again)
    voice.document({**outcome.summary, "same_heads": heads})
    voice.show(*effects_text(outcome.effects, strongest(outcome.effects)))
    tell_failed(outcome)
    voice.show(heads_line(heads), *ending(outcome.effects, place.folder, outcome.page))
    if open_page and outcome.page is not None:
        webbrowser.open(outcome.page.resolve().as_uri())
    raise typer.Exit(outcome.code)


def _pose(model: "Model", voice: Voice, *, sites: str, n: int, seed: int) -> Question:
    return pose(model, make_task(TASK, model, voice, n=n, seed=seed), Ask(sites))


def _sweep(question: Question, place: Place, voice: Voice) -> "Effects":
    (effects,) = run_question(question, place, voice)
    if not is_complete(effects):
        raise KeyboardInterrupt  # half of a demo is not worth keeping
    return effects


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
