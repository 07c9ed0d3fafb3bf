"""From addresses of sites to what one patched run writes: where, at which positions, in which columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from crosspatch.core.errors import BadInput
from crosspatch.modules.anatomy import Place
from crosspatch.modules.trial import Trial
from crosspatch.modules.views import view
from crosspatch.replay import Spot
from crosspatch.sites import (
    EACH,
    Address,
    Edge,
    Pattern,
    Site,
    kind_of,
    members_of,
    parse,
    resolve_position,
    split_stack,
)
from crosspatch.sites.site import TOGETHER


@dataclass(frozen=True)
class Part:
    """One write: `unit` of a place at some positions of an example, or at all of them (None)."""

    place: Place
    unit: int | None
    positions: tuple[int, ...] | None


@dataclass(frozen=True)
class Cell:
    """One patched run: site number `site` on example `example`, and all that it writes."""

    site: int
    example: int
    parts: tuple[Part, ...]

    @property
    def spots(self) -> tuple[Spot, ...]:
        """Where it writes."""
        return tuple(dict.fromkeys(part.place.spot for part in self.parts))


def select(trial: Trial, sites: str | Sequence[Address], *, spread: bool = True) -> tuple[Address, ...]:
    """Expand a selection on a trial's module.

    A kind without `@` is swept at each position, one with units at all positions together; unless `spread`, it stays
    as it is.

    Raises:
        UnknownName: a stack, kind, layer, unit or named position that does not exist.
        BadInput: a kind that is refused, a cut edge of attention, or a place that a layer does not have.
    """
    if isinstance(sites, str):
        chosen = [site for pattern in parse(sites).patterns for site in _expanded(trial, pattern)]
    else:
        chosen = list(sites)
    found = dict.fromkeys(site for given in chosen for site in (_placed(trial, given) if spread else (given,)))
    for site in found:
        for member in members_of(site):
            _check(trial, member, placed=spread)
    return tuple(found)


def cells_of(trial: Trial, sites: Sequence[Address], step: int | None) -> Iterator[Cell]:
    """Yield the runs of a sweep; an example that does not have a position is left out.

    `step` is the call of a submodule that is patched, all of them if None.
    """
    for number, site in enumerate(sites):
        members = [member for member in members_of(site) if isinstance(member, Site)]
        places = [_calls(trial, place_of(trial, member), step) for member in members]
        lengths = [length_of(trial, calls[0]) for calls in places]
        for example in range(trial.count):
            positions = [_positions(trial, *each, example) for each in zip(members, lengths, strict=True)]
            if () not in positions:
                zipped = zip(members, places, positions, strict=True)
                parts = [Part(place, member.unit, at) for member, calls, at in zipped for place in calls]
                yield Cell(number, example, tuple(parts))


def length_of(trial: Trial, place: Place) -> int:
    """Return how many positions a place has, in the longest example."""
    shape, axis = trial.outline.shape(place.spot)
    module = trial.module.get_submodule(place.spot.path)
    return view(torch.empty(shape, device="meta"), axis=axis, count=trial.count, module=module)[0].shape[1]


def _expanded(trial: Trial, pattern: Pattern) -> Iterator[Site]:
    stack = trial.stack(pattern.kind)
    kind = split_stack(pattern.kind)[1]
    places = [layer[kind] for layer in stack.places if kind in layer]
    star: tuple[int | str, ...] = ()
    if any(item == EACH or not isinstance(item, (int, str)) for item in pattern.positions or ()):
        star = tuple(range(max(length_of(trial, place) for place in places)))
    for site in pattern.expand(stack.extent, star):
        if site.layer is None or kind in stack.places[site.layer]:
            yield site


def _placed(trial: Trial, site: Address) -> tuple[Address, ...]:
    if not isinstance(site, Site) or site.position is not None:
        return (site,)
    if kind_of(site.kind).unit is not None:
        return (replace(site, position=TOGETHER),)
    return tuple(replace(site, position=at) for at in range(length_of(trial, place_of(trial, site))))


def place_of(trial: Trial, site: Site) -> Place:
    """Return where a site is.

    Raises:
        UnknownName: the module has no such stack, kind, layer or unit.
    """
    stack = trial.stack(site.kind)
    kind = split_stack(site.kind)[1]
    layer = site.layer or 0
    if layer >= stack.layers or kind not in stack.places[layer]:
        having = [number for number, each in enumerate(stack.places) if kind in each]
        raise BadInput(f"{site}: {site.kind} is in layers {having} of this {type(trial.module).__name__}.")
    place = stack.places[layer][kind]
    if site.unit is not None and site.unit >= len(place.starts):
        raise BadInput(f"{site}: layer {layer} has {len(place.starts)} units of {site.kind}.")
    return place


def _check(trial: Trial, member: Site | Edge, *, placed: bool) -> None:
    if isinstance(member, Edge):
        raise BadInput(f"{member}: cutting attention works on decoder-only language models; patch attn.head here.")
    place = place_of(trial, member)
    if member.position is None and placed:
        raise BadInput(f"{member} in a group: say at which position, such as {member}@0, or @all.")
    length = length_of(trial, place)
    if member.position not in (None, TOGETHER):
        for example in range(trial.count):
            resolve_position(member.position, trial.names_of(example), length)


def _calls(trial: Trial, place: Place, step: int | None) -> list[Place]:
    """Return a place at each call of its submodule, or at one."""
    return [place.at_call(call) for call in (range(trial.outline.times[place.spot.path]) if step is None else (step,))]


def _positions(trial: Trial, member: Site, length: int, example: int) -> tuple[int, ...] | None:
    """Return the positions that a member means on an example: None for all, none if the example does not have them."""
    real = trial.lengths.get(trial.stack(member.kind).name, (length,) * trial.count)[example]
    if member.position == TOGETHER:
        return None if real == length else tuple(range(real))
    if isinstance(member.position, int) and not -real <= member.position < real:
        return ()
    return (resolve_position(member.position, trial.names_of(example), real),)  # pyright: ignore[reportArgumentType]
