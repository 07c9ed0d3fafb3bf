"""From what the user typed to an opened model, a task made for it, and the question asked of both."""

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crosspatch.cli.options import METRICS
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from crosspatch.engine.effects import Effects
    from crosspatch.engine.plan import Plan
    from crosspatch.engine.sweep import Options
    from crosspatch.models.model import Model
    from crosspatch.sites import Site
    from crosspatch.tasks import Task

_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Ask:
    """What to patch, as it was typed: a selection of sites, a direction, a metric (None: the task's own)."""

    sites: str
    direction: str
    metric: str | None


@dataclass(frozen=True)
class Question:
    """A model and a task, and what is asked of them. Equal keys are equal questions, with equal answers."""

    model: "Model"
    task: "Task"
    ask: Ask
    sites: "tuple[Site, ...]"
    metric: str
    key: str

    def plan(self, options: "Options") -> "Plan":
        """Plan the sweep without running the model."""
        from crosspatch.engine import plan_patch

        given = {"sites": self.ask.sites, "direction": self.ask.direction, "metric": self.ask.metric}
        return plan_patch(self.model, self.task, options=options, **given)

    def patch(self, options: "Options") -> "Effects":
        """Run the sweep, or what an interrupted one left of it."""
        from crosspatch.engine import patch

        given = {"sites": self.ask.sites, "direction": self.ask.direction, "metric": self.ask.metric}
        return patch(self.model, self.task, options=options, **given)


def check_words(task: str, settings: Sequence[str], *, sites: str, metric: str | None = None) -> None:
    """Find what is misspelled before a model is opened, which takes seconds.

    Raises UnknownName for a task, an option of it, a kind of site or a metric that does not exist, and BadInput for
    texts that cannot be read.
    """
    from crosspatch.sites import parse
    from crosspatch.tasks import TASKS

    if task not in TASKS:
        raise UnknownName.of("task", task, TASKS, hint="See `crosspatch tasks`.")
    read_settings(task, settings)
    parse(sites)
    if metric is not None and metric not in METRICS:
        raise UnknownName.of("metric", metric, METRICS)


def open_model(name: str, voice: Voice, *, device: str | None = None, dtype: str | None = None) -> "Model":
    """Open a model and say what it is. Raises what `crosspatch.open_model` raises."""
    began = time.perf_counter()
    voice.say(f"opening {name} …")
    from crosspatch.models import open_model as open_any

    model = open_any(name, device=device, dtype=dtype, say=voice.say)
    anatomy = model.anatomy
    voice.say(
        f"{model.name}: {anatomy.family}, {anatomy.layers} layers, {dtype_of(model)} on {model.device} "
        f"({time.perf_counter() - began:.1f} s)"
    )
    return model


def dtype_of(model: "Model") -> str:
    """Name the type of the model's weights."""
    return str(next(model.module.parameters()).dtype).removeprefix("torch.")


def make_task(name: str, model: "Model", voice: Voice, *, n: int, seed: int, settings: Sequence[str] = ()) -> "Task":
    """Make a task's pairs for a model and say what they are; `settings` are texts `key=value`.

    Raises UnknownName and BadInput as `get_task` does, and BadInput for a setting that is no `key=value`.
    """
    from crosspatch.tasks import get_task

    task = get_task(name, model, n=n, seed=seed, **read_settings(name, settings))
    voice.say(f"{task.name}: {len(task.pairs)} pairs of {token_span(task)} tokens ({settings_text(task.settings)})")
    return task


def read_settings(task: str, settings: Sequence[str]) -> dict[str, str | int | bool | None]:
    """Read `key=value` texts. Raises BadInput for another form, UnknownName for an option that the task lacks."""
    from crosspatch.tasks import TASKS

    found: dict[str, str | int | bool | None] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key.strip() or not value.strip():
            raise BadInput(f"--set {setting!r}: write --set KEY=VALUE, such as --set corrupt=ABC.")
        # The generator's other arguments (n, seed, model) have options of their own.
        if task in TASKS and key.strip() not in TASKS[task].options:
            raise UnknownName.of(f"option of task {task!r}", key.strip(), TASKS[task].options)
        found[key.strip()] = value.strip()
    return found


def token_span(task: "Task") -> str:
    """Write how long the prompts are: `15`, or `15 to 21`."""
    lengths = sorted({len(pair.clean) for pair in task.pairs})
    return str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"


def settings_text(settings: Mapping[str, object]) -> str:
    """Write a task's settings, but not its size, which is said elsewhere."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if key != "n") or "no options"


def pose(model: "Model", task: "Task", ask: Ask) -> Question:
    """Check what is asked and give it its key. Raises UnknownName or BadInput as `patch` does."""
    from crosspatch.engine.patching import task_hash
    from crosspatch.engine.select import select_sites
    from crosspatch.metrics import get_metric

    sites = select_sites(model, task, ask.sites)
    metric = get_metric(ask.metric or task.metric).name
    key = question_key(model.fingerprint, task_hash(task), list(map(str, sites)), ask.direction, metric)
    return Question(model, task, ask, sites, metric, key)


def key_of(effects: "Effects") -> str:
    """Give the key of the question that saved effects answer."""
    settings = effects.provenance.get("settings", {})
    given = settings.get("model_hash"), settings.get("data_hash"), list(map(str, effects.sites))
    return question_key(*given, effects.direction, effects.metric)


def question_key(*parts: object) -> str:
    """Hash the parts of a question to six hexadecimal digits."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:6]


def parse_size(text: str | None) -> int | None:
    """Read a memory size such as `2GiB`, `500MB` or `1000000`, in bytes; None stays None. Raises BadInput."""
    if text is None:
        return None
    form = _SIZE.fullmatch(text)
    size = int(float(form[1]) * (1024 if form[3] else 1000) ** _POWERS[form[2].lower()]) if form else 0
    if size <= 0:
        raise BadInput(f"--memory {text!r}: write a size above zero with a unit, such as 2GiB, 1.5GiB or 500MB.")
    return size
