"""Heat maps as figures for papers, on matplotlib: SVG, PDF or PNG of a column's width, one colour scale."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspatch.core.errors import BadInput, MissingExtra
from crosspatch.draw.colour import MARK, STEPS, Scale, diverging
from crosspatch.draw.label import clip, number
from crosspatch.draw.panel import Panel, labelled_columns, short_label, split_label, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")
COLUMN = 3.3  # inches: one column of a two-column page; both are 6.8
DPI = 300
_LETTERS = 12  # of a column's label
_FONT = 7  # points
_INCH = _FONT / 10 / 72 * 0.96  # a pixel of `text_width`, which is for letters of 10 px
_NARROW, _WIDEST, _TALLEST = 0.19, 0.42, 0.15  # of a cell that two panels share a line for, of any cell, in inches
_TALL = 2.1  # of a panel's cells, in inches
_EDGE, _GAP, _TITLE, _BAR = 0.04, 0.2, 0.2, 0.4  # margin, between panels, for a title, for the colour bar
_CLEAR = 0.02  # between labels that lie side by side, in inches
_HATCH = "//////"
# Tokens are text, never markup; text stays text in the file. All else is the user's own style.
_STYLE = {
    "text.usetex": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "crosspatch",
    "pdf.fonttype": 42,
    "font.size": _FONT,
    "hatch.linewidth": 0.5,
}
_DATELESS: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


@dataclass(frozen=True)
class _Box:
    """Where a panel's cells go, in inches from the figure's upper left corner."""

    left: float
    top: float
    cell_width: float
    cell_height: float


def maps_figure(panels: Sequence[Panel], scale: Scale, *, form: str, width: float = COLUMN, dpi: int = DPI) -> bytes:
    """Draw panels with one colour scale and its bar as an SVG, PNG or PDF file of `width` inches; give its bytes.

    The state of pyplot is neither read nor changed.

    Raises:
        BadInput: another format, no panels, or a width that no panel fits into.
        MissingExtra: matplotlib is not installed.
    """
    if form not in FORMATS:
        raise BadInput(f"a figure is written as {', '.join(FORMATS)}; given {form!r}.")
    if not panels:
        raise BadInput("there is nothing to draw: no kind has few enough sites for a picture.")
    if not math.isfinite(width) or width < 2.6 or dpi < 1:
        raise BadInput(f"a figure is at least 2.6 inches wide and has a dot an inch; given {width} and {dpi}.")
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("figures need matplotlib: pip install 'crosspatch[figures]'") from None
    boxes, height = _arrange(panels, width)
    texts = {text for panel in panels for text in (panel.title, *panel.rows, *panel.columns)}
    style: dict[Any, Any] = {**_STYLE, "font.family": ["DejaVu Sans", *_fallbacks("".join(texts))]}
    with rc_context(style), warnings.catch_warnings():
        # A letter that no installed font has is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), dpi=dpi)
        FigureCanvasAgg(figure)
        for panel, box in zip(panels, boxes, strict=True):
            _draw(figure, panel, scale=scale, box=box)
        _colour_bar(figure, scale, hatched=any(np.isnan(panel.values).any() for panel in panels))
        sink = BytesIO()
        figure.savefig(sink, format=form, dpi=dpi, metadata=_DATELESS[form])
    return sink.getvalue()


def _arrange(panels: Sequence[Panel], width: float) -> tuple[list[_Box], float]:
    """Set panels side by side while they fit, then below; give their boxes and the figure's height in inches."""
    boxes: list[_Box] = []
    y, left = _EDGE, list(panels)
    while left:
        line, widths = _line(left, width)
        left = left[len(line) :]
        taken = sum(widths) + _GAP * (len(line) - 1)
        x, lowest = (width - taken) / 2, 0.0
        for panel, wide in zip(line, widths, strict=True):
            rows, columns = panel.values.shape
            cell, tall = (wide - _margin(panel)) / columns, max(0.025, min(_TALLEST, _TALL / rows))
            boxes.append(_Box(x + _margin(panel), y + _TITLE, cell, tall))
            lowest = max(lowest, y + _TITLE + rows * tall + _reach(panel, cell))
            x += wide + _GAP
        y = lowest + 0.1
    return boxes, y + _BAR


