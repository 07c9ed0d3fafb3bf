"""One patch of one site of one family, by hand: the table of the zoo says where each kind of site lives."""

from functools import cache

import torch
from torch import Tensor, nn

from crosspatch.sites import Site
from crosspatch.tasks import Pair
from naive.patching import difference, patched, read, run
from zoo import ZOO, module_of

Spot = tuple[nn.Module, str]
Ids = tuple[int, ...]


def spot_of(name: str, kind: str, layer: int, dtype: torch.dtype) -> Spot:
    """Return the module and side that carry a kind; the sum of stream and attention is written through attention."""
    beast, module = ZOO[name], module_of(name, dtype)
    if kind == "embed":
        return module.get_submodule(beast.embedding), "out"
    block = module.get_submodule(f"{beast.blocks}.{layer}")
    if kind in ("resid.pre", "resid.post"):
        return block, "in" if kind == "resid.pre" else "out"
    path, side = beast.spots[{"resid.mid": "attn.out", "attn.pattern": "attn.head"}.get(kind, kind)]
    return block.get_submodule(path), side


@cache
def activation(name: str, kind: str, layer: int, ids: Ids, dtype: torch.dtype) -> Tensor:
    """Return a kind's activation in one prompt, `[pos, width]`."""
    return read(module_of(name, dtype), ids, *spot_of(name, kind, layer, dtype))


@cache
def base_difference(name: str, ids: Ids, dtype: torch.dtype) -> float:
    """Return the logit difference of an unpatched prompt."""
    return difference(run(module_of(name, dtype), ids))


@cache
@torch.no_grad()
def patterns(name: str, ids: Ids, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the attention patterns `[head, query, key]` that the model itself gives with its eager kernel."""
    module = module_of(name, dtype, "eager")
    return tuple(layer[0] for layer in module(input_ids=torch.tensor([ids]), output_attentions=True).attentions)


def heads_under(name: str, layer: int, source: Ids, base: Ids, dtype: torch.dtype) -> Tensor:
    """Return what the heads give when the source's pattern weighs the base's values, `[pos, width]`."""
    beast, pattern = ZOO[name], patterns(name, source, dtype)[layer]
    values = activation(name, "attn.v", layer, base, dtype)
    each = len(pattern) // len(beast.v)
    return torch.cat([pattern[h] @ values[:, beast.columns("attn.v", h // each)] for h in range(len(pattern))], dim=1)


def value_for(name: str, site: Site, source: Ids, base: Ids, dtype: torch.dtype) -> Tensor:
    """Return what must be written at a site's spot, `[pos, width]`."""
    layer = site.layer or 0
    if site.kind == "attn.pattern":
        return heads_under(name, layer, source, base, dtype)
    if site.kind == "resid.mid":
        parts = [(kind, ids) for kind, ids in (("resid.pre", source), ("attn.out", source), ("resid.pre", base))]
        pre, added, present = (activation(name, kind, layer, ids, dtype) for kind, ids in parts)
        return pre + added - present
    return activation(name, site.kind, layer, source, dtype)


def naive_effect(
    name: str, site: Site, pair: Pair, *, direction: str = "denoise", dtype: torch.dtype = torch.float32
) -> float:
    """Patch one site of one pair in one forward; the raw effect on the logit difference, NaN where it has no place."""
    source, base = (pair.clean, pair.corrupt) if direction == "denoise" else (pair.corrupt, pair.clean)
    place, length = site.position, len(base)
    index = pair.names[place] if isinstance(place, str) and place != "all" else place
    if index != "all" and not -length <= index < length:
        return float("nan")
    kind = "attn.head" if site.kind == "attn.pattern" else site.kind
    at = range(length) if index == "all" else [index % length], ZOO[name].columns(kind, site.unit)
    value = value_for(name, site, source, base, dtype)
    spot = spot_of(name, site.kind, site.layer or 0, dtype)
    return difference(patched(module_of(name, dtype), base, spot, value, at)) - base_difference(name, base, dtype)
