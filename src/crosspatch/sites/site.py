"""Site: the address of one activation, and the table of the kinds of site."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, total_ordering
from types import MappingProxyType
from typing import Literal

from crosspatch.core.errors import BadInput, UnknownName

Unit = Literal["head", "kv_head", "neuron"]
Part = Literal["input", "residual", "attention", "cross-attention", "mlp", "output"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of site: whether each layer has one, what its unit is called, and the part of the model it is in.

    Of a model with several stacks of blocks, a kind is one stack's: `encoder.resid.post`.
    """

    name: str
    part: Part
    unit: Unit | None = None
    has_layers: bool = True


# In the order of a forward pass, which is also the order of sites.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("embed", "input", has_layers=False),
            Kind("resid.pre", "residual"),
            Kind("attn.in", "attention"),
            Kind("attn.q", "attention", "head"),
            Kind("attn.k", "attention", "kv_head"),
            Kind("attn.v", "attention", "kv_head"),
            Kind("attn.pattern", "attention", "head"),
            Kind("attn.head", "attention", "head"),
            Kind("attn.out", "attention"),
            Kind("cross.in", "cross-attention"),
            Kind("cross.q", "cross-attention", "head"),
            Kind("cross.k", "cross-attention", "kv_head"),
            Kind("cross.v", "cross-attention", "kv_head"),
            Kind("cross.head", "cross-attention", "head"),
            Kind("cross.out", "cross-attention"),
            Kind("resid.mid", "residual"),
            Kind("mlp.in", "mlp"),
            Kind("mlp.hidden", "mlp", "neuron"),
            Kind("mlp.out", "mlp"),
            Kind("resid.post", "residual"),
            Kind("logits", "output", has_layers=False),
        )
    }
)
_RANK = {name: rank for rank, name in enumerate(KINDS)}
_NAME = re.compile(r"(?P<name>[^\W\d]\w*(?:\.\w+)*)(?P<offset>[+-][0-9]{1,9})?")

TOGETHER = "all"  # as a position or a unit: all of them patched together


@total_ordering
@dataclass(frozen=True, slots=True)
class Site:
    """Name one activation: `kind[layer, unit]@position`.

    `unit` None is the whole width (written `all` for a kind that has units). `position` is an index from the first real
    token (negative: from the end), a name that a task gives with an optional offset (`S2`, `S2+1`), "all" for all
    positions together, or None for unspecified. For attn.pattern the position is that of the query.
    Sites sort in the order of a forward pass.
    Raises UnknownName for an unknown kind, BadInput for parts that do not fit it.
    """

    kind: str
    layer: int | None = None
    unit: int | None = None
    position: int | str | None = None

    def __post_init__(self) -> None:
        kind = kind_of(self.kind)
        if kind.has_layers != (self.layer is not None):
            raise BadInput(
                f"a site of kind {self.kind} needs a layer: {self.kind}[0] is the first."
                if kind.has_layers
                else f"{self.kind} has no layers, layer {self.layer} was given: leave the layer out."
            )
        if self.unit is not None and kind.unit is None:
            raise BadInput(no_units(self.kind))
        for word, number in (("layer", self.layer), ("unit", self.unit)):
            if number is not None and number < 0:
                raise BadInput(
                    f"{word} {number} of a site of kind {self.kind} is negative: one site is counted from 0. "
                    "In a selection, negative numbers count from the end."
                )
        if isinstance(self.position, str):
            _check_position(self.position)

    def __str__(self) -> str:
        return f"{self.kind}{self._bracket()}" + ("" if self.position is None else f"@{self.position}")

    def _bracket(self) -> str:
        if self.layer is None:
            return ""
        if kind_of(self.kind).unit is None:
            return f"[{self.layer}]"
        return f"[{self.layer}, {TOGETHER if self.unit is None else self.unit}]"

    def __lt__(self, other: "Site") -> bool:
        if not isinstance(other, Site):
            return NotImplemented
        return _sort_key(self) < _sort_key(other)


@cache
def kind_of(name: str) -> Kind:
    """Return the kind of that name, of a stack too; raise UnknownName with the closest one."""
    kind = KINDS.get(name) or KINDS.get(split_stack(name)[1])
    if kind is None:
        raise UnknownName.of("site kind", name, KINDS)
    return replace(kind, name=name)


def split_stack(kind: str) -> tuple[str, str]:
    """Split `encoder.resid.post` into the stack and the kind; the stack is empty for a kind alone."""
    stack, _, rest = kind.partition(".")
    return (stack, rest) if kind not in KINDS and rest in KINDS else ("", kind)


def no_units(kind: str) -> str:
    """Say that sites of this kind have no units, and which kinds have."""
    having = ", ".join(name for name, each in KINDS.items() if each.unit)
    shape = f"{kind}[layer]" if kind_of(kind).has_layers else kind
    return f"{kind} has no units (heads or neurons): write {shape}. Kinds with units: {having}."


def split_name(position: str) -> tuple[str, int] | None:
    """Split a named position such as `S2+1` into its name and offset; give None if it is not one."""
    found = _NAME.fullmatch(position)
    return (found["name"], int(found["offset"] or 0)) if found else None


def join_name(name: str, offset: int) -> str:
    """Write a named position: `S2`, `S2+1`, `end-1`."""
    return f"{name}{offset:+d}" if offset else name


def _check_position(position: str) -> None:
    split = split_name(position)
    if split is None or join_name(*split) != position or (split[0] == TOGETHER and split[1]):
        raise BadInput(
            f"{position!r} is not the position of one site: give an index, a name such as 'S2', 'S2+1' or 'end-1', "
            f"{TOGETHER!r} for all positions together, or None."
        )


def _sort_key(site: Site) -> tuple[str, int, int, int, int, int, int, str]:
    stack, name = split_stack(site.kind)
    place = site.position
    return (
        stack,
        int(KINDS[name].part == "output"),
        -1 if site.layer is None else site.layer,
        _RANK[name],
        -1 if site.unit is None else site.unit,
        0 if place is None else 1 if isinstance(place, int) else 2,
        place if isinstance(place, int) else 0,
        place if isinstance(place, str) else "",
    )
