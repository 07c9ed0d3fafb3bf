"""Heat maps to point at and zoom into, on plotly: one colour scale for all, every text escaped."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from crosspatch.core.errors import BadInput, MissingExtra
from crosspatch.draw.colour import STEPS, Scale, diverging
from crosspatch.draw.heatmap import cell_text
from crosspatch.draw.label import number
from crosspatch.draw.panel import Panel

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_ROW, _LEAST, _BETWEEN, _AROUND = 14, 84, 80, 180  # pixels: a row, the least of a map, for labels, margins
_NOT_RUN = "#d9d9d9"


def maps_plotly(panels: Sequence[Panel], scale: Scale) -> "Figure":
    """Draw panels below each other as a plotly figure; pointing at a cell tells its site, its value and its interval.

    Cells that were not run are grey. Raises BadInput without panels, MissingExtra without plotly.
    """
    if not panels:
        raise BadInput("there is nothing to draw: no kind has few enough sites for a picture.")
    try:
        from plotly.graph_objects import Heatmap
        from plotly.subplots import make_subplots
    except ImportError:
        raise MissingExtra("to_plotly needs plotly: pip install 'crosspatch[plotly]'") from None
    cells = [max(_LEAST, len(panel.rows) * _ROW) for panel in panels]
    inside = sum(cells) + _BETWEEN * (len(panels) - 1)
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        subplot_titles=[_plain(panel.title) for panel in panels],
        row_heights=cells,
        vertical_spacing=_BETWEEN / inside,
    )
    for place, panel in enumerate(panels, start=1):
        rows, columns = panel.values.shape
        told = [[_told(panel, row, column) for column in range(columns)] for row in range(rows)]
        values = [[None if np.isnan(value) else float(value) for value in line] for line in panel.values]
        look = {"coloraxis": "coloraxis", "xgap": 1, "ygap": 1, "hovertemplate": "%{hovertext}<extra></extra>"}
        figure.add_trace(Heatmap(z=values, hovertext=told, **look), row=place, col=1)
        names = [_plain(label) for label in panel.columns]
        figure.update_xaxes(tickvals=list(range(columns)), ticktext=names, row=place, col=1)
        rows_named = {"tickvals": list(range(rows)), "ticktext": list(panel.rows)}
        figure.update_yaxes(**rows_named, title_text=panel.row_word if any(panel.rows) else None, row=place, col=1)
    # Lines of a grid would cross the cells.
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(showgrid=False, zeroline=False)
    figure.update_layout(coloraxis=_axis(scale), plot_bgcolor=_NOT_RUN, height=inside + _AROUND)
    return figure


def _axis(scale: Scale) -> dict[str, object]:
    """Give the scale as plotly's colour axis: the library's levels, zero in the middle, the words of both ends."""
    end = scale.limit * (1 + 0.5 / STEPS)
    levels, steps = range(-STEPS, STEPS + 1), 2 * STEPS + 1
    # Each colour twice: plotly blends between stops.
    stops = [[(place + side) / steps, diverging(level)] for place, level in enumerate(levels) for side in (0, 1)]
    limit = float(scale.limit)
    words = [f"{number(-limit)} {scale.negative}", "0", f"{number(limit)} {scale.positive}"]
    bar = {"tickvals": [-limit, 0, limit], "ticktext": words}
    return {"colorscale": stops, "cmin": -end, "cmax": end, "colorbar": bar}


def _told(panel: Panel, row: int, column: int) -> str:
    return _plain(f"{panel.title} · {cell_text(panel, row=row, column=column)}")


def _plain(text: str) -> str:
    """Escape a text for plotly, which reads tags, and mathematics between dollar signs."""
    return escape(text, quote=False).replace("$", "&#36;")
