"""Effects in a notebook: a static picture without script, from the same parts as the page."""

from collections.abc import Sequence
from html import escape

import numpy as np

from crosspatch.draw import Scale, colour_bar_svg, heatmap_svg
from crosspatch.engine.grids import Grid
from crosspatch.engine.tables import Top


def notebook_html(finding: str, grids: Sequence[Grid], *, scale: Scale, top: Top, best: int | None = None) -> str:
    """Put finding, one heat map a kind, colour bar and strongest sites into HTML without script or style."""
    maps = "".join(heatmap_svg(grid.panel(best=best), scale) for grid in grids)
    hatched = any(bool(np.isnan(grid.values).any()) for grid in grids)
    bar = colour_bar_svg(scale, hatched=hatched) if grids else ""
    return f"<div><p><strong>{escape(finding)}</strong></p><div>{maps}</div>{bar}{top._repr_html_()}</div>"
