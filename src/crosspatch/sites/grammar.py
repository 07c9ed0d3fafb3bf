"""The grammar of selections: `attn.head[9|10, *]@S2` to patterns, patterns to sites, and back to text."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Never

from crosspatch.core.errors import BadInput
from crosspatch.sites.extent import Extent, list_layers, list_units
from crosspatch.sites.items import EACH, Item, Items, Span, join_items, keep_positions
from crosspatch.sites.site import TOGETHER, Site, join_name, kind_of, no_units
from crosspatch.sites.transformer_lens import from_transformer_lens, is_transformer_lens_name

_EXAMPLE = "For example: resid.pre, attn.head[9|10, *]@S2, mlp.out[2:6]@end."
_ONE = (
    f"It must name one site, such as resid.pre[3]@S2, attn.head[5, 3] or, for all heads together, "
    f"attn.head[5, {TOGETHER}]; a selection of sites is read by `parse`."
)
_WINDOW = 60  # characters shown on each side of the place of an error

_SPACE = re.compile(r"\s*")
_KIND = re.compile(r"[^\W\d][\w.]*(?:\*[\w.]*)*")
_SPAN = re.compile(r"(?P<start>-?[0-9]{1,9})?\s*:\s*(?P<stop>-?[0-9]{1,9})?")
_INTEGER = re.compile(r"-?[0-9]{1,9}(?![0-9])")
_NAMED = re.compile(r"(?P<name>[^\W\d]\w*(?:\.\w+)*)(?:\s*(?P<offset>[+-]\s*[0-9]{1,9})(?![0-9]))?")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Hold one entry of a selection: a kind with its layers, units and positions (None: left to the default).

    Layers are empty for a kind without layers, units for a kind without units.
    """

    kind: str
    layers: Items = ()
    units: Items = ()
    positions: Items | None = None

    def __str__(self) -> str:
        inside = ""
        if self.units not in ((), (EACH,)):
            inside = f"[{join_items(self.layers)}, {join_items(self.units)}]"
        elif self.layers not in ((), (EACH,)):
            inside = f"[{join_items(self.layers)}]"
        return f"{self.kind}{inside}" + ("" if self.positions is None else f"@{join_items(self.positions)}")

    def expand(self, extent: Extent, positions_for_star: Sequence[int | str] = ()) -> Iterator[Site]:
        """Yield the pattern's sites in a model of that extent: layers, then units, then positions.

        Raises UnknownName for a layer or unit that the model lacks, BadInput for a part that lists nothing.
        """
        layers = list_layers(self.kind, self.layers, extent)
        units = list_units(self.kind, self.units, extent)
        places: tuple[int | str | None, ...] = (None,)
        if self.positions is not None:
            places = tuple(keep_positions(self.positions, positions_for_star))
            if not places:
                raise BadInput(f"{self}: the positions {join_items(self.positions)} list none.")
        return (Site(self.kind, layer, unit, place) for layer in layers for unit in units for place in places)


@dataclass(frozen=True, slots=True)
class Selection:
    """Hold parsed patterns; `str` gives text that parses to the same selection."""

    patterns: tuple[Pattern, ...]

    def __str__(self) -> str:
        return ", ".join(str(pattern) for pattern in self.patterns)

    def expand(self, extent: Extent, positions_for_star: Sequence[int | str] = ()) -> tuple[Site, ...]:
        """List the sites in a model of that extent: patterns as written, each by layers, units, positions.

        Duplicates are removed. Names and negative positions stay as they are, because prompts differ in length;
        `positions_for_star` lists what `@*` stands for. Raises UnknownName for a layer or unit that the model lacks,
        BadInput for a part that lists nothing or needs `positions_for_star`.
        """
        every = (site for pattern in self.patterns for site in pattern.expand(extent, positions_for_star))
        return tuple(dict.fromkeys(every))


def parse(text: str) -> Selection:
    """Read a selection such as `resid.pre, attn.head[5, 3]@S2, blocks.5.attn.hook_z`.

    Raises UnknownName for a kind that does not exist (with the closest one) and BadInput, with the place marked,
    for text that does not follow the grammar.
    """
    reader = _Reader(text)
    if reader.at_end():
        raise BadInput(f"the selection of sites is empty. {_EXAMPLE}")
    patterns = [_pattern(reader)]
    while reader.take(","):
        patterns.append(_pattern(reader))
    if not reader.at_end():
        reader.fail("expected `,`, `[`, `@`, `|` or the end")
    return Selection(tuple(patterns))


