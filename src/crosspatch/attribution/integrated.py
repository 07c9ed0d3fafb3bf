"""Integrated gradients: gradients averaged along the way from the base run to the source run."""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.estimators import Estimator
from crosspatch.attribution.gradients import Estimating
from crosspatch.attribution.opened import Opened
from crosspatch.attribution.places import STREAM, Key, Spots, by_unit
from crosspatch.engine.readout import Scorer
from crosspatch.engine.writing import CARRIER
from crosspatch.models.blocks import at_least_single
from crosspatch.models.hooks import Visit


def over_inputs(opened: Opened, scorer: Scorer, estimating: Estimating, how: Estimator) -> None:
    """Average gradients over prompts whose embeddings lie between base and source (Hanna et al. 2024, EAP-IG).

    The change of a node is the whole of source − base. For what enters the first block, estimates add up to the gap of
    the metric (completeness, Sundararajan et al. 2017), as the steps become many.
    """
    base, change = opened.streams[0], opened.stream_change(0)
    opened.fix_changes(estimating.places)
    for alpha in how.alphas:
        opened.forward((base + alpha * change).to(base), keep=True)
        _, gradient = opened.cotangent(scorer, opened.streams[-1])
        estimating.run(gradient, share=1 / how.steps)


def over_activations(
    opened: Opened, scorer: Scorer, places: Mapping[Key, Spots], out: Float[Tensor, " cell"], how: Estimator
) -> None:
    """Average gradients over runs in which one kind of one layer lies between base and source at all positions.

    As Marks et al. 2024 (sparse feature circuits). The estimates of a kind's nodes in a layer add up to the effect of
    patching all of them at once.
    """
    layers = opened.bench.anatomy.layers
    for key, spots in places.items():
        start, change = _ends(opened, key)
        slope = torch.zeros_like(change)
        for alpha in how.alphas:
            leaf = (start + alpha * change.to(start)).to(start).detach().requires_grad_()
            with torch.enable_grad():
                hidden = leaf if key.kind == STREAM else _written(opened, key, leaf)
                for layer in range(key.layer if key.kind == STREAM else key.layer + 1, layers):
                    hidden = opened.recorder.record(layer, hidden).leaving
                values = scorer(opened.reads(hidden), torch.arange(len(opened.local.numbers), device=hidden.device))
                (gradient,) = torch.autograd.grad(values[0].sum(), leaf)
            slope += at_least_single(gradient) / how.steps
        table = by_unit(opened.bench.anatomy, key.kind, (slope * change)[None])
        cells, found = spots.read(table)
        out[cells.to(out.device)] += found[0].to(out)


def _ends(opened: Opened, key: Key) -> tuple[Float[Tensor, "token width"], Float[Tensor, "token width"]]:
    """Return a kind's activation in the base run and its change to the source run."""
    if key.kind == STREAM:
        return opened.streams[key.layer], opened.stream_change(key.layer)
    carrier = CARRIER.get(key.kind, key.kind)
    tape = opened.recorder.record(key.layer, opened.streams[key.layer], kinds=[carrier])
    start = tape.seen[carrier].flatten(0, -2)
    return start + opened.streams[key.layer] if key.kind in CARRIER else start, opened.change(key.kind, key.layer, tape)


def _written(opened: Opened, key: Key, leaf: Tensor) -> Tensor:
    """Run a block with a kind's activation replaced, in its units' columns only, since others belong to other kinds."""
    entering, kind = opened.streams[key.layer], CARRIER.get(key.kind, key.kind)
    value = leaf - entering if key.kind in CARRIER else leaf
    columns = opened.bench.anatomy.points[kind].columns(None)
    writes: dict[str, Visit] = {kind: partial(_replaced, value, columns)}
    return opened.recorder.record(key.layer, entering, writes=writes).leaving


def _replaced(value: Tensor, columns: slice | list[int], present: Tensor) -> Tensor:
    out = present.clone()
    out[..., columns] = value.reshape(present.shape)[..., columns]
    return out
