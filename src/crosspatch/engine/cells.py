"""Cells of a sweep: one site on one pair, and where in the model its row begins."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from crosspatch.models.anatomy import Anatomy
from crosspatch.sites import Site, resolve_position
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
class Cell:
    """One patch: `unit` of `kind` at `positions` of pair `pair`. `layer` is the block that its row enters."""

    site: int
    pair: int
    kind: str
    layer: int
    unit: int | None
    positions: tuple[int, ...]

    @property
    def reach(self) -> Reach:
        """What the patch changes at once."""
        return REACH.get(self.kind, "local")


@dataclass(frozen=True)
class Extents:
    """What is known of each pair: its length, the first position where its prompts differ, and the positions read."""

    lengths: tuple[int, ...]
    differ: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]


def first_difference(pair: Pair) -> int:
    """Return the first position at which the two prompts differ."""
    return next(i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if a != b)


def entry_layer(site: Site) -> int:
    """Return the block that a patched row enters; one past the last block means the final stream."""
    if site.kind == "embed":
        return 0
    layer = site.layer or 0
    return layer + 1 if site.kind == "resid.post" else layer


def patched_positions(site: Site, pair: Pair, prompt: int) -> tuple[int, ...] | None:
    """Return the positions that a site means in a pair, or None where the prompt has no such position."""
    if site.position == "all":
        return tuple(range(prompt))
    if isinstance(site.position, int) and not -prompt <= site.position < prompt:
        return None
    return (resolve_position(site.position, pair.names, prompt),)  # pyright: ignore[reportArgumentType]


def cells_of(
    sites: Sequence[Site], pairs: Sequence[Pair], extents: Extents, anatomy: Anatomy
) -> Iterator[tuple[int, int, Cell | None]]:
    """Yield `(site, pair, cell)` of a sweep; no cell where the effect is known to be exactly zero.

    It is zero where source and base cannot differ (positions before the first differing token, in a causal model), and
    where nothing downstream is read (the last block's outputs at positions that the metric does not read). A site that
    a pair does not have (its prompt is shorter) is left out.
    """
    for index, site in enumerate(sites):
        for number, pair in enumerate(pairs):
            positions = patched_positions(site, pair, len(pair.clean))
            if positions is not None:
                live = tuple(_live(site, positions, extents, number, anatomy))
                cell = Cell(index, number, site.kind, entry_layer(site), site.unit, live) if live else None
                yield index, number, cell


def _live(site: Site, positions: Iterable[int], extents: Extents, number: int, anatomy: Anatomy) -> Iterator[int]:
    reach = REACH.get(site.kind, "local")
    final = entry_layer(site) == anatomy.layers or (entry_layer(site) == anatomy.layers - 1 and reach == "local")
    for position in positions:
        same = anatomy.causal and position < extents.differ[number]
        unread = final and position not in extents.reads[number]
        if not same and not unread:
            yield position
