"""From what the user typed to an opened model, a task made for it, and the question asked of both."""

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from crosspatch.cli.options import METRICS, PAIRS
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from crosspatch.attribution import Estimate, Estimator
    from crosspatch.engine import Ablation, Effects, Options, Paths, Plan
    from crosspatch.engine.sweep import Sweep
    from crosspatch.models import Layout
    from crosspatch.models.model import Model
    from crosspatch.sites import Address
    from crosspatch.tasks import Task

_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
GAUSSIAN, EMBEDDINGS = "gaussian", ("gaussian", "zero", "mean")


@dataclass(frozen=True)
class Guess:
    """How effects are estimated instead of measured, and how many of them are verified."""

    by: str
    preset: str | None = None
    steps: int | None = None
    points: str | None = None
    verify: int = 0
    checkpoint: bool = False

    def estimator(self) -> "Estimator":
        """Find the estimator. Raises UnknownName or BadInput for one that is none, or has no such setting."""
        from crosspatch.attribution.estimators import estimator

        return estimator(self.by, preset=self.preset, steps=self.steps, points=self.points)


@dataclass(frozen=True)
class Ask:
    """What to do, as it was typed: a selection of sites, a direction, metrics (none: the task's own).

    `windows` are widths of joint windows, `ablation` what is written in the place of patches, `to` and `through` make
    patches paths, `guess` makes them estimates.
    """

    sites: str
    direction: str = "denoise"
    metrics: tuple[str, ...] = ()
    windows: tuple[int, ...] = ()
    ablation: str = ""
    seed: int = 0
    to: str = ""
    through: str = ""
    guess: Guess | None = None

    @property
    def text(self) -> str:
        """Write the selection with its windows."""
        return self.sites + "".join(f", windows of {width}" for width in self.windows)


@dataclass(frozen=True)
class Question:
    """A model and a task, and what is asked of them by one metric. Equal keys are equal questions, with equal answers.

    `others` are the same question by other metrics, which the same sweep answers.
    """

    model: "Model"
    task: "Task"
    ask: Ask
    sites: "tuple[Address, ...]"
    metric: str
    key: str
    others: "tuple[Question, ...]" = ()

    @property
    def each(self) -> "tuple[Question, ...]":
        """List the question by each of its metrics."""
        return (self, *self.others)

    def plan(self, options: "Options") -> "Plan":
        """Plan the sweep without running the model."""
        return self._sweep(options).plan()

    def _sweep(self, options: "Options") -> "Sweep":
        from crosspatch.engine import patching
        from crosspatch.engine.paths import path_sweep

        ask, metrics = self.ask, [one.metric for one in self.each]
        if ask.to:
            return path_sweep(self.model, self.task, self._paths(), metric=self.metric, options=options)
        asked = patching.Question(self.sites, ask.direction, metrics, _ablation(ask))
        if ask.guess:
            from crosspatch.attribution.estimating import estimate_sweep

            how, checkpoint = ask.guess.estimator(), ask.guess.checkpoint
            return estimate_sweep(self.model, self.task, asked, how, options=options, checkpoint=checkpoint)
        return patching.prepare(self.model, self.task, asked, options=options)

    def run(self, options: "Options") -> "list[Effects]":
        """Run the sweep, or what an interrupted one left of it; one result a metric."""
        from crosspatch.engine import ablate, patch, patch_metrics, path_patch

        model, task, ask, sites = self.model, self.task, self.ask, self.sites
        how = _ablation(ask)
        if ask.guess:
            return [with_setting(self._estimate(ask.guess, options), "sites", ask.text)]
        if ask.to:
            return [path_patch(model, task, paths=self._paths(), metric=self.metric, options=options)]
        if how is not None:
            found = [ablate(model, task, sites=sites, by=how, metric=self.metric, options=options)]
        elif self.others:
            names = [one.metric for one in self.each]
            every = patch_metrics(model, task, names, sites=sites, direction=ask.direction, options=options)
            found = [every[name] for name in names]
        else:
            found = [patch(model, task, sites=sites, direction=ask.direction, metric=self.metric, options=options)]
        return [with_setting(effects, "sites", ask.text) for effects in found]

    def _estimate(self, guess: Guess, options: "Options") -> "Estimate":
        from crosspatch.attribution import attribute

        asked = {"sites": self.sites, "direction": self.ask.direction, "metric": self.metric}
        more = {"by": guess.estimator(), "verify": guess.verify, "checkpoint": guess.checkpoint}
        return attribute(self.model, self.task, **asked, **more, options=options)  # pyright: ignore[reportArgumentType]

    def _paths(self) -> "Paths":
        from crosspatch.engine import Paths

        return Paths(self.ask.sites, self.ask.to, self.ask.direction, self.ask.through)