def _line(panels: Sequence[Panel], width: float) -> tuple[list[Panel], list[float]]:
    """Take the panels that fit beside each other and share the line's width by their columns."""
    room, line = width - 2 * _EDGE, []
    least = [_margin(panel) + max(panel.values.shape[1] * _NARROW, _title_width(panel)) for panel in panels]
    for panel, wide in zip(panels, least, strict=True):
        if line and room - wide - _GAP < 0:
            break
        room -= wide + _GAP * bool(line)
        line.append(panel)
    columns = [panel.values.shape[1] for panel in line]
    cells = (width - 2 * _EDGE - _GAP * (len(line) - 1) - sum(map(_margin, line))) / sum(columns)
    titles = [_margin(panel) + _title_width(panel) for panel in line]
    widths = [_margin(panel) + min(cells, _WIDEST) * count for panel, count in zip(line, columns, strict=True)]
    # A title wider than its cells may take what room is over.
    spare = width - 2 * _EDGE - _GAP * (len(line) - 1) - sum(widths)
    return line, [
        wide + min(max(0.0, title - wide), max(0.0, spare)) for wide, title in zip(widths, titles, strict=True)
    ]


def _margin(panel: Panel) -> float:
    """Give the inches that row labels take."""
    return max(map(text_width, panel.rows), default=0.0) * _INCH + (0.2 if any(panel.rows) else 0.04)


def _title_width(panel: Panel) -> float:
    return text_width(panel.title) * _INCH * 1.1


def _reach(panel: Panel, cell: float) -> float:
    """Give the inches that column labels take below the cells."""
    longest = max(map(text_width, _labels(panel)), default=0.0) * _INCH
    return longest + 0.04 if longest > cell - _CLEAR else 0.12


def _labels(panel: Panel) -> list[str]:
    """Name columns by their tokens; beside tokens, an index is `@8`, for a token may be a number too."""
    mixed = any(split_label(label)[1] for label in panel.columns)
    bare = (mixed and not split_label(label)[1] for label in panel.columns)
    return [
        clip(f"{'@' * index}{short_label(label)}", _LETTERS) for label, index in zip(panel.columns, bare, strict=True)
    ]


def _draw(figure: "Figure", panel: Panel, *, scale: Scale, box: _Box) -> None:
    rows, columns = panel.values.shape
    wide, tall = figure.get_size_inches()
    size = (columns * box.cell_width, rows * box.cell_height)
    axes = figure.add_axes((box.left / wide, 1 - (box.top + size[1]) / tall, size[0] / wide, size[1] / tall))
    if np.isnan(panel.values).any():
        axes.add_patch(_hatched((0.0, 0.0), float(columns), float(rows), transform=axes.transData))
    fine = min(box.cell_width, box.cell_height) < 0.05
    axes.pcolormesh(
        np.ma.masked_invalid(panel.values),
        cmap=_colour_map(),
        norm=_norm(scale),
        edgecolors="face" if fine else "0.88",
        linewidth=0.1 if fine else 0.4,
    )
    for row, column in np.argwhere([[scale.misses(float(value)) for value in line] for line in panel.values]):
        axes.add_patch(_corner(float(row), float(column), box))
    axes.set(xlim=(0, columns), ylim=(0, rows))
    axes.set_title(panel.title, fontsize=_FONT + 1, loc="left", pad=3)
    axes.tick_params(length=0, pad=2, labelsize=_FONT)
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color="0.6")
    _label_rows(axes, panel, box)
    _label_columns(axes, panel, box)


def _label_rows(axes: "Axes", panel: Panel, box: _Box) -> None:
    step = max(1, math.ceil(_FONT * 1.15 / 72 / box.cell_height))
    shown = range(0, len(panel.rows), step)
    axes.set_yticks([row + 0.5 for row in shown], [panel.rows[row] for row in shown])
    if any(panel.rows):
        axes.set_ylabel(panel.row_word, fontsize=_FONT, labelpad=2)


