"""`patch`: the main job, from a model and a task to effects."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from crosspatch.core.errors import BadInput
from crosspatch.core.provenance import here
from crosspatch.engine.effects import Effects, ExampleView
from crosspatch.engine.plan import Plan
from crosspatch.engine.select import one_layout, select_sites, selection_text
from crosspatch.engine.sweep import Options, Sweep
from crosspatch.metrics import Metric, get_metric
from crosspatch.models.hooks import has_foreign_hooks
from crosspatch.models.model import Model
from crosspatch.sites import Site
from crosspatch.tasks import Pair, Task, check_metric, token_strings

SITES = "resid.pre, attn.out, mlp.out"
DIRECTIONS = ("denoise", "noise")


def patch(
    model: Model,
    task: Task,
    *,
    sites: str | Sequence[Site] = SITES,
    direction: str = "denoise",
    metric: str | Metric | None = None,
    options: Options | None = None,
) -> Effects:
    """Patch every site of a selection, one at a time, on every pair of the task; exactly, by running the model.

    `direction="denoise"` puts clean activations into the corrupt run (what is enough to restore the behaviour?),
    "noise" corrupt ones into the clean run (what does it need?). The metric is the task's own unless given.
    Ctrl-C ends early: the effects so far are returned, with a warning and NaN for what is missing.

    Raises:
        UnknownName, BadInput: a site, metric, answer or direction that this model or task does not have.
        NotFinite: the metric of a run is not a number.
        MemoryShortage: not even one patch fits in memory.

    >>> effects = patch(model, task, sites="resid.pre, attn.head[9|10, *]@end")  # doctest: +SKIP
    """
    began = time.perf_counter()
    options = options or Options()
    sweep = prepare(model, task, sites=sites, direction=direction, metric=metric, options=options)
    plan = sweep.plan()
    if options.resume is not None:
        _continue(sweep, options.resume, model, task)
    sweep.run()
    return effects_of(sweep, task, plan, {"sites": selection_text(sites), "seconds": time.perf_counter() - began})


def plan_patch(
    model: Model,
    task: Task,
    *,
    sites: str | Sequence[Site] = SITES,
    direction: str = "denoise",
    metric: str | Metric | None = None,
    options: Options | None = None,
) -> Plan:
    """Return what `patch` would do with the same arguments, without running the model (the dry run).

    Raises:
        UnknownName, BadInput: as `patch` does.
    """
    return prepare(model, task, sites=sites, direction=direction, metric=metric, options=options or Options()).plan()


def prepare(
    model: Model,
    task: Task,
    *,
    sites: str | Sequence[Site],
    direction: str,
    metric: str | Metric | None,
    options: Options,
) -> Sweep:
    """Check everything that can be wrong before the model runs, and set up the sweep."""
    if direction not in DIRECTIONS:
        raise BadInput(
            f"direction {direction!r}: use 'denoise' (clean activations into the corrupt run) or 'noise' (the other "
            "way)."
        )
    chosen = get_metric(metric if metric is not None else task.metric)
    check_metric(task, chosen)
    for number, pair in enumerate(task.pairs):
        _check_tokens(model, number, pair)
    return Sweep(model, task.pairs, select_sites(model, task, sites), chosen, direction, options)


def _check_tokens(model: Model, number: int, pair: Pair) -> None:
    answers = (token for answer in (*pair.right, *pair.wrong) for token in answer)
    highest = max((*pair.clean, *pair.corrupt, *answers))
    if highest >= model.vocab_size:
        raise BadInput(
            f"example {number} has token id {highest}, but {model.name} knows ids 0..{model.vocab_size - 1}. The task "
            "was made with another tokenizer: make it with this model's own."
        )
    if pair.clean == pair.corrupt:
        raise BadInput(f"example {number}: the clean and the corrupt prompt are the same, so nothing can be patched.")


def _continue(sweep: Sweep, earlier: Effects, model: Model, task: Task) -> None:
    """Take over what an interrupted sweep of the same question has done."""
    asked = (sweep.sites, sweep.direction, sweep.metric.name, task_hash(task), model.fingerprint)
    settings = earlier.provenance.get("settings", {})
    had = (earlier.sites, earlier.direction, earlier.metric, settings.get("data_hash"), settings.get("model_hash"))
    names = ("sites", "direction", "metric", "task", "model")
    differing = [name for name, a, b in zip(names, asked, had, strict=True) if a != b]
    if differing:
        raise BadInput(
            f"cannot resume: the earlier result has other {', '.join(differing)}. Give the same, or start anew."
        )
    sweep.raw[:], sweep.base[:], sweep.source[:] = earlier.raw, earlier.base, earlier.source


def effects_of(sweep: Sweep, task: Task, plan: Plan, run: dict[str, Any]) -> Effects:
    """Wrap the sweep's numbers as Effects, with where they come from and what to be careful about."""
    model = sweep.model
    settings = {
        "model": model.name,
        "model_hash": model.fingerprint,
        "family": model.anatomy.family,
        "dtype": str(next(model.module.parameters()).dtype).removeprefix("torch."),
        "device": str(model.device),
        "task": task.name,
        "task_settings": dict(task.settings),
        "data_hash": task_hash(task),
        "n": len(task.pairs),
        "direction": sweep.direction,
        "metric": sweep.metric.name,
        "metric_note": sweep.metric.note,
        "normalisation": "raw effect / mean over pairs of (source − base)",
        "seed": task.settings.get("seed"),
        "plan": asdict(plan) | {"forwards": plan.forwards, "forwards_saved": plan.forwards_saved},
        "packs": sweep.packs,
        "halvings": sweep.halvings,
        "timings": {name: round(value, 3) for name, value in sweep.seconds.items()},
        "complete": sweep.complete,
        **run,
    }
    return Effects(
        sites=tuple(sweep.sites),
        raw=sweep.raw,
        base=sweep.base,
        source=sweep.source,
        direction=sweep.direction,
        metric=sweep.metric.name,
        metric_unit=sweep.metric.unit,
        model=model.name,
        task=task.name,
        layers=model.anatomy.layers,
        examples=tuple(_view(model, pair) for pair in task.pairs),
        warnings=tuple(_warnings(sweep, task)),
        provenance=here(**settings),
    )


