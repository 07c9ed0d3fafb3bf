"""`patch`: the main job, from a model and a task to effects."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.core.provenance import here
from crosspatch.engine.ablation import ABLATIONS, Ablation
from crosspatch.engine.effects import Effects, ExampleView
from crosspatch.engine.keeping import run_kept, task_hash
from crosspatch.engine.plan import Plan
from crosspatch.engine.select import one_layout, select_sites, selection_text
from crosspatch.engine.sweep import Options, Sweep
from crosspatch.executors import pick
from crosspatch.metrics import Metric, get_metric
from crosspatch.models.hooks import has_foreign_hooks
from crosspatch.models.model import Model
from crosspatch.models.positions import require_positions
from crosspatch.sites import Address, Edge, members_of
from crosspatch.tasks import Corruption, Pair, Task, check_metric, key_positions, token_strings

SITES = "resid.pre, attn.out, mlp.out"
DIRECTIONS = ("denoise", "noise")
Sites = str | Sequence[Address]


@dataclass(frozen=True)
class Question:
    """What a sweep is asked: which sites (or groups), which way, by which metrics; an ablation instead of patches."""

    sites: Sites = SITES
    direction: str = "denoise"
    metrics: Sequence[str | Metric | None] = (None,)
    ablation: Ablation | None = None


def patch(
    model: Model,
    task: Task,
    *,
    sites: Sites = SITES,
    direction: str = "denoise",
    metric: str | Metric | None = None,
    options: Options | None = None,
) -> Effects:
    """Patch every site of a selection, one at a time, on every pair of the task; exactly, by running the model.

    `direction="denoise"` puts clean activations into the corrupt run (what is enough to restore the behaviour?),
    "noise" corrupt ones into the clean run (what does it need?). How the corrupt run is made is the task's own matter
    (`tasks.corrupt`). The metric is the task's own unless given. A `Group` among the sites is patched in one run.
    Ctrl-C ends early: the effects so far are returned, with a warning and NaN for what is missing.

    Raises:
        UnknownName, BadInput: a site, metric, answer or direction that this model or task does not have.
        NotFinite: the metric of a run is not a number.
        MemoryShortage: not even one patch fits in memory.

    >>> effects = patch(model, task, sites="resid.pre, attn.head[9|10, *]@end")  # doctest: +SKIP
    """
    return _answers(model, task, Question(sites, direction, (metric,)), options)[0]


def patch_metrics(
    model: Model,
    task: Task,
    metrics: Sequence[str | Metric],
    *,
    sites: Sites = SITES,
    direction: str = "denoise",
    options: Options | None = None,
) -> dict[str, Effects]:
    """Patch as `patch` does and read several metrics off each run: one sweep, one result a metric.

    Raises:
        BadInput: no metric, or two of one name; else as `patch` does.

    >>> found = patch_metrics(model, task, ["logit_diff", "prob", "kl"])  # doctest: +SKIP
    """
    chosen = [get_metric(metric) for metric in metrics]
    if not chosen or len({metric.name for metric in chosen}) < len(chosen):
        raise BadInput(f"metrics {[metric.name for metric in chosen]}: give at least one, each name once.")
    found = _answers(model, task, Question(sites, direction, chosen), options)
    return {metric.name: effects for metric, effects in zip(chosen, found, strict=True)}


def ablate(
    model: Model,
    task: Task,
    *,
    sites: Sites = SITES,
    by: str | Ablation = "mean",
    metric: str | Metric | None = None,
    options: Options | None = None,
) -> Effects:
    """Write zero, the mean or another prompt's activations into the clean run, at every site of a selection.

    `by` is "zero", "mean" (over the task's corrupt prompts of the same layout, at each position) or "resample" (one of
    them, at random); an `Ablation` says which prompts serve as reference, and the seed. Effects are normalised by the
    distance between the clean and the corrupt run, as in noising, whatever is written.

    Raises:
        UnknownName: no such ablation; else as `patch` does.
        BadInput: too few reference prompts of a layout.

    >>> effects = ablate(model, task, sites="attn.head, mlp.out", by="mean")  # doctest: +SKIP
    """
    ablation = by if isinstance(by, Ablation) else Ablation(by)
    if ablation.by not in ABLATIONS:
        raise UnknownName.of("ablation", ablation.by, ABLATIONS)
    return _answers(model, task, Question(sites, "noise", (metric,), ablation), options)[0]


def _answers(model: Model, task: Task, question: Question, options: Options | None) -> list[Effects]:
    """Run the sweep of a question; one result a metric."""
    began = time.perf_counter()
    options = options or Options()
    sweep = prepare(model, task, question, options=options)
    plan = sweep.plan()
    run_kept(sweep, task)
    run = {"sites": selection_text(question.sites), "seconds": time.perf_counter() - began}
    return [effects_of(sweep, task, plan, run, number=number) for number in range(len(sweep.metrics))]


def plan_patch(
    model: Model,
    task: Task,
    *,
    sites: Sites = SITES,
    direction: str = "denoise",
    metric: str | Metric | None = None,
    options: Options | None = None,
) -> Plan:
    """Return what `patch` would do with the same arguments, without running the model (the dry run).

    Raises:
        UnknownName, BadInput: as `patch` does.
    """
    return prepare(model, task, Question(sites, direction, (metric,)), options=options or Options()).plan()


def prepare(model: Model, task: Task, question: Question, *, options: Options) -> Sweep:
    """Check everything that can be wrong before the model runs, and set up the sweep."""
    if question.direction not in DIRECTIONS:
        raise BadInput(
            f"direction {question.direction!r}: use 'denoise' (clean activations into the corrupt run) or 'noise' (the "
            "other way)."
        )
    metrics = tuple(get_metric(metric if metric is not None else task.metric) for metric in question.metrics)
    for metric in metrics:
        check_metric(task, metric)
    for number, pair in enumerate(task.pairs):
        _check_tokens(model, number, pair)
    require_positions(model.module, model.anatomy, max(len(pair.clean) for pair in task.pairs))
    sites = select_sites(model, task, question.sites)
    _check_edges(sites, question.direction)
    pairs = tuple(pair for pair in task.pairs for _ in range(task.corruption.draws))
    return Sweep(model, pairs, sites, metrics, question.direction, options, task.corruption, question.ablation)


def _check_edges(sites: Sequence[Address], direction: str) -> None:
    cut = next((m for site in sites for m in members_of(site) if isinstance(m, Edge)), None)
    if cut is not None and direction != "noise":
        raise BadInput(f"{cut}: cutting attention is done in the clean run. Use direction='noise'.")


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


def effects_of(sweep: Sweep, task: Task, plan: Plan, run: dict[str, Any], *, number: int = 0) -> Effects:
    """Wrap the numbers of one of the sweep's metrics as Effects, with where they come from and what to beware of.

    Values of several noise draws of a pair are averaged.
    """
    model, metric, draws = sweep.model, sweep.metrics[number], task.corruption.draws
    raw, base, source = (_over_draws(v[number], draws) for v in (sweep.raw, sweep.base, sweep.source))
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
        "metric": metric.name,
        "metric_note": metric.note,
        "corruption": task.corruption.settings(),
        "ablation": sweep.ablation.settings() if sweep.ablation else None,
        "normalisation": "raw effect / mean over pairs of (source − base)",
        "seed": task.settings.get("seed"),
        "plan": asdict(plan) | {"forwards": plan.forwards, "forwards_saved": plan.forwards_saved},
        "packs": sweep.packs,
        "halvings": sweep.halvings,
        "threads": sweep.cuts.threads,
        "executor": pick(sweep.options.crew),
        "timings": {name: round(value, 3) for name, value in sweep.seconds.items()},
        "complete": sweep.complete,
        **run,
    }
    return Effects(
        sites=tuple(sweep.sites),
        raw=raw,
        base=base,
        source=source,
        direction=sweep.direction,
        metric=metric.name,
        metric_unit=metric.unit,
        model=model.name,
        task=task.name,
        layers=model.anatomy.layers,
        examples=tuple(view_of(model, pair, task.corruption) for pair in task.pairs),
        warnings=tuple(_warnings(sweep, task)),
        provenance=here(**settings),
    )


def _over_draws(values: Float32[np.ndarray, "*axes example_draw"], draws: int) -> Float32[np.ndarray, "*axes example"]:
    return values.reshape(*values.shape[:-1], -1, draws).mean(-1)


def view_of(model: Model, pair: Pair, corruption: Corruption) -> ExampleView:
    """Show a pair to a reader: tokens of both runs, answers, names; embeddings that are corrupted as «how»."""
    tokenizer = model.tokenizer
    right, wrong = (" | ".join("".join(token_strings(tokenizer, a)) for a in side) for side in (pair.right, pair.wrong))
    clean, corrupt = (token_strings(tokenizer, prompt) for prompt in (pair.clean, pair.corrupt))
    if corruption.of_embeddings:
        keys = key_positions(pair, corruption)
        corrupt = tuple(f"«{corruption.by}»" if i in keys else token for i, token in enumerate(clean))
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