def parse_site(text: str) -> Site:
    """Read one site, with its layer and unit written out; `str(site)` reads back as the same site.

    Raises UnknownName for a kind that does not exist, BadInput for text that may mean several sites, such as
    `attn.head[5]`: write `attn.head[5, 3]` for one head, `attn.head[5, all]` for the whole width.
    """
    pattern, *others = parse(text).patterns
    if others:
        raise BadInput(f"{text!r} names several sites. {_ONE}")
    layer = _single(text, "layer", pattern.layers)
    unit = _single(text, "unit", pattern.units)
    position = None if pattern.positions is None else _single(text, "position", pattern.positions)
    # `all` is the whole width as a unit, but stays a word as a position
    return Site(pattern.kind, layer, None if unit == TOGETHER else unit, position)  # type: ignore[arg-type]


def _single(text: str, word: str, items: Items) -> int | str | None:
    item, *others = items or (None,)
    if others or isinstance(item, Span):
        raise BadInput(f"{text!r} leaves the {word} open ({join_items(items)}). {_ONE}")
    return item


class _Reader:
    """A text with a place in it; `fail` raises with the place marked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def skip_space(self) -> None:
        found = _SPACE.match(self.text, self.place)
        self.place = found.end() if found else self.place

    def at_end(self) -> bool:
        self.skip_space()
        return self.place == len(self.text)

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.skip_space()
        found = pattern.match(self.text, self.place)
        if found:
            self.place = found.end()
        return found

    def take(self, mark: str) -> bool:
        self.skip_space()
        if not self.text.startswith(mark, self.place):
            return False
        self.place += len(mark)
        return True

    def fail(self, why: str, at: int | None = None) -> Never:
        place = self.place if at is None else at
        start = max(0, place - _WINDOW)
        shown = re.sub(r"\s", " ", self.text[start : place + _WINDOW])
        raise BadInput(
            f"cannot read the sites at character {place + 1}: {why}.\n  {shown}\n  {' ' * (place - start)}^\n{_EXAMPLE}"
        )


def _pattern(reader: _Reader) -> Pattern:
    reader.skip_space()
    start = reader.place
    found = reader.match(_KIND)
    if found is None:
        reader.fail("expected a kind of site")
    if is_transformer_lens_name(found[0]):
        return _named_pattern(reader, from_transformer_lens(found[0]))
    kind = kind_of(found[0])
    layers: Items = (EACH,) if kind.has_layers else ()
    units: Items = (EACH,) if kind.unit else ()
    if reader.take("["):
        if not kind.has_layers:
            reader.fail(f"{kind.name} has no layers: write {kind.name} alone", start)
        layers = _items(reader, _layer)
        if reader.take(","):
            if kind.unit is None:
                reader.fail(no_units(kind.name).rstrip("."))
            units = _items(reader, _unit)
        if not reader.take("]"):
            reader.fail("expected `]`")
    return Pattern(kind.name, layers, units, _positions(reader))


def _named_pattern(reader: _Reader, site: Site) -> Pattern:
    units: Items = (EACH,) if kind_of(site.kind).unit else ()
    layers: Items = () if site.layer is None else (site.layer,)
    plain = Pattern(site.kind, layers, units)
    if reader.take("["):
        reader.fail(f"a TransformerLens name takes no bracket: write {site.kind}[{join_items(layers)}, …] instead")
    return Pattern(plain.kind, plain.layers, plain.units, _positions(reader))


def _positions(reader: _Reader) -> Items | None:
    return _items(reader, _position) if reader.take("@") else None


def _items(reader: _Reader, read: Callable[[_Reader], Item]) -> Items:
    items = [read(reader)]
    while reader.take("|"):
        items.append(read(reader))
    return tuple(dict.fromkeys(items))


def _layer(reader: _Reader) -> Item:
    item = _number(reader)
    if item is None:
        reader.fail("expected a layer: `*`, an integer or a slice such as 2:6")
    return item


def _unit(reader: _Reader) -> Item:
    item = _number(reader)
    if item is None:
        found = reader.match(_NAMED)
        if found is None or found[0] != TOGETHER:
            at = reader.place if found is None else found.start()
            reader.fail(f"expected a unit: `*`, an integer, a slice such as 2:6, or `{TOGETHER}`", at)
        return TOGETHER
    return item


def _position(reader: _Reader) -> Item:
    item = _number(reader)
    if item is not None:
        return item
    found = reader.match(_NAMED)
    if found is None:
        reader.fail(f"expected a position: `*`, an integer, a slice such as 2:6, a name such as S2+1, or `{TOGETHER}`")
    offset = int(re.sub(r"\s", "", found["offset"] or "0"))
    if found["name"] == TOGETHER and found["offset"]:
        reader.fail(f"`{TOGETHER}` takes no offset", found.start())
    return join_name(found["name"], offset)


def _number(reader: _Reader) -> int | Span | None:
    if reader.take("*"):
        return EACH
    span = reader.match(_SPAN)
    if span:
        if reader.take(":"):
            reader.fail("a slice has two ends and no step", reader.place - 1)
        return Span(*(None if end is None else int(end) for end in span.groups()))
    found = reader.match(_INTEGER)
    return None if found is None else int(found[0])
