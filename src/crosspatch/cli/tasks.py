"""`tasks`: list the behaviours that can be asked for, look at their pairs, and check them on a model."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.question import make_task, open_model
from crosspatch.cli.say import CHECK_FAILED, Voice, error
from crosspatch.core.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from crosspatch.models.model import Model
    from crosspatch.tasks import Task, TaskCheck, TaskInfo

ENOUGH = 0.5  # share of clean prompts that a model must get right for a task to make sense
SHOWN = 2  # pairs of a preview

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="A task.", show_default=False)]
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
    n: given.Pairs = 16,
    seed: given.Seed = 0,
    settings: given.Settings = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """List tasks; with a model, preview their pairs and check them.

    A check: the pairs are aligned, and the model gets half of the clean prompts right (else exit 3).

    \b
    crosspatch tasks
    crosspatch tasks ioi --check gemma-3-270m
    crosspatch tasks --check gemma-3-270m --json
    """
    from crosspatch.tasks import TASKS

    voice = Voice(json, quiet)
    if name is not None and name not in TASKS:
        raise UnknownName.of("task", name, TASKS)
    chosen = TASKS if name is None else {name: TASKS[name]}
    if check is None:
        _refuse_without_model(name, settings, preview=preview)
        voice.document({"tasks": [describe(info) for info in chosen.values()]})
        voice.show(
            *(list_text(info) for info in chosen.values()),
            f"check one on a model: crosspatch tasks {next(iter(chosen))} --check MODEL",
        )
        return
    if name is None and settings:
        raise BadInput("--set belongs to one task: name it, such as crosspatch tasks ioi --set corrupt=ABC.")
    model = open_model(check, voice, device=device, dtype=dtype)
    shown = name is not None if preview is None else preview
    made = [make_task(each, model, voice, n=n, seed=seed, settings=settings or ()) for each in chosen]
    raise typer.Exit(_check(model, made, voice, shown=shown))


def _refuse_without_model(name: str | None, settings: list[str] | None, *, preview: bool | None) -> None:
    if preview or settings:
        raise BadInput(
            f"tokens come from a model's tokenizer: name one: crosspatch tasks {name or 'ioi'} --check gemma-3-270m."
        )


def _check(model: "Model", made: "list[Task]", voice: Voice, *, shown: bool) -> int:
    """Show and check tasks; give the exit code."""
    from crosspatch.tasks import check, preview

    found = []
    for task in made:
        if shown:
            voice.show_as_is(preview(task, model.tokenizer, k=SHOWN) + "\n")
        found.append(check(model, task))
        voice.show(check_text(found[-1]))
    voice.document({"model": model.name, "tasks": [check_document(one) for one in found]})
    failed = [one.task for one in found if not is_sound(one)]
    if failed:
        error(f"{', '.join(failed)}: effects explain a behaviour only where the model shows it.", label="check failed")
    return CHECK_FAILED if failed else 0


def is_sound(found: "TaskCheck") -> bool:
    """Tell whether a task makes sense on a model: its pairs are aligned and it gets half of them right or more."""
    return found.aligned and found.accuracy >= ENOUGH


def check_document(found: "TaskCheck") -> dict[str, Any]:
    """Describe a check as JSON."""
    return {**asdict(found), "ok": is_sound(found)}


def check_text(found: "TaskCheck") -> str:
    """Write a check as a line."""
    right = found.n - len(found.wrong)
    aligned = "aligned" if found.aligned else "NOT aligned: the tokenizer gives other tokens for these texts"
    return (
        f"{'✓' if is_sound(found) else '✗'} {found.task}: {right} of {found.n} clean prompts right, "
        f"logit difference {found.logit_diff:.2f} clean, {found.corrupt_logit_diff:.2f} corrupt; {aligned}"
    )


def describe(info: "TaskInfo") -> dict[str, Any]:
    """Describe a task and its options as JSON."""
    options: Mapping[str, Any] = info.options
    return {
        "task": info.name,
        "summary": info.summary,
        "options": [{"name": key, "summary": one.summary, "values": list(one.values)} for key, one in options.items()],
    }


def list_text(info: "TaskInfo") -> str:
    """Write a task and its options as lines."""
    options = (f"  --set {key}={_values(one.values)}\n      {one.summary}" for key, one in info.options.items())
    return "\n".join([info.name, f"  {info.summary}", *options, ""])


def _values(values: tuple[object, ...]) -> str:
    """Write an option's values: `S2|S1+IO|ABC`, long runs of numbers as `0..14`."""
    numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    words = [str(value).lower() if isinstance(value, bool | None) else str(value) for value in values]
    if len(numbers) > 3:
        words = [word for word in words if word not in map(str, numbers)] + [f"{numbers[0]}..{numbers[-1]}"]
    return "|".join(words)