def with_setting(effects: "Effects", name: str, value: object) -> "Effects":
    """Add a setting to where effects come from."""
    settings = {**effects.provenance.get("settings", {}), name: value}
    return replace(effects, provenance={**effects.provenance, "settings": settings})


def _ablation(ask: Ask) -> "Ablation | None":
    from crosspatch.engine import Ablation

    return Ablation(ask.ablation, seed=ask.seed) if ask.ablation else None


def check_words(task: str, settings: Sequence[str], *, sites: str, metric: str | None = None) -> tuple[str, ...]:
    """Find what is misspelled before a model is opened, which takes seconds; give the metrics that are named.

    Raises UnknownName for a task, an option of it, a kind of site or a metric that does not exist, and BadInput for
    texts that cannot be read.
    """
    from crosspatch.sites import parse

    read_settings(task, settings)
    parse(sites)
    metrics = read_list(metric, "--metric")
    unknown = next((name for name in metrics if name not in METRICS), None)
    if unknown is not None:
        raise UnknownName.of("metric", unknown, METRICS)
    return metrics


def read_list(text: str | None, option: str) -> tuple[str, ...]:
    """Read names that commas part; none from None. Raises BadInput for an empty name or one that is there twice."""
    names = tuple(name.strip() for name in text.split(",")) if text is not None else ()
    if not all(names) or len(set(names)) < len(names):
        raise BadInput(f"{option} {text!r}: write one or several names, each once, as in a,b.")
    return names


def read_numbers(text: str | None, option: str) -> tuple[int, ...]:
    """Read whole numbers from 0 that commas part; none from None. Raises BadInput for anything else."""
    names = read_list(text, option)
    if not all(name.isdecimal() for name in names):
        raise BadInput(f"{option} {text!r}: write whole numbers parted by commas, such as 3,5.")
    return tuple(map(int, names))


def open_model(
    name: str,
    voice: Voice,
    *,
    device: str | None = None,
    dtype: str | None = None,
    layout: Sequence[str] | None = None,
) -> "Model":
    """Open a model and say what it is. Raises what `crosspatch.open_model` raises, and BadInput as `read_layout`."""
    began = time.perf_counter()
    voice.say(f"opening {name} …")
    from crosspatch.models import open_model as open_any

    model = open_any(name, device=device, dtype=dtype, say=voice.say, **read_layout(layout))
    anatomy = model.anatomy
    voice.say(
        f"{model.name}: {anatomy.family}, {anatomy.layers} layers, {dtype_of(model)} on {model.device} "
        f"({time.perf_counter() - began:.1f} s)"
    )
    return model


def read_layout(settings: Sequence[str] | None) -> "dict[str, Layout]":
    """Read `key=value` texts of a layout; nothing from none. Raises BadInput or UnknownName for what is none."""
    if not settings:
        return {}
    from crosspatch.models import Layout

    known = {"device_map": str, "offload": str, "bits": int, "tp": int, "fsdp": int}
    found: dict[str, str | int] = {}
    for setting in settings:
        key, _, value = (part.strip() for part in setting.partition("="))
        if key not in known:
            raise UnknownName.of("setting of --layout", key, known)
        if not value or (known[key] is int and not value.isdecimal()):
            raise BadInput(f"--layout {setting!r}: write KEY=VALUE, such as device_map=auto, fsdp=8 or bits=4.")
        found[key] = known[key](value)
    return {"layout": Layout(**found)}  # pyright: ignore[reportArgumentType]


def dtype_of(model: "Model") -> str:
    """Name the type of the model's weights."""
    return str(next(model.module.parameters()).dtype).removeprefix("torch.")


def make_task(
    name: str, model: "Model", voice: Voice, *, n: int | None, seed: int, settings: Sequence[str] = ()
) -> "Task":
    """Make a task's pairs for a model and say what they are; `settings` are texts `key=value`.

    Without `n`, a generated task has 16 pairs and a file gives all its rows. Raises UnknownName and BadInput as
    `get_task` does, and BadInput for a setting that is no `key=value`.
    """
    from crosspatch.tasks import TASKS, get_task

    n = PAIRS if n is None and name in TASKS else n
    task = get_task(name, model, n=n, seed=seed, **read_settings(name, settings))
    voice.say(f"{task.name}: {len(task.pairs)} pairs of {token_span(task)} tokens ({settings_text(task.settings)})")
    return task


