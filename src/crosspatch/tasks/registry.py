"""The generators by name, with the options that each one takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.tasks.countries import capitals
from crosspatch.tasks.indirect_object import CORRUPTIONS, ORDERS, ioi
from crosspatch.tasks.lexicon import CAPITAL_TEMPLATES, IOI_TEMPLATES
from crosspatch.tasks.pair import Task
from crosspatch.tasks.tokens import OpenedModel

Value = str | int | bool | None


@dataclass(frozen=True)
class TaskOption:
    """Say what an option of a generator does and list its values; the first is the default."""

    summary: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class TaskInfo:
    """Describe a generator: its name, the function that builds the task, one line about it, its options."""

    name: str
    build: Callable[..., Task]
    summary: str
    options: Mapping[str, TaskOption]


TASKS: dict[str, TaskInfo] = {
    info.name: info
    for info in (
        TaskInfo(
            "ioi",
            ioi,
            "indirect object identification: two names, one named again; the answer is the other",
            {
                "corrupt": TaskOption("which names the corrupt prompt replaces", CORRUPTIONS),
                "order": TaskOption("the answer's name first (ABBA), second (BABA), or half each", ORDERS),
                "template": TaskOption(
                    "one wording, so that all prompts have one layout", (None, *range(len(IOI_TEMPLATES)))
                ),
            },
        ),
        TaskInfo(
            "capitals",
            capitals,
            "the country of a capital; the corrupt prompt names another city",
            {
                "template": TaskOption("which wording", tuple(range(len(CAPITAL_TEMPLATES)))),
                "known_only": TaskOption("keep only pairs that the model gets right", (False, True)),
            },
        ),
    )
}


def get_task(name: str, model: OpenedModel, *, n: int = 32, seed: int = 0, **options: Value) -> Task:
    """Build the task of that name with `n` pairs. Option values may be given as text ("3", "true").

    Raises UnknownName for a task or option that does not exist, BadInput for a value that an option does not take.
    """
    if name not in TASKS:
        raise UnknownName.of("task", name, TASKS, hint="Make your own with from_tokens or from_texts.")
    info = TASKS[name]
    chosen = {option: _read(info, option, value) for option, value in options.items()}
    return info.build(model, n, seed=seed, **chosen)


def _read(info: TaskInfo, option: str, value: Value) -> Value:
    if option not in info.options:
        raise UnknownName.of(f"option of task {info.name!r}", option, info.options)
    allowed = {str(each).lower(): each for each in info.options[option].values}
    if str(value).lower() not in allowed:
        raise BadInput(
            f"task {info.name!r}: {option}={value!r} is not one of {', '.join(map(repr, allowed.values()))} "
            f"({info.options[option].summary})."
        )
    return allowed[str(value).lower()]
