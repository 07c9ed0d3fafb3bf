"""Heat maps and their colour bar as static SVG: zero-centred, hatched where not run, marked where off the scale."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from html import escape

import numpy as np

from crosspatch.draw.colour import MARK, STEPS, Scale, diverging, level_class
from crosspatch.draw.label import clip, number, with_interval
from crosspatch.draw.panel import LONGEST, Layout, Panel, labelled_columns, lay_out, split_label

Paint = Callable[[int], str]
_FONT = 'font-family="ui-sans-serif,system-ui,sans-serif" font-size="10" fill="currentColor"'


def fixed_paint(level: int) -> str:
    """Colour a level by a presentation attribute: for pictures that stand alone."""
    return f'fill="{diverging(level)}"'


def class_paint(level: int) -> str:
    """Colour a level by its style class: for pages whose style sheet holds `level_css`."""
    return f'class="{level_class(level)}"'


def heatmap_svg(panel: Panel, scale: Scale, *, paint: Paint = fixed_paint, hover: bool = True, room: int = 320) -> str:
    """Draw a panel as one SVG element; `hover` gives each cell a `<title>` with its value and interval.

    The element carries its geometry in `data-grid`: left, top, cell width, cell height, columns, rows.
    """
    layout = lay_out(panel, room=room)
    rows, columns = panel.values.shape
    geometry = f"{layout.left} {layout.top} {layout.cell_width} {layout.cell_height} {columns} {rows}"
    hatch = "h" + sha256(f"{panel.title}{panel.values.shape}{panel.values.tobytes()[:4096]}".encode()).hexdigest()[:8]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="map" viewBox="0 0 {layout.width} {layout.height}" '
        f'width="{layout.width}" height="{layout.height}" role="img" aria-label="{escape(describe(panel, scale))}" '
        f'data-grid="{geometry}">',
        _hatch(hatch),
        f'<g {_FONT}><text x="2" y="13" font-size="12" font-weight="600">{escape(panel.title)}'
        '<tspan class="limit"></tspan></text>'
        f'<text x="2" y="29" font-size="9" opacity="0.65">{escape(panel.row_word)}</text>',
        *_row_labels(panel, layout),
        *_column_labels(panel, layout),
        "</g>",
        _plate(layout, panel),
        '<g class="cells">',
        *_cells(panel, layout, scale=scale, cell=_Cell(paint, hatch, hover)),
        "</g>",
        *_frames(panel, layout),
        "</svg>",
    ]
    return "".join(parts)


@dataclass(frozen=True)
class _Cell:
    """How a cell is drawn: its paint, the id of the hatch, and whether it speaks when pointed at."""

    paint: Paint
    hatch: str
    hover: bool

    def fill(self, value: float, scale: Scale) -> str:
        return f'class="x" fill="url(#{self.hatch})"' if np.isnan(value) else self.paint(scale.level(value))


def _cells(panel: Panel, layout: Layout, *, scale: Scale, cell: _Cell) -> list[str]:
    rows, columns = panel.values.shape
    wide, tall = layout.cell_width - (layout.cell_width > 8), layout.cell_height - (layout.cell_height > 8)
    parts = []
    for row in range(rows):
        for column in range(columns):
            x, y = layout.corner(row, column, rows=rows)
            value = float(panel.values[row, column])
            path = f'<path {cell.fill(value, scale)} d="M{x} {y}h{wide}v{tall}h-{wide}z"'
            title = f"><title>{escape(cell_text(panel, row=row, column=column))}</title></path>" if cell.hover else "/>"
            parts.append(path + title)
            if scale.misses(value):
                size = min(5, wide, tall)
                parts.append(f'<path class="off" fill="#fff" d="M{x + wide} {y}v{size}l-{size} -{size}z"/>')
    return parts


def cell_text(panel: Panel, *, row: int, column: int) -> str:
    """Say in one line which cell this is and what it holds."""
    where = f"{panel.row_word} {panel.rows[row]}, {panel.columns[column]}" if panel.rows[row] else panel.columns[column]
    value = float(panel.values[row, column])
    if np.isnan(value):
        return f"{where}: not run"
    return f"{where}: {with_interval(value, float(panel.low[row, column]), float(panel.high[row, column]), digits=3)}"


def describe(panel: Panel, scale: Scale) -> str:
    """Describe a panel for readers who cannot see it: size, range, strongest cell."""
    rows, columns = panel.values.shape
    start = f"Heat map of {panel.title}: {rows} rows ({panel.row_word}) by {columns} columns"
    if np.isnan(panel.values).all():
        return f"{start}, none of them run."
    row, column = np.unravel_index(np.nanargmax(np.abs(panel.values)), panel.values.shape)
    ends = f"{number(-scale.limit)} {scale.negative} to {number(scale.limit)} {scale.positive}"
    return f"{start}, colours from {ends}. Strongest: {cell_text(panel, row=int(row), column=int(column))}."


def _row_labels(panel: Panel, layout: Layout) -> list[str]:
    rows = len(panel.rows)
    parts = []
    for row in range(0, rows, layout.row_step):
        y = layout.corner(row, 0, rows=rows)[1] + layout.cell_height / 2 + 3.5
        parts.append(f'<text x="{layout.left - 5}" y="{y:g}" text-anchor="end">{escape(panel.rows[row])}</text>')
    return parts


def _column_labels(panel: Panel, layout: Layout) -> list[str]:
    foot = layout.top + len(panel.rows) * layout.cell_height
    labelled = set(labelled_columns(panel, layout.column_step))
    parts = []
    for column, label in enumerate(panel.columns):
        left = layout.left + column * layout.cell_width
        marked = column < len(panel.marked) and panel.marked[column]
        if marked:
            wide = layout.cell_width - 1
            parts.append(f'<path class="differs" fill="{MARK}" d="M{left} {foot + 1}h{wide}v2.5h-{wide}z"/>')
        if column not in labelled:
            continue
        parts += _column_label(label, layout, at=(left + layout.cell_width / 2, foot), bold=marked)
    return parts


def _column_label(label: str, layout: Layout, *, at: tuple[float, int], bold: bool) -> list[str]:
    head, token = split_label(label)
    middle, foot = at
    weight = ' font-weight="700"' if bold else ""
    if not layout.split:
        return [_slanted(clip(label, LONGEST), weight, x=middle, y=foot + 11)]
    flat = f'<text x="{middle:g}" y="{foot + 13}" text-anchor="middle"{weight}>{escape(head)}</text>'
    return [flat, _slanted(clip(token, LONGEST), weight, x=middle, y=foot + 23)] if token else [flat]


def _slanted(text: str, weight: str, *, x: float, y: int) -> str:
    turn = f'transform="translate({x + 3:g} {y:g}) rotate(-45)"'
    return f'<text {turn} text-anchor="end"{weight}>{escape(text)}</text>'


def _plate(layout: Layout, panel: Panel) -> str:
    """Lay a tint behind the cells: it shows between them and bounds the map where cells are white."""
    rows, columns = panel.values.shape
    wide, tall = columns * layout.cell_width + 1, rows * layout.cell_height + 1
    return (
        f'<path class="plate" fill="currentColor" fill-opacity="0.13" '
        f'd="M{layout.left - 1} {layout.top - 1}h{wide}v{tall}h-{wide}z"/>'
    )


def _frames(panel: Panel, layout: Layout) -> list[str]:
    """Frame the outlined cells, dark on light, so that the frame shows on every colour."""
    parts = []
    for row, column in panel.outlined:
        x, y = layout.corner(row, column, rows=len(panel.rows))
        box = f'x="{x - 1}" y="{y - 1}" width="{layout.cell_width + 1}" height="{layout.cell_height + 1}" fill="none"'
        parts.append(f'<rect {box} stroke="#fff" stroke-width="4"/><rect {box} stroke="#111" stroke-width="1.6"/>')
    return parts


def _hatch(name: str) -> str:
    return (
        f'<defs><pattern id="{name}" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path d="M0 0v5" stroke="currentColor" stroke-opacity="0.45" stroke-width="1.6"/></pattern></defs>'
    )


def colour_bar_svg(
    scale: Scale, *, paint: Paint = fixed_paint, unit: str = "", hatched: bool = False, letters: int = 0
) -> str:
    """Draw the legend of a scale: the colours, the limits, the words of both ends, and the signs used.

    `letters` is the least room for the words of an end, for pages that change them.
    """
    step, left, top = 5, 14 + 6 * max(len(scale.negative), letters, 4), 4
    wide = (2 * STEPS + 1) * step
    middle, right = left + wide / 2, left + wide
    cells = [
        f'<path {paint(level)} d="M{left + (level + STEPS) * step} {top}h{step}v11h-{step}z"/>'
        for level in range(-STEPS, STEPS + 1)
    ]
    texts = [
        _text(scale.negative, "word-low", x=left - 8, y=top + 10, anchor="end"),
        _text(scale.positive, "word-high", x=right + 8, y=top + 10, anchor="start"),
        _text(number(-scale.limit), "tick-low", x=left, y=top + 25, anchor="middle"),
        _text("0", "tick-zero", x=middle, y=top + 25, anchor="middle"),
        _text(number(scale.limit), "tick-high", x=right, y=top + 25, anchor="middle"),
        _text(unit, "unit", x=middle, y=top + 38, anchor="middle"),
    ]
    end = right + 24 + 6 * max(len(scale.positive), letters)
    signs = _signs(end, top) if hatched else []
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bar" viewBox="0 0 {end + 96 * hatched:g} 46" '
        f'width="{end + 96 * hatched:g}" height="46" role="img" aria-label="Colour scale: {number(-scale.limit)} '
        f'{escape(scale.negative)}, 0 white, {number(scale.limit)} {escape(scale.positive)}">'
        f"{_hatch('hatch-legend') if hatched else ''}<g {_FONT}>{''.join(texts)}</g>"
        f'<g class="cells">{"".join(cells)}</g>'
        f'<path d="M{left} {top}h{wide}v11h-{wide}z" fill="none" stroke="currentColor" stroke-opacity="0.25"/>'
        f"<g {_FONT}>{''.join(signs)}</g></svg>"
    )


def _signs(x: float | int, y: float | int) -> list[str]:
    box = f'd="M{x:g} {y}h16v11h-16z"'
    return [f'<path {box} fill="url(#hatch-legend)"/>', _text("not run", "legend", x=x + 22, y=y + 10, anchor="start")]


def _text(text: str, name: str, *, x: float | int, y: float | int, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{name}">{escape(text)}</text>'
