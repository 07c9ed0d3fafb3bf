"""Grid: the effects of one kind of site as layers × columns, with labels from the prompts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.draw import Panel, Scale, TerminalMap, colour_bar_svg, heatmap_svg, nice_limit, shown
from crosspatch.sites import Address, resolve_position

Column = tuple[int | None, int | str | None]  # unit, position
TOGETHER = "all"


@dataclass(frozen=True)
class ExampleView:
    """What a reader sees of one pair: its tokens, its answers and its named positions."""

    clean_tokens: tuple[str, ...]
    corrupt_tokens: tuple[str, ...]
    right: str
    wrong: str
    names: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Grid:
    """Mean effects of one kind, `[layer, column]`, with the ends of their intervals; NaN was never run.

    `index` is the place of each cell in `Effects.sites`, -1 where there is none. `marked` columns are positions at
    which clean and corrupt tokens differ in some example. `note` says what all columns share, such as `@end`.
    """

    kind: str
    values: Float[np.ndarray, "layer column"]
    low: Float[np.ndarray, "layer column"]
    high: Float[np.ndarray, "layer column"]
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    index: Int[np.ndarray, "layer column"]
    marked: tuple[bool, ...] = ()
    note: str = ""

    @property
    def title(self) -> str:
        """Name the kind and what its columns share."""
        return f"{self.kind}{self.note}"

    def panel(self, *, best: int | None = None) -> Panel:
        """Make it drawable; the cell of site number `best` is outlined."""
        outlined = () if best is None else tuple((int(r), int(c)) for r, c in np.argwhere(self.index == best))
        return Panel(self.title, self.values, self.low, self.high, self.rows, self.columns, self.marked, outlined)

    def __repr__(self) -> str:
        rows, columns = self.values.shape
        return f"Grid({self.title}: {rows} rows × {columns} columns, {int((self.index >= 0).sum())} sites)"

    def _repr_html_(self) -> str:
        scale = Scale(nice_limit(self.values))
        hatched = bool(np.isnan(self.values).any())
        return heatmap_svg(self.panel(), scale) + colour_bar_svg(scale, hatched=hatched)

    def __rich__(self) -> TerminalMap:
        return TerminalMap(self.panel(), Scale(nice_limit(self.values)))


def empty_grid(kind: str, sites: Sequence[Address], *, layers: int, examples: Sequence[ExampleView]) -> Grid:
    """Place the sites of one kind in a grid, its values still NaN. Raises UnknownName if the kind was not swept."""
    own = [(number, site) for number, site in enumerate(sites) if site.kind == kind]
    if not own:
        raise UnknownName.of("kind in these effects", kind, kinds_of(sites))
    columns = _ordered({(site.unit, site.position) for _, site in own}, examples)
    place = {column: number for number, column in enumerate(columns)}
    layered = own[0][1].layer is not None
    deepest = max((site.layer or 0 for _, site in own), default=0)
    if layered and deepest >= layers:
        raise BadInput(f"{kind}[{deepest}] is in the effects, but the model is said to have {layers} layers.")
    index = np.full((layers if layered else 1, len(columns)), -1, dtype=np.int64)
    for number, site in own:
        index[site.layer or 0, place[site.unit, site.position]] = number
    hole = np.full(index.shape, np.nan, dtype=np.float32)
    rows = tuple(str(layer) for layer in range(layers)) if layered else ("",)
    labels, note = _labels(columns, examples)
    marked = tuple(_differs(position, examples) for _, position in columns)
    return Grid(kind, hole, hole, hole, labels, rows, index, marked if any(marked) and not note else (), note)


def fill_grid(grid: Grid, *, mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> Grid:
    """Put the values of the grid's sites, in the order of `grid.index`'s places, into its cells."""
    there = grid.index >= 0
    filled = []
    for values in (mean, low, high):
        cells = np.full(grid.index.shape, np.nan, dtype=np.float32)
        cells[there] = values
        filled.append(cells)
    return replace(grid, values=filled[0], low=filled[1], high=filled[2])


def kinds_of(sites: Iterable[Address]) -> tuple[str, ...]:
    """List the kinds among sites in the order of their first one."""
    return tuple(dict.fromkeys(site.kind for site in sites))


def index_in(position: int | str | None, example: ExampleView) -> int | None:
    """Give the index of a position in one example, None if it has none there (absent name, `all`, out of range)."""
    if position is None or position == TOGETHER:
        return None
    try:
        return resolve_position(position, example.names, len(example.clean_tokens))
    except UnknownName:
        return None


def shared_token(position: int | str | None, examples: Sequence[ExampleView]) -> str:
    """Give the clean token at a position if all examples have equal lengths and this token there, else ''."""
    if len({len(example.clean_tokens) for example in examples}) != 1:
        return ""
    indices = [index_in(position, example) for example in examples]
    if None in indices:
        return ""
    tokens = {example.clean_tokens[i] for example, i in zip(examples, indices, strict=True) if i is not None}
    token = tokens.pop() if len(tokens) == 1 else ""
    return shown(token) if token else ""


def hint_of(position: int | str | None, examples: Sequence[ExampleView]) -> str:
    """Give the name that an index has in every example, else the token that all have there, else ''."""
    if not isinstance(position, int):
        return ""
    return _shared_name(position, examples) or shared_token(position, examples)


def _shared_name(position: int, examples: Sequence[ExampleView]) -> str:
    """Give the name that means this index in every example, '' if there is none."""
    names = examples[0].names if examples else {}
    fits = (name for name in names if all(each.names.get(name) == position for each in examples))
    return next(fits, "")


def _ordered(columns: set[Column], examples: Sequence[ExampleView]) -> list[Column]:
    """Sort columns: by unit, then indices from the start, indices from the end, names by mean index, together."""
    places = {position for _, position in columns}
    rank = {place: order for order, place in enumerate(sorted(places, key=lambda place: _order(place, examples)))}
    return sorted(columns, key=lambda column: (-1 if column[0] is None else column[0], rank[column[1]]))


def _order(position: int | str | None, examples: Sequence[ExampleView]) -> tuple[int, float, str]:
    if isinstance(position, int):
        return (0 if position >= 0 else 1, float(position), "")
    found = [index for example in examples if (index := index_in(position, example)) is not None]
    mean = sum(found) / len(found) if found else float("inf")
    return (2 if position not in (None, TOGETHER) else 3, mean, str(position))


def _labels(columns: Sequence[Column], examples: Sequence[ExampleView]) -> tuple[tuple[str, ...], str]:
    """Label the columns by position, by unit, or by both; with the position that units share as the note."""
    units, positions = {unit for unit, _ in columns}, {position for _, position in columns}
    if units == {None}:
        return tuple(position_label(position, examples) for _, position in columns), ""
    if len(positions) == 1:
        position = positions.pop()
        note = "" if position is None else f" @{position}"
        return tuple(_unit_label(unit) for unit, _ in columns), note
    return tuple(f"{_unit_label(unit)}@{'·' if place is None else place}" for unit, place in columns), ""


def _unit_label(unit: int | None) -> str:
    return TOGETHER if unit is None else str(unit)


def position_label(position: int | str | None, examples: Sequence[ExampleView]) -> str:
    """Label a position: `10 ·John` if all examples have this token, `10 ·{S2}` if they share a name, else `10`."""
    if position is None:
        return "any"
    token = shared_token(position, examples)
    if not token and isinstance(position, int) and (name := _shared_name(position, examples)):
        token = f"{{{name}}}"
    return f"{position} ·{token}" if token else str(position)


def _differs(position: int | str | None, examples: Sequence[ExampleView]) -> bool:
    for example in examples:
        index = index_in(position, example)
        if index is None or index >= len(example.corrupt_tokens):
            continue
        if example.clean_tokens[index] != example.corrupt_tokens[index]:
            return True
    return False
