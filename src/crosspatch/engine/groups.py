"""Groups of sites to patch together: windows of layers, sets by name, cuts of attention; and sums of single effects."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.engine.effects import Effects
from crosspatch.engine.select import select_single, star_positions
from crosspatch.models.model import Model
from crosspatch.sites import Edge, Group, Site
from crosspatch.tasks import Task

Place = int | str


def window_kind(kind: str, width: int) -> str:
    """Name the windows of a kind, as their maps are headed."""
    return kind if width == 1 else f"{kind} ×{width}"


def windows(
    model: Model, task: Task, kind: str, width: int, *, positions: Sequence[Place] | None = None
) -> tuple[Group, ...]:
    """Return all runs of `width` adjacent layers of a kind at each position, to be patched jointly.

    A window stands at its middle layer (of an even width, the upper of the two). Windows that would reach beyond the
    first or last layer are left out. Patching MLPs in windows is how causal tracing finds weak sites together
    (Meng et al. 2022; Zhang & Nanda 2023).

    Raises:
        BadInput: a width that no window of this model has, or a kind without layers.

    >>> effects = patch(model, task, sites=windows(model, task, "mlp.out", 5))  # doctest: +SKIP
    """
    model.anatomy.require(kind)
    layers = model.anatomy.layers
    if not 1 <= width <= layers:
        raise BadInput(f"a window of {width} layers: this model has {layers}, give 1 to {layers}.")
    places = tuple(positions) if positions is not None else star_positions(task)
    return tuple(window(kind, first, width, place=place) for first in range(layers - width + 1) for place in places)


def window(kind: str, first: int, width: int, *, place: Place) -> Group:
    """Return one window: layers `first … first + width - 1` of a kind at one position."""
    members = tuple(Site(kind, layer, None, place) for layer in range(first, first + width))
    name = f"{kind}[{first}:{first + width}]@{place}"
    return Group(name, members, window_kind(kind, width), first + width // 2, place)


def group(model: Model, task: Task, sites: str, *, name: str = "") -> Group:
    """Return the sites of a selection as one group, such as the name movers "attn.head[9, 6|9], attn.head[10, 0]".

    Raises:
        UnknownName, BadInput: a site that this model or task does not have.
    """
    return Group(name or sites, select_single(model, task, sites))


def cuts(
    model: Model, query: Place, key: Place, *, heads: Sequence[int] | None = None, width: int = 0
) -> tuple[Group, ...]:
    """Return attention knockouts: for each layer, no attention from `query` to `key` from that layer on.

    With `width`, in that many layers from there on instead (Geva et al. 2023 cut windows; Prakash et al. 2024 cut from
    a layer to the last). `heads` cuts some heads only. To be swept with `direction="noise"`.

    Raises:
        BadInput: this model's attention pattern cannot be reached.

    >>> effects = patch(model, task, sites=cuts(model, "end", "S2"), direction="noise")  # doctest: +SKIP
    """
    model.anatomy.require("attn.pattern")
    layers, kind = model.anatomy.layers, f"attention {query} to {key}"
    found = []
    for first in range(layers):
        last = min(first + width, layers) if width else layers
        edges = tuple(Edge(i, query, key, head) for i in range(first, last) for head in heads or (None,))
        found.append(Group(f"{kind}, layers {first} to {last - 1}", edges, kind, first, query))
    return tuple(found)


def summed(effects: Effects, kind: str, width: int) -> Effects:
    """Add the effects of single layers over each window: what a joint patch would give if layers did not interact.

    The windows are those of `windows`. It is the baseline that shows how much a joint window inflates (Zhang & Nanda
    2023).

    Raises:
        UnknownName: the kind was not swept.
        BadInput: layers of a window are missing in the effects.
    """
    place = {(site.layer, site.position): number for number, site in enumerate(effects.sites) if site.kind == kind}
    if not place:
        raise UnknownName.of("kind in these effects", kind, effects.kinds)
    groups, rows = [], []
    for position in dict.fromkeys(where for _, where in place):
        for first in range(effects.layers - width + 1):
            numbers = [place.get((layer, position), -1) for layer in range(first, first + width)]
            if min(numbers) < 0:
                raise BadInput(f"layers {first} to {first + width - 1} of {kind}@{position} were not all swept.")
            groups.append(window(kind, first, width, place=position if position is not None else "all"))
            rows.append(effects.raw[numbers].sum(0))
    return replace(effects, sites=tuple(groups), raw=np.stack(rows).astype(np.float32))
