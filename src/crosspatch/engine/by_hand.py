"""Patches by hand: plain forwards with one hook, as the field's libraries run them. Slow, and easy to believe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosspatch.core.errors import BadInput
from crosspatch.engine.cells import patched_positions
from crosspatch.engine.plan import bytes_per_token, memory_budget
from crosspatch.engine.readout import Targets, targets_of
from crosspatch.metrics import Metric, Readout, get_metric
from crosspatch.models.anatomy import Point
from crosspatch.models.blocks import block_list
from crosspatch.models.hooks import attach
from crosspatch.models.model import Model
from crosspatch.models.runs import Prompts
from crosspatch.models.weights import untracked
from crosspatch.sites import Site
from crosspatch.tasks import Task

STREAM = {"resid.pre": Point("", "input"), "resid.post": Point("", "output")}


@dataclass(frozen=True)
class ByHand:
    """A task as one batch of base (corrupt) prompts, padded on the right, and what the clean prompts have at the sites.

    `ends` is the last position of each prompt, the one that is read; `source[kind, layer]` is `[pair, pos, width]`.
    """

    model: Model
    task: Task
    metric: Metric
    targets: Targets
    ids: Int[Tensor, "pair pos"]
    ends: Int[Tensor, " pair"]
    source: Mapping[tuple[str, int], Float[Tensor, "pair pos width"]]


def by_hand(model: Model, task: Task, sites: Sequence[Site]) -> ByHand:
    """Lay a task out for plain forwards, and run its clean prompts once.

    The metric is logit_diff, or right_logit for a task without wrong answers.

    Raises:
        BadInput: a site that is no single module's input or output, or an answer of several tokens.
    """
    for site in sites:
        if site.layer is None or site.kind not in (*STREAM, *model.anatomy.points):
            offered = ", ".join((*STREAM, *model.anatomy.points))
            raise BadInput(
                f"{site} is no single module's input or output, which one hook could write. Compare {offered}."
            )
    targets = targets_of(task.pairs, model.device)
    if targets.reads > 1:
        raise BadInput("an answer has several tokens: speed is compared on a task whose answers are single tokens.")
    clean, base = (
        Prompts.of([getattr(pair, side) for pair in task.pairs], model.device) for side in ("clean", "corrupt")
    )
    metric = get_metric("logit_diff" if all(pair.wrong for pair in task.pairs) else "right_logit")
    ends = torch.tensor(clean.lengths, device=model.device) - 1
    hand = ByHand(model, task, metric, targets, base.ids, ends, {})
    seen: dict[tuple[str, int], Tensor] = {}
    wanted = sorted({(site.kind, site.layer or 0) for site in sites})
    hooks = [attach(_block(model, layer), _point(model, kind), _keep(seen, (kind, layer))) for kind, layer in wanted]
    try:
        _values(hand, clean.ids, None)
    finally:
        for hook in hooks:
            hook.remove()
    return replace(hand, source={key: value.reshape(*clean.ids.shape, -1) for key, value in seen.items()})


def one_forward(hand: ByHand, sites: Sequence[Site]) -> Float[Tensor, "site pair"]:
    """Return the metric after each patch, the field's way: one forward a site on all pairs, with all logits."""
    return torch.cat([_patched(hand, [site], None) for site in sites])


def one_batch(hand: ByHand, sites: Sequence[Site]) -> Float[Tensor, "site pair"]:
    """Return the metric after each patch: one batch for a kind and layer, if memory allows, and last logits only."""
    budget = hand.model.agreed(memory_budget(None, hand.ids.device))
    at_once = max(1, budget // bytes_per_token(hand.model) // hand.ids.numel())
    keep = hand.ends.unique() if "logits_to_keep" in signature(hand.model.module.forward).parameters else None
    found: dict[Site, Tensor] = {}
    for kind, layer in dict.fromkeys((site.kind, site.layer) for site in sites):
        group = [site for site in sites if (site.kind, site.layer) == (kind, layer)]
        for part in (group[first : first + at_once] for first in range(0, len(group), at_once)):
            found |= dict(zip(part, _patched(hand, part, keep), strict=True))
    return torch.stack([found[site] for site in sites])


def _block(model: Model, layer: int) -> nn.Module:
    return block_list(model.module, model.anatomy)[layer]


def _point(model: Model, kind: str) -> Point:
    return STREAM.get(kind) or model.anatomy.points[kind]


def _keep(seen: dict[tuple[str, int], Tensor], key: tuple[str, int]) -> Callable[[Tensor], None]:
    def see(value: Tensor) -> None:
        seen[key] = value.clone()

    return see


def _patched(hand: ByHand, sites: Sequence[Site], keep: Int[Tensor, " column"] | None) -> Float[Tensor, "site pair"]:
    """Run one forward with a row for every site and pair; the sites share their kind and layer."""
    kind, layer = sites[0].kind, sites[0].layer or 0
    point, source, count = _point(hand.model, kind), hand.source[kind, layer], len(hand.ids)
    spots = [
        (number * count + index, index, position, number)
        for number, site in enumerate(sites)
        for index, pair in enumerate(hand.task.pairs)
        for position in patched_positions(site.position, pair, len(pair.clean)) or ()
    ]
    rows, pairs, positions, numbers = (
        torch.tensor(spots, dtype=torch.long, device=hand.ids.device).view(-1, 4, 1).unbind(1)
    )
    every = torch.arange(source.shape[-1], device=hand.ids.device)
    columns = torch.stack([every[point.columns(site.unit)] for site in sites])[numbers[:, 0]]
    values = source[pairs, positions, columns]

    def put(value: Tensor) -> Tensor:
        changed = value.clone(memory_format=torch.contiguous_format)
        changed.view(len(sites) * count, -1, value.shape[-1])[rows, positions, columns] = values
        return changed

    hook = attach(_block(hand.model, layer), point, put)
    try:
        return _values(hand, hand.ids.repeat(len(sites), 1), keep).view(len(sites), count)
    finally:
        hook.remove()


def _values(hand: ByHand, ids: Int[Tensor, "row pos"], keep: Int[Tensor, " column"] | None) -> Float[Tensor, " row"]:
    """Return the metric of a plain forward; `keep` lists the positions whose logits are computed, None means all."""
    times = len(ids) // len(hand.ids)
    ends, targets = hand.ends.repeat(times), hand.targets
    unequal = bool((ends != ids.shape[1] - 1).any())
    mask = (torch.arange(ids.shape[1], device=ids.device) <= ends[:, None]).long() if unequal else None
    options = {} if keep is None else {"logits_to_keep": keep}
    with untracked(hand.model.module):
        logits = hand.model.module(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
        column = ends if keep is None else torch.searchsorted(keep, ends)
        logits = logits[torch.arange(len(ids), device=ids.device), column].float()
    right, wrong = (given[:, 0].repeat(times, 1) for given in (targets.right, targets.wrong))
    masks = (given[:, 0].repeat(times, 1) for given in (targets.right_mask, targets.wrong_mask))
    right_mask, wrong_mask = masks
    return hand.metric.score(Readout(logits.gather(1, right), logits.gather(1, wrong), right_mask, wrong_mask, right))