def _label_columns(axes: "Axes", panel: Panel, box: _Box) -> None:
    """Write labels under their columns, upright where they are too long to lie; bold over a bar where inputs differ."""
    labels = _labels(panel)
    upright = max((text_width(label) for label in labels), default=0.0) * _INCH > box.cell_width - _CLEAR
    step = max(1, math.ceil(_FONT * 1.05 / 72 / box.cell_width)) if upright else 1
    shown = labelled_columns(panel, step)
    axes.set_xticks([column + 0.5 for column in shown], [labels[column] for column in shown])
    axes.tick_params(axis="x", rotation=90 if upright else 0, pad=4)
    for column, text in zip(shown, axes.get_xticklabels(), strict=True):
        text.set_fontweight("bold" if column < len(panel.marked) and panel.marked[column] else "normal")
    for column in np.flatnonzero(panel.marked):
        ends = (column + 0.1, column + 0.9)
        foot = -0.025 / (len(panel.rows) * box.cell_height)
        axes.plot(ends, (foot, foot), color=MARK, lw=1.5, transform=axes.get_xaxis_transform(), clip_on=False)


def _colour_bar(figure: "Figure", scale: Scale, *, hatched: bool) -> None:
    """Draw the scale at the figure's foot: its colours, its limits, the words of both ends, the sign for not run."""
    from matplotlib.cm import ScalarMappable

    wide, tall = figure.get_size_inches()
    words = [text_width(word) * _INCH + 0.08 for word in (scale.negative, scale.positive)]
    legend = 0.62 if hatched else 0.0
    length = max(0.6, min(1.6, wide - sum(words) - legend - 4 * _EDGE))
    left = (wide - sum(words) - legend - length) / 2 + words[0]
    axes = figure.add_axes((left / wide, 0.26 / tall, length / wide, 0.09 / tall))
    bar = figure.colorbar(ScalarMappable(_norm(scale), _colour_map()), cax=axes, orientation="horizontal")
    bar.set_ticks([-scale.limit, 0, scale.limit], labels=[number(-scale.limit), "0", number(scale.limit)])
    bar.ax.tick_params(length=2, width=0.5, pad=1, labelsize=_FONT)
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")  # else thin white lines between the colours in viewers of PDF
    bar.outline.set(linewidth=0.5, edgecolor="0.6")  # pyright: ignore[reportCallIssue]
    axes.text(-0.06 / length, 0.5, scale.negative, transform=axes.transAxes, ha="right", va="center")
    axes.text(1 + 0.06 / length, 0.5, scale.positive, transform=axes.transAxes, ha="left", va="center")
    if hatched:
        x = left + length + words[1] + 0.1
        box = (x / wide, 0.26 / tall)
        figure.add_artist(_hatched(box, 0.14 / wide, 0.09 / tall, transform=figure.transFigure))
        figure.text((x + 0.19) / wide, 0.305 / tall, "not run", ha="left", va="center")


def _hatched(corner: tuple[float, float], wide: float, tall: float, *, transform: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, wide, tall, transform=transform, facecolor="white", edgecolor="0.55", lw=0, hatch=_HATCH)


def _corner(row: float, column: float, box: _Box) -> Any:
    """Mark a value beyond the scale by a white corner."""
    from matplotlib.patches import Polygon

    size = min(box.cell_width, box.cell_height, 0.06)
    x, y = column + 1 - size / box.cell_width, row + 1 - size / box.cell_height
    return Polygon(((x, row + 1), (column + 1, row + 1), (column + 1, y)), facecolor="white", lw=0)


def _colour_map() -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([diverging(level) for level in range(-STEPS, STEPS + 1)])


def _norm(scale: Scale) -> Any:
    """Give each colour level as much of the scale as `Scale.level` does."""
    from matplotlib.colors import Normalize

    end = (scale.limit or 1.0) * (1 + 0.5 / STEPS)
    return Normalize(-end, end)


def _fallbacks(text: str) -> list[str]:
    """Name installed fonts for the letters that matplotlib's own has not, first found first taken."""
    from matplotlib.font_manager import findfont, fontManager, get_font

    own = get_font(findfont("DejaVu Sans"))
    missing = {letter for letter in text if not own.get_char_index(ord(letter))}
    found: list[str] = []
    for entry in fontManager.ttflist:
        if not missing:
            break
        # Fonts of pictures have no outlines; the last resort is taken by matplotlib itself.
        if "Emoji" in entry.name or "Last Resort" in entry.name:
            continue
        try:
            has = {letter for letter in missing if get_font(entry.fname).get_char_index(ord(letter))}
        except (OSError, RuntimeError):
            continue
        if has:
            found.append(entry.name)
            missing -= has
    return found