def task_hash(task: Task) -> str:
    """Return a short hash of the pairs' tokens and answers."""
    text = repr([(p.clean, p.corrupt, p.right, p.wrong, sorted(p.names.items())) for p in task.pairs])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _view(model: Model, pair: Pair) -> ExampleView:
    tokenizer = model.tokenizer
    right, wrong = (" | ".join("".join(token_strings(tokenizer, a)) for a in side) for side in (pair.right, pair.wrong))
    clean, corrupt = (token_strings(tokenizer, prompt) for prompt in (pair.clean, pair.corrupt))
    return ExampleView(clean, corrupt, right, wrong, dict(pair.names))


def _warnings(sweep: Sweep, task: Task) -> list[str]:
    found = []
    if not sweep.complete:
        left = int(np.isnan(sweep.raw).sum())
        found.append(f"Interrupted: {left:,} of {sweep.raw.size:,} patches are missing. Resume to run the rest.")
    if not one_layout(task) and any(isinstance(site.position, int) and site.position >= 0 for site in sweep.sites):
        found.append(
            "Prompts have different lengths or layouts, so one index means different words in them: "
            "prefer named positions."
        )
    hooked = has_foreign_hooks(sweep.model.module)
    if hooked:
        found.append(
            f"Forward hooks of your own are on {hooked[0] or 'the model'}{' and others' if len(hooked) > 1 else ''}: "
            "they act during the sweep too, on packed tokens [1, token, width]."
        )
    if next(sweep.model.module.parameters()).element_size() < 4:
        found.append(
            "The model runs in half precision: effects below about 1 % of the gap may be rounding. "
            "The metric is read in float32."
        )
    return found
