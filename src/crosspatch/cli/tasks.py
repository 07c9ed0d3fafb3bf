"""`tasks`: list the behaviours that can be asked for, look at their pairs, and check them on a model."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.question import make_task, open_model, read_settings
from crosspatch.cli.say import CHECK_FAILED, Voice, error
from crosspatch.core.errors import BadInput

if TYPE_CHECKING:
    from rich.table import Table

    from crosspatch.models.model import Model
    from crosspatch.tasks import Task, TaskCheck, TaskInfo

ENOUGH = 0.5  # share of clean prompts that a model must get right for a task to make sense
SHOWN = 2  # pairs of a preview
CROOKED = "the tokenizer gives other tokens for these texts"

Name = Annotated[
    str | None, typer.Argument(metavar="NAME", help="A task, or a .csv or .jsonl file of prompts.", show_default=False)
]
CheckOn = Annotated[
    str | None,
    typer.Option("--check", "--model", metavar="MODEL", help="Make the task for this model and check that it fits."),
]
Preview = Annotated[
    bool | None,
    typer.Option(
        "--preview/--no-preview", help="Show pairs token by token.  [default: if a task is named]", show_default=False
    ),
]


def tasks(
    name: Name = None,
    *,
    check: CheckOn = None,
    preview: Preview = None,
    n: given.Pairs = None,
    seed: given.Seed = 0,
    settings: given.Settings = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """List tasks; with a model, preview their pairs and check them.

    A check: the pairs are aligned, and the model gets half of the clean prompts right. A named task that fails it, and
    pairs that are not aligned, exit with 3; a model that cannot do one of all tasks does not.

    \b
    crosspatch tasks
    crosspatch tasks ioi --check gemma-3-270m
    crosspatch tasks prompts.csv --check gemma-3-270m
    crosspatch tasks --check gemma-3-270m --json
    """
    from crosspatch.tasks import TASKS, find_task

    voice = Voice(json, quiet)
    chosen = TASKS if name is None else {name: find_task(name)}
    if check is None:
        _refuse_without_model(name, settings, preview=preview)
        voice.document({"tasks": [describe(info) for info in chosen.values()]})
        voice.show(
            *(list_text(info, published=name is not None) for info in chosen.values()),
            f"check one on a model: crosspatch tasks {next(iter(chosen))} --check MODEL",
        )
        return
    if name is None and settings:
        raise BadInput("--set belongs to one task: name it, such as crosspatch tasks ioi --set corrupt=ABC.")
    if name is not None:
        read_settings(name, settings or ())
    model = open_model(check, voice, device=device, dtype=dtype)
    if name is None:
        raise typer.Exit(_check_all(model, voice, n=n, seed=seed, shown=bool(preview)))
    made = make_task(name, model, voice, n=n, seed=seed, settings=settings or ())
    raise typer.Exit(_check(model, made, voice, shown=preview is not False))


def _refuse_without_model(name: str | None, settings: list[str] | None, *, preview: bool | None) -> None:
    if preview or settings:
        raise BadInput(
            f"tokens come from a model's tokenizer: name one: crosspatch tasks {name or 'ioi'} --check gemma-3-270m."
        )


def _check(model: "Model", task: "Task", voice: Voice, *, shown: bool) -> int:
    """Show and check a task; give the exit code."""
    from crosspatch.tasks import check

    _preview(model, task, voice, shown=shown)
    found = check(model, task)
    voice.show(check_text(found))
    voice.document({"model": model.name, "tasks": [check_document(found)]})
    if is_sound(found):
        return 0
    error(f"{found.task}: effects explain a behaviour only where the model shows it.", label="check failed")
    return CHECK_FAILED


def _check_all(model: "Model", voice: Voice, *, n: int | None, seed: int, shown: bool) -> int:
    """Check every task and show a table; give the exit code. A task that the tokenizer cannot write is a row too."""
    from crosspatch.tasks import TASKS, check

    found: dict[str, TaskCheck | str] = {}
    for name in TASKS:
        try:
            task = make_task(name, model, voice, n=n, seed=seed)
        except BadInput as problem:
            found[name] = str(problem)
            continue
        _preview(model, task, voice, shown=shown)
        found[name] = check(model, task)
    voice.show(table(found), *(f"{name}: {one}" for name, one in found.items() if isinstance(one, str)))
    voice.document({"model": model.name, "tasks": [_document(name, one) for name, one in found.items()]})
    crooked = [name for name, one in found.items() if not isinstance(one, str) and not one.aligned]
    if crooked:
        error(f"{', '.join(crooked)}: {CROOKED}.", label="check failed")
    return CHECK_FAILED if crooked else 0


def _preview(model: "Model", task: "Task", voice: Voice, *, shown: bool) -> None:
    from crosspatch.tasks import preview

    if shown:
        voice.show_as_is(preview(task, model.tokenizer, k=SHOWN) + "\n")


def table(found: "Mapping[str, TaskCheck | str]") -> "Table":
    """Tell of every task how well the model does it; a text in the place of a check says why it was not made."""
    from rich.table import Table

    drawn = Table("task", box=None, pad_edge=False)
    for column in ("n", "accuracy", "logit difference", "corrupt", "aligned"):
        drawn.add_column(column, justify="right")
    drawn.add_column("verdict")
    for name, one in found.items():
        if isinstance(one, str):
            drawn.add_row(name, "0", "", "", "", "", "cannot")
            continue
        numbers = f"{one.accuracy:.2f}", f"{one.logit_diff:.2f}", f"{one.corrupt_logit_diff:.2f}"
        drawn.add_row(name, str(one.n), *numbers, "yes" if one.aligned else "NO", verdict(one))
    return drawn


def verdict(found: "TaskCheck") -> str:
    """Say in a word whether the model does a task."""
    return "does" if is_sound(found) else "cannot" if found.aligned else "not aligned"


def is_sound(found: "TaskCheck") -> bool:
    """Tell whether a task makes sense on a model: its pairs are aligned and it gets half of them right or more."""
    return found.aligned and found.accuracy >= ENOUGH


def check_document(found: "TaskCheck") -> dict[str, Any]:
    """Describe a check as JSON."""
    return {**asdict(found), "ok": is_sound(found), "verdict": verdict(found), "problem": None}


def _document(name: str, found: "TaskCheck | str") -> dict[str, Any]:
    """Describe a check as JSON; one that was not made has the same keys, without numbers."""
    if not isinstance(found, str):
        return check_document(found)
    numbers = dict.fromkeys(("aligned", "accuracy", "logit_diff", "corrupt_logit_diff"))
    told = {"task": name, "n": 0, **numbers, "wrong": [], "first_token_only": False}
    return {**told, "ok": False, "verdict": "cannot", "problem": found}


def check_text(found: "TaskCheck") -> str:
    """Write a check as a line."""
    right = found.n - len(found.wrong)
    aligned = "aligned" if found.aligned else f"NOT aligned: {CROOKED}"
    note = "; answers of several tokens count by their first" if found.first_token_only else ""
    return (
        f"{'✓' if is_sound(found) else '✗'} {found.task}: {right} of {found.n} clean prompts right, "
        f"logit difference {found.logit_diff:.2f} clean, {found.corrupt_logit_diff:.2f} corrupt; {aligned}{note}"
    )


def describe(info: "TaskInfo") -> dict[str, Any]:
    """Describe a task and its options as JSON."""
    options: Mapping[str, Any] = info.options
    return {
        "task": info.name,
        "summary": info.summary,
        "published": info.published,
        "options": [{"name": key, "summary": one.summary, "values": list(one.values)} for key, one in options.items()],
    }


def list_text(info: "TaskInfo", *, published: bool = False) -> str:
    """Write a task and its options as lines, with what is published about it if wanted."""
    options = (f"  --set {key}={_values(one.values)}\n      {one.summary}" for key, one in info.options.items())
    told = [f"  published: {info.published}"] if published and info.published else []
    return "\n".join([info.name, f"  {info.summary}", *options, *told, ""])


def _values(values: tuple[object, ...]) -> str:
    """Write an option's values: `S2|S1+IO|ABC`, long runs of numbers as `0..14`."""
    numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    words = [str(value).lower() if isinstance(value, bool | None) else str(value) for value in values]
    if len(numbers) > 3:
        words = [word for word in words if word not in map(str, numbers)] + [f"{numbers[0]}..{numbers[-1]}"]
    return "|".join(words)
