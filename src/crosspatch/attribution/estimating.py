"""`attribute`: estimate a whole sweep from a few gradients, and verify the sites that it points to."""

import time
from dataclasses import dataclass, replace

import numpy as np

from crosspatch.attribution.estimate import Estimate
from crosspatch.attribution.estimators import Estimator, estimator
from crosspatch.attribution.sweep import EstimateSweep, like
from crosspatch.core.errors import BadInput
from crosspatch.engine import Effects, Options, patch
from crosspatch.engine.keeping import run_kept
from crosspatch.engine.patching import SITES, Question, Sites, effects_of, prepare
from crosspatch.engine.select import select_single, selection_text
from crosspatch.metrics import Metric
from crosspatch.models.model import Model
from crosspatch.tasks import Task

NO_GRADIENT = ("attn.pattern",)


@dataclass(frozen=True)
class Verify:
    """Say what is verified: the `top` sites by estimate, and `drawn` others at random, as a check of what was missed.

    `drawn` is as many as `top` unless given.
    """

    top: int
    drawn: int | None = None
    seed: int = 0


def attribute(
    model: Model,
    task: Task,
    *,
    sites: Sites = SITES,
    by: str | Estimator = "atp",
    direction: str = "denoise",
    metric: str | Metric | None = None,
    preset: str | None = None,
    steps: int | None = None,
    points: str | None = None,
    verify: int | Verify = 0,
    checkpoint: bool = False,
    options: Options | None = None,
) -> Estimate:
    """Estimate what `patch` would measure, at all sites at once, from gradients of the run that is patched.

    | `by` | what | cost beside the two runs |
    |---|---|---|
    | "atp" | change · gradient (attribution patching) | one backward |
    | "atp-qk" | queries and keys act through the softmax itself | + two attention calls a layer |
    | "atp-drop" | GradDrop: magnitudes, each block dropped in turn: paths cannot cancel | layers / 2 backwards |
    | "atp*" | both (Kramár et al. 2024) | both |
    | "ig" | gradients averaged over `steps` prompts between base and source | steps forwards and backwards |
    | "ig-activations" | the same for each kind in each layer | the same for each kind and layer |
    | "relp" | gradients by rules of relevance propagation, `preset` ln, relp, repo, attnlrp or cp | one backward |

    `direction` is that of `patch`: the gradient is taken in the run that is patched, the corrupt one for "denoise".
    `points` says where the steps lie ("left", "right", "midpoint"). With `verify=k` the k sites of the largest mean
    absolute estimate, and as many drawn from the rest, are patched exactly. `checkpoint` keeps only the stream between
    blocks, and runs each block twice: less memory, the same numbers. In half precision sums are in float32.

    Raises:
        UnknownName, BadInput: as `patch` does; an estimator, preset or setting that does not exist; a metric without
            gradient; a group of sites, or a kind without gradient.
        NotProved: the model's attention, norms or activations are not understood well enough for the estimator.
        NotFinite, MemoryShortage: as `patch` does.

    >>> guess = attribute(model, task, sites="attn.head, mlp.out", by="relp", verify=20)  # doctest: +SKIP
    """
    how = estimator(by, preset=preset, steps=steps, points=points)
    wanted = verify if isinstance(verify, Verify) else Verify(verify)
    _check_verify(wanted)
    question, began = Question(sites, direction, (metric,)), time.perf_counter()
    sweep = estimate_sweep(model, task, question, how, options=options, checkpoint=checkpoint)
    plan = sweep.plan()
    run_kept(sweep, task)
    run = {"sites": selection_text(sites), "seconds": time.perf_counter() - began, "verified": 0, "verify": wanted.top}
    run |= {"estimator": how.name, "estimator_title": how.title, "estimator_settings": how.settings()}
    run |= {"signed": how.signed, "checkpoint": checkpoint}
    found = estimate_of(effects_of(sweep, task, plan, run))
    if not wanted.top or not sweep.complete:
        return found
    return verified(model, task, found, wanted, options=options, metric=metric)


def estimate_sweep(
    model: Model,
    task: Task,
    question: Question,
    how: Estimator,
    *,
    options: Options | None = None,
    checkpoint: bool = False,
) -> EstimateSweep:
    """Check everything that can be wrong before the model runs, and set up the estimates. Raises as `attribute`."""
    single = select_single(model, task, question.sites)
    lost = next((site for site in single if site.kind in NO_GRADIENT), None)
    if lost is not None:
        raise BadInput(
            f"{lost}: attention patterns are not estimated. Patch them exactly, or ask for attn.q and attn.k."
        )
    if model.together:
        raise BadInput(
            "this model is held by several processes together, and gradients through it are not taken. Open it on one "
            "device (or with device_map), or patch exactly."
        )
    scored = any(site.kind in ("attn.q", "attn.k") for site in single)
    if how.qk and scored and not model.anatomy.packed:
        raise BadInput(
            f"by={how.name!r} on this {model.anatomy.family} model: its attention is its own code, so queries and keys "
            "cannot be taken through the softmax. Use by='atp' or 'atp-drop', or leave attn.q and attn.k out."
        )
    plain = prepare(model, task, replace(question, sites=single), options=options or Options())
    return like(plain, how if scored or not how.qk else replace(how, qk=False), checkpoint=checkpoint)


def estimate_of(effects: Effects) -> Estimate:
    """Turn a sweep's numbers into an estimate; magnitudes are laid along the gap, so that shares of it are positive."""
    names = Effects.__dataclass_fields__
    found = Estimate(**{name: getattr(effects, name) for name in names})
    if found.signed or not found.mean_gap < 0:
        return found
    return replace(found, raw=-found.raw)


def verified(
    model: Model,
    task: Task,
    estimate: Estimate,
    wanted: Verify,
    *,
    options: Options | None = None,
    metric: str | Metric | None = None,
) -> Estimate:
    """Patch exactly the sites with the largest scores, and some drawn from the rest; return the estimate with them."""
    order = estimate.order()
    top, rest = order[: wanted.top], order[wanted.top :]
    count = min(len(rest), len(top) if wanted.drawn is None else wanted.drawn)
    drawn = np.random.default_rng(wanted.seed).permutation(len(rest))[:count]
    chosen = [estimate.sites[i] for i in (*top, *(rest[j] for j in drawn))]
    plain = replace(
        options or Options(), journal=None if options is None or options.journal is None else options.journal / "exact"
    )
    exact = patch(
        model, task, sites=chosen, direction=estimate.direction, metric=metric or estimate.metric, options=plain
    )
    # Interrupted here, the whole is unfinished: resumed, the journals give what was done.
    whole = exact.provenance["settings"]["complete"]
    settings = {**estimate.provenance["settings"], "verified": len(top), "complete": whole}
    about = {**estimate.provenance, "settings": settings}
    return replace(estimate, provenance=about, exact=exact)


def _check_verify(wanted: Verify) -> None:
    if wanted.top < 0 or (wanted.drawn or 0) < 0:
        raise BadInput(f"verify {wanted.top} top and {wanted.drawn} other sites: give numbers from 0.")
