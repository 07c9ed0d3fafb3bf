"""Extent: how many layers and units a model has, and the layers and units that a pattern means in it."""

from collections.abc import Mapping
from dataclasses import dataclass

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.sites.items import Items, Span, count_range, join_items, resolve_index
from crosspatch.sites.site import TOGETHER, kind_of

_WORDS = {"head": "heads", "kv_head": "key-value heads", "neuron": "neurons"}
_HINT = "List the sites of a model with `crosspatch sites MODEL`."


@dataclass(frozen=True, slots=True)
class Extent:
    """Hold how many layers a model has, and how many units of each kind: {"attn.q": 4, "attn.k": 1, …}."""

    layers: int
    units: Mapping[str, int]


def list_layers(kind: str, items: Items, extent: Extent) -> tuple[int | None, ...]:
    """List the layers that the items mean, (None,) for a kind without layers.

    Raises UnknownName for a layer that the model lacks, BadInput when the items list none.
    """
    if not kind_of(kind).has_layers:
        return (None,)
    allowed = f"this model has layers {count_range(extent.layers)}."
    return _numbers(items, extent.layers, shape=f"{kind}[{{}}]", allowed=allowed)


def list_units(kind: str, items: Items, extent: Extent) -> tuple[int | None, ...]:
    """List the units that the items mean; None is the whole width.

    Raises UnknownName for a unit that the model lacks, BadInput when the items list none or their number is not known.
    """
    unit = kind_of(kind).unit
    if unit is None or items == (TOGETHER,):
        return (None,)
    if kind not in extent.units:
        raise BadInput(
            f"{kind}: the number of {_WORDS[unit]} of this model is not known, so they cannot be listed. "
            f"Write {kind}[*, {TOGETHER}] for the whole width."
        )
    allowed = f"this model has {_WORDS[unit]} {count_range(extent.units[kind])}."
    return _numbers(items, extent.units[kind], shape=f"{kind}[*, {{}}]", allowed=allowed)


def _numbers(items: Items, count: int, *, shape: str, allowed: str) -> tuple[int | None, ...]:
    found: dict[int | None, None] = {}
    for item in items:
        if isinstance(item, Span):
            found.update(dict.fromkeys(item.of(count)))
        elif item == TOGETHER:
            found[None] = None
        else:
            number = resolve_index(int(item), count)
            if number is None:
                raise UnknownName(f"{shape.format(item)}: {allowed} {_HINT}")
            found[number] = None
    if not found:
        raise BadInput(f"{shape.format(join_items(items))} lists nothing: {allowed} {_HINT}")
    return tuple(found)