def corrupted(task: "Task", by: str | None, *, draws: int | None, sigma: float | None, seed: int) -> "Task":
    """Make the task's corrupt runs another way, if one is named. Raises UnknownName and BadInput as `corrupt` does."""
    from crosspatch.tasks import corrupt

    if by is None:
        return task
    given = {"draws": draws, "sigma": sigma}
    return corrupt(task, by, seed=seed, **{name: value for name, value in given.items() if value is not None})


def check_noise(by: str | None, *, draws: int | None, sigma: float | None) -> None:
    """Refuse sizes and draws of noise where there is no noise. Raises BadInput."""
    for option, value in (("--draws", draws), ("--sigma", sigma)):
        if value is not None and by != GAUSSIAN:
            raise BadInput(f"{option} {value}: only Gaussian noise has it. Add --corrupt gaussian, or leave it out.")


def read_settings(task: str, settings: Sequence[str]) -> dict[str, str | int | bool | None]:
    """Read `key=value` texts. Raises BadInput for another form, UnknownName for a task or an option that is none."""
    from crosspatch.tasks import find_task

    options = find_task(task).options
    found: dict[str, str | int | bool | None] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key.strip() or not value.strip():
            raise BadInput(f"--set {setting!r}: write --set KEY=VALUE, such as --set corrupt=ABC.")
        # The generator's other arguments (n, seed, model) have options of their own.
        if key.strip() not in options:
            raise UnknownName.of(f"option of task {task!r}", key.strip(), options)
        found[key.strip()] = value.strip()
    return found


def token_span(task: "Task") -> str:
    """Write how long the prompts are: `15`, or `15 to 21`."""
    lengths = sorted({len(pair.clean) for pair in task.pairs})
    return str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"


def settings_text(settings: Mapping[str, object]) -> str:
    """Write a task's settings, but not its size, which is said elsewhere."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if key != "n") or "no options"


def pose(model: "Model", task: "Task", ask: Ask, *, sites: "Sequence[Address] | None" = None) -> Question:
    """Check what is asked and give it its key; `sites` take the place of the selection's, whose text stays.

    Raises UnknownName or BadInput as `patch` does.
    """
    from crosspatch.engine.patching import task_hash
    from crosspatch.engine.select import select_sites
    from crosspatch.metrics import get_metric

    singles = select_sites(model, task, ask.sites if sites is None else sites)
    chosen = (*singles, *_windows(model, task, singles, ask.windows))
    more = [ask.ablation, ask.seed if ask.ablation == "resample" else 0, ask.to, ask.through]
    more += [ask.guess.estimator().settings(), ask.guess.verify] if ask.guess else []
    same = model.fingerprint, task_hash(task), list(map(address_text, chosen)), ask.direction
    names = [get_metric(name).name for name in ask.metrics or (task.metric,)]
    first, *others = (Question(model, task, ask, chosen, name, question_key(*same, name, more)) for name in names)
    return replace(first, others=tuple(others))


def _windows(model: "Model", task: "Task", singles: "Sequence[Address]", widths: Sequence[int]) -> "list[Address]":
    """List the joint windows whose layers are all among the single sites of the kinds that have no units."""
    from crosspatch.engine import windows
    from crosspatch.sites import KINDS, Site

    found: list[Address] = []
    layered = (site for site in singles if isinstance(site, Site) and site.layer is not None)
    there = {site for site in layered if KINDS[site.kind].unit is None}
    for width in widths:
        size = len(found)
        for kind in dict.fromkeys(site.kind for site in singles if site in there):
            places = list(dict.fromkeys(s.position for s in singles if s.kind == kind and s.position is not None))
            every = windows(model, task, kind, width, positions=places)
            found.extend(window for window in every if there.issuperset(window.members))
        if len(found) == size:
            raise BadInput(
                f"--window {width}: --sites has no {width} adjacent layers of one kind without heads or neurons, such "
                "as attn.out or mlp.out."
            )
    return found


def address_text(site: "Address") -> str:
    """Write a site, or a group with its members: two groups of one name are not the same."""
    from crosspatch.sites import Group

    return f"{site}: {', '.join(map(str, site.members))}" if isinstance(site, Group) else str(site)


def key_of(effects: "Effects") -> str:
    """Give the key of the question that saved effects answer."""
    settings = effects.provenance.get("settings", {})
    given = settings.get("model_hash"), settings.get("data_hash"), list(map(address_text, effects.sites))
    how = settings.get("ablation") or {}
    by = how.get("by", "")
    more = [by, how.get("seed", 0) if by == "resample" else 0, settings.get("to", ""), settings.get("through", "")]
    more += [settings["estimator_settings"], settings["verify"]] if "estimator" in settings else []
    return question_key(*given, effects.direction, effects.metric, more)


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
