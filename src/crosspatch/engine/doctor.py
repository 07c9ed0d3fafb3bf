"""`doctor`: the identities that patching must satisfy, checked on this very model."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch

from crosspatch.core.errors import NotProved
from crosspatch.engine.patching import patch
from crosspatch.engine.sweep import Options
from crosspatch.models.anatomy import Point
from crosspatch.models.blocks import block_list
from crosspatch.models.hooks import attach, has_foreign_hooks
from crosspatch.models.model import Check, Model
from crosspatch.models.proof import LENGTH, distance, prove, proving_ids
from crosspatch.models.weights import reshard, untracked
from crosspatch.sites import Site
from crosspatch.tasks import Pair, Task

EQUAL = {4: 1e-4, 2: 0.1, 8: 1e-8}  # bytes of a parameter: relative error that counts as equal


def examine(model: Model) -> tuple[Check, ...]:
    """Return the checks of the model's parts, made again, and those of a small sweep: each is true of exact patching.

    Random prompts of seven tokens are used, so no task or tokenizer is needed. A check that fails is reported and not
    raised.
    """
    task = random_task(model)
    before = _state(model)
    checks = proved_again(model)
    if checks[-1].ok:  # else a sweep would compare wrong parts with the same wrong parts
        checks += [everything_patched(model, task), against_one_forward(model, task), padding(model)]
    after = _state(model)
    detail = "hooks, gradient flags, configuration and mode are as they were"
    checks.append(Check("model untouched", before == after, detail))
    return tuple(checks)


def proved_again(model: Model) -> list[Check]:
    """Run the proof of opening again: the parts that patching uses are still those of the module as it is now."""
    try:
        anatomy, again = prove(model.module, model.anatomy)
        pairs = [
            (name.name, getattr(anatomy, name.name), getattr(model.anatomy, name.name)) for name in fields(anatomy)
        ]
        # Of refused kinds only the names count: a kind that is gone can be missed for another reason.
        moved = [name for name, now, then in pairs if (set(now) != set(then) if name == "refused" else now != then)]
    except (
        NotProved,
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
    ) as error:  # a part is elsewhere
        again, moved = (), [str(error)]
    checks = {check.name: check for check in (*model.checks, *again)}
    detail = f"no longer as opened: {', '.join(moved)}" if moved else "as opened"
    return [*checks.values(), Check("parts proved again", not moved, detail)]


def random_task(model: Model) -> Task:
    """Return two pairs of random tokens of different lengths, that differ in the middle."""
    ids, vocab = proving_ids(model.anatomy, torch.device("cpu")).tolist(), model.vocab_size
    pairs = []
    for row, length in zip(ids, (LENGTH, LENGTH - 2), strict=True):
        clean = row[:length]
        corrupt = [*clean[:2], (clean[2] + 1) % vocab, *clean[3:]]
        right, wrong = ((1 % vocab,),), ((2 % vocab,),)
        pairs.append(Pair(tuple(clean), tuple(corrupt), right, wrong, {"end": length - 1}))
    return Task("random tokens", tuple(pairs))


def everything_patched(model: Model, task: Task) -> Check:
    """The stream patched at every position at once is the source run."""
    sites = [Site("resid.pre", layer, None, "all") for layer in (0, model.anatomy.layers - 1)]
    effects = patch(model, task, sites=sites)
    error = float(np.abs(effects.raw - effects.gap).max() / max(np.abs(effects.gap).max(), 1e-9))
    return Check("patch all = source run", error <= _tolerance(model), f"largest relative error {error:.1e}")


def against_one_forward(model: Model, task: Task) -> Check:
    """A sample of patches equals one forward a patch through plain hooks."""
    layers = sorted({0, model.anatomy.layers // 2, model.anatomy.layers - 1})
    kinds = [k for k in ("resid.pre", "attn.head", "attn.v", "attn.out", "mlp.out") if k in model.anatomy.kinds()]
    units = model.anatomy.units()
    places = [(kind, layer, at) for kind in kinds for layer in layers for at in (2, "end")]
    sites = [Site(kind, layer, 0 if kind in units else None, at) for kind, layer, at in places]
    effects = patch(model, task, sites=sites, options=Options(tokens=64))
    slow = np.array([[one_forward(model, pair, site) for pair in task.pairs] for site in sites])
    # Where nothing has much effect, what is left is the rounding of the logits themselves.
    scale = max(float(np.abs(slow).max()), float(np.abs(effects.gap).max()), 1e-2 * _logit_scale(model, task.pairs[0]))
    error = float(np.abs(effects.raw - slow).max() / scale)
    detail = f"{slow.size} patches of {', '.join(kinds)}: largest relative error {error:.1e}"
    return Check("sweep = one forward a patch", error <= _tolerance(model), detail)


def one_forward(model: Model, pair: Pair, site: Site) -> float:
    """Return the raw denoising effect of one patch on the logit difference, by plain hooks and full forwards."""
    at = len(pair.clean) - 1 if site.position == "end" else int(site.position or 0)
    inside = Point("", "input") if site.kind == "resid.pre" else model.anatomy.points[site.kind]
    block, columns, kept = block_list(model.module, model.anatomy)[site.layer or 0], inside.columns(site.unit), {}

    def read(value: torch.Tensor) -> None:
        kept["value"] = value.reshape(-1, value.shape[-1])[at, columns].clone()

    def put(value: torch.Tensor) -> torch.Tensor:
        flat = value.clone().reshape(-1, value.shape[-1])
        flat[at, columns] = kept["value"]
        return flat.reshape(value.shape)

    base = _difference(model, pair.corrupt, pair)
    for visit, prompt in ((read, pair.clean), (put, pair.corrupt)):
        handle = attach(block, inside, visit)
        try:
            patched = _difference(model, prompt, pair)
        finally:
            handle.remove()
    return patched - base


def _logits(model: Model, prompt: Sequence[int]) -> torch.Tensor:
    ids = torch.tensor([prompt], device=model.device)
    with untracked(model.module):
        return model.module(input_ids=ids, use_cache=False).logits[0, -1].float()


def _logit_scale(model: Model, pair: Pair) -> float:
    return float(_logits(model, pair.clean).abs().max())


def _difference(model: Model, prompt: Sequence[int], pair: Pair) -> float:
    logits = _logits(model, prompt)
    return float(logits[pair.right[0][0]] - logits[pair.wrong[0][0]])


def padding(model: Model) -> Check:
    """The model's own forward honours its attention mask on the right side, as it must in any batch.

    On the left the mask alone is not enough for most models (position ids shift); crosspatch never pads on the left.
    """
    ids = proving_ids(model.anatomy, model.device)[:1]
    padded = torch.cat([ids, torch.zeros_like(ids[:, :3])], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids[:, :3])], dim=1)
    with untracked(model.module):
        alone = model.module(input_ids=ids, use_cache=False).logits[:, -1]
        beside = model.module(input_ids=padded, attention_mask=mask, use_cache=False).logits[:, ids.shape[1] - 1]
    error = distance(beside, alone)
    detail = f"right padding with a mask: largest relative error {error:.1e}"
    return Check("padding honoured", error <= _tolerance(model), detail)


def _tolerance(model: Model) -> float:
    return EQUAL.get(next(model.module.parameters()).element_size(), 0.1)


def _state(model: Model) -> tuple[object, ...]:
    module = model.module
    reshard(module)  # else weights that FSDP has at hand would count as others than those that it has not
    flags = tuple((name, p.requires_grad, p.grad is None) for name, p in module.named_parameters())
    overridden = tuple(name for name, m in module.named_modules() if "forward" in m.__dict__)
    config = getattr(module, "config", None)
    kernel = getattr(config, "_attn_implementation", None)
    return has_foreign_hooks(module), flags, overridden, kernel, module.training
