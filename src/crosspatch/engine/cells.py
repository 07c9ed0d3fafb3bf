"""Cells of a sweep: what one row writes on one pair, and where in the model its row begins."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from crosspatch.models.anatomy import Anatomy
from crosspatch.sites import Address, Edge, Site, members_of, resolve_position
from crosspatch.tasks import Pair

# What a patch at (layer, position) changes at once: the stream itself; only its own position in that block; or, through
# keys and values, every later position of that block.
Reach = Literal["stream", "local", "later"]
REACH: dict[str, Reach] = {
    "embed": "stream",
    "resid.pre": "stream",
    "resid.post": "stream",
    "attn.in": "later",
    "attn.k": "later",
    "attn.v": "later",
}


@dataclass(frozen=True)
class Part:
    """One write of a row: `unit` of `kind` at `positions`, in block `layer`. An attention edge has `keys` too."""

    kind: str
    layer: int
    unit: int | None
    positions: tuple[int, ...]
    keys: tuple[int, ...] = ()

    @property
    def reach(self) -> Reach:
        """What the write changes at once."""
        return REACH.get(self.kind, "local")


@dataclass(frozen=True)
class Cell:
    """One patched run: site number `site` of the sweep on pair `pair`, and all that it writes.

    What it writes is row `row` of the source, its pair's unless said.
    """

    site: int
    pair: int
    parts: tuple[Part, ...]
    row: int | None = None

    @property
    def taken(self) -> int:
        """The row of the source that is written."""
        return self.pair if self.row is None else self.row

    @cached_property
    def layer(self) -> int:
        """The block that the row enters."""
        return min(part.layer for part in self.parts)

    @cached_property
    def start(self) -> int:
        """The first position that the row changes."""
        return min(part.positions[0] for part in self.parts)

    @cached_property
    def first(self) -> tuple[Part, ...]:
        """The writes in the block that the row enters."""
        return tuple(part for part in self.parts if part.layer == self.layer)

    @cached_property
    def reach(self) -> Reach:
        """What the row changes in the block that it enters."""
        reaches = {part.reach for part in self.first}
        return "stream" if "stream" in reaches else "later" if "later" in reaches else "local"

    @cached_property
    def end(self) -> int:
        """One past the last position that the writes of the first block name."""
        return max(part.positions[-1] for part in self.first) + 1


@dataclass(frozen=True)
class Extents:
    """What is known of each pair: its length, the first position where its runs differ, and the positions read.

    `differ` is 0 where what is written comes from no run of the pair (an ablation): nothing is known to be equal then.
    """

    lengths: tuple[int, ...]
    differ: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]


def first_difference(pair: Pair) -> int:
    """Return the first position at which the two prompts differ."""
    return next(i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if a != b)


def entry_layer(site: Site | Edge) -> int:
    """Return the block that a write acts in; one past the last block means the final stream."""
    if site.kind == "embed":
        return 0
    layer = site.layer or 0
    return layer + 1 if site.kind == "resid.post" else layer


def patched_positions(place: int | str | None, pair: Pair, prompt: int) -> tuple[int, ...] | None:
    """Return the positions that a place means in a pair, or None where the prompt has no such position."""
    if place == "all":
        return tuple(range(prompt))
    if isinstance(place, int) and not -prompt <= place < prompt:
        return None
    return (resolve_position(place, pair.names, prompt),)  # pyright: ignore[reportArgumentType]


def cells_of(
    sites: Sequence[Address], pairs: Sequence[Pair], extents: Extents, anatomy: Anatomy
) -> Iterator[tuple[int, int, Cell | None]]:
    """Yield `(site, pair, cell)` of a sweep; no cell where the effect is known to be exactly zero.

    It is zero where source and base cannot differ (positions before the first differing token, in a causal model), and
    where nothing downstream is read (the last block's outputs at positions that the metric does not read). A site, or a
    group with a site, that a pair does not have (its prompt is shorter) is left out.
    """
    for index, site in enumerate(sites):
        for number, pair in enumerate(pairs):
            found = [_part(member, pair, extents, (number, anatomy)) for member in members_of(site)]
            if all(found):
                live = tuple(part for part in found if part and part.positions)
                yield index, number, Cell(index, number, live) if live else None


def _part(member: Site | Edge, pair: Pair, extents: Extents, where: tuple[int, Anatomy]) -> Part | None:
    """Return what a member writes in a pair, at no position if nothing changes; None if the pair has no such site."""
    number, anatomy = where
    if isinstance(member, Edge):
        queries, keys = (patched_positions(at, pair, len(pair.clean)) for at in (member.query, member.key))
        if queries is None or keys is None:
            return None
        live = tuple(q for q in queries if any(k <= q or not anatomy.causal for k in keys))
        live = tuple(_read(member, live, extents, where))
        return Part(member.kind, member.layer, member.head, live, keys)
    positions = patched_positions(member.position, pair, len(pair.clean))
    if positions is None:
        return None
    differing = (p for p in positions if not anatomy.causal or p >= extents.differ[number])
    return Part(member.kind, entry_layer(member), member.unit, tuple(_read(member, differing, extents, where)))


def _read(member: Site | Edge, positions: Iterable[int], extents: Extents, where: tuple[int, Anatomy]) -> Iterator[int]:
    """Yield the positions whose change can reach what the metric reads."""
    number, anatomy = where
    layer, local = entry_layer(member), REACH.get(member.kind, "local") == "local"
    final = layer == anatomy.layers or (layer == anatomy.layers - 1 and local)
    for position in positions:
        if not final or position in extents.reads[number]:
            yield position
