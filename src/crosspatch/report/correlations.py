"""A matrix of rank correlations as a picture: rows with their names, columns with their numbers."""

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float

from crosspatch.draw import Scale, colour_bar_svg, number
from crosspatch.draw.heatmap import class_paint

ENDS = Scale(1.0, "opposite order", "same order")
ROOMY = 28  # pixels of a square from which its number is written into it
_STRONG = 11  # colour level from which ink no longer shows on a square


def correlation_svg(names: Sequence[str], values: Float[np.ndarray, "row row"], *, cell: int, what: str) -> str:
    """Draw the correlations of every two of `what`; squares are `cell` pixels wide, large ones hold their number."""
    listed = [f"{place} {name}" for place, name in enumerate(names, start=1)]
    left, top, size = round(6.1 * max(map(len, listed))) + 12, 20, cell * len(names)
    parts = []
    for i in range(len(names)):
        y = top + i * cell
        parts.append(f'<text x="{left - 6}" y="{y + cell / 2 + 3.5:g}" text-anchor="end">{escape(listed[i])}</text>')
        parts.append(f'<text x="{left + (i + 0.5) * cell - 0.5:g}" y="{top - 5}" text-anchor="middle">{i + 1}</text>')
        parts += [
            _square(names[i], names[j], float(values[i, j]), cell=cell, at=(left + j * cell, y))
            for j in range(len(names))
        ]
    start = f'<svg class="map" viewBox="0 0 {left + size + 4} {top + size + 4}" width="{left + size + 4}" '
    label = f"Rank correlations between {len(names)} {what}; the numbers stand in the titles of the cells"
    font = 'font-family="ui-sans-serif,system-ui,sans-serif" font-size="10" fill="currentColor"'
    return f'{start}height="{top + size + 4}" role="img" aria-label="{escape(label)}" {font}>{"".join(parts)}</svg>'


def _square(first: str, second: str, value: float, *, cell: int, at: tuple[int, int]) -> str:
    level = 0 if np.isnan(value) else ENDS.level(value)
    colour = 'class="none"' if np.isnan(value) else class_paint(level)
    told = f"{first} and {second}: {'too few sites to rank' if np.isnan(value) else number(value)}"
    (x, y), wide = at, cell - 1
    square = f'<path {colour} d="M{x} {y}h{wide}v{wide}h-{wide}z"><title>{escape(told)}</title></path>'
    if cell < ROOMY:
        return square
    ink = ' class="strong"' if abs(level) >= _STRONG else ""
    return (
        f'{square}<text{ink} x="{x + wide / 2:g}" y="{y + cell / 2 + 3:g}" text-anchor="middle">{number(value)}</text>'
    )


def correlation_bar() -> str:
    """Draw the legend of such a matrix."""
    return colour_bar_svg(ENDS, paint=class_paint, unit="rank correlation")
