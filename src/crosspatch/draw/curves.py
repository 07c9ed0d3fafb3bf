"""Curves on logarithmic axes: one line a method, with a legend; static SVG, readable on light and dark pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float

from crosspatch.core.errors import BadInput
from crosspatch.draw.colour import OKABE_ITO
from crosspatch.draw.label import clip
from crosspatch.draw.panel import text_width

# Black and yellow are left out: each vanishes on one kind of page. Dashes tell further lines apart.
_COLOURS = (OKABE_ITO[0], OKABE_ITO[3], OKABE_ITO[2], OKABE_ITO[4], OKABE_ITO[1], OKABE_ITO[5])
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_MOST_POINTS = 400  # of one line; more cannot be told apart
_LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT, _BELOW, _STEP = 58, 30, 360, 230, 40, 17
_FONT = 'font-family="ui-sans-serif,system-ui,sans-serif" font-size="10" fill="currentColor"'


@dataclass(frozen=True, eq=False)
class Curve:
    """One line: its name in the legend, and its points, all above zero; NaN is left out. Raises BadInput else."""

    name: str
    x: Float[np.ndarray, " point"]
    y: Float[np.ndarray, " point"]

    def __post_init__(self) -> None:
        if self.x.shape != self.y.shape or (self.x <= 0).any() or (self.y <= 0).any():
            raise BadInput(
                f"curve {self.name!r} of {len(self.x)} and {len(self.y)} numbers: give as many x as y, all above zero, "
                "since the axes are logarithmic."
            )


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis: the ends of its domain, and the pixels that they stand at."""

    low: float
    high: float
    start: int
    stop: int

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self) -> list[float]:
        """Give powers of ten within the axis; below two of them, also their doubles and fives."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1,), (1, 2, 5)):
            found = [step * 10.0**power for power in powers for step in steps]
            found = [tick for tick in found if self.low * 0.999 <= tick <= self.high * 1.001]
            if len(found) > 2:
                break
        return found or [self.low]


def curves_svg(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str) -> str:
    """Draw curves on two logarithmic axes as one SVG element, with a legend on the right in the order given.

    Text and axes take the colour of the page's text. Raises BadInput without a curve.
    """
    if not curves:
        raise BadInput("there are no curves to draw: give one at least.")
    names = [clip(curve.name, 32) for curve in curves]
    width = _LEFT + _PLOT_WIDTH + 46 + math.ceil(max(map(text_width, names)))
    height = max(_TOP + _PLOT_HEIGHT, _TOP + _STEP * len(curves)) + _BELOW
    x = _axis([curve.x for curve in curves], _LEFT, _LEFT + _PLOT_WIDTH)
    y = _axis([curve.y for curve in curves], _TOP + _PLOT_HEIGHT, _TOP)
    words = escape(f"{title}: {y_label} against {x_label} of {', '.join(curve.name for curve in curves)}")
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{words}">',
            f'<g {_FONT}><text x="2" y="13" font-size="12" font-weight="600">{escape(title)}</text>',
            *_x_axis(x, x_label),
            *_y_axis(y, y_label),
            *(_legend(number, name) for number, name in enumerate(names)),
            "</g>",
            *(_line(curve, number, x, y) for number, curve in enumerate(curves)),
            "</svg>",
        ]
    )


def _axis(values: Sequence[np.ndarray], start: int, stop: int) -> _Axis:
    """Span all finite values; a single one stands in the middle of a decade, none at one."""
    every = np.concatenate(values)
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if len(every) else (1.0, 1.0)
    if high / low < 1.1:
        low, high = low / math.sqrt(10), high * math.sqrt(10)
    return _Axis(low, high, start, stop)


def _x_axis(axis: _Axis, label: str) -> list[str]:
    bottom, middle = _TOP + _PLOT_HEIGHT, _LEFT + _PLOT_WIDTH // 2
    parts = [f'<path d="M{_LEFT} {bottom}h{_PLOT_WIDTH}" stroke="currentColor" stroke-opacity="0.6" fill="none"/>']
    for tick in axis.ticks():
        place = axis.at(tick)
        parts.append(_grid(f"M{place:g} {_TOP}V{bottom + 4}"))
        parts.append(f'<text x="{place:g}" y="{bottom + 16}" text-anchor="middle">{_tick(tick)}</text>')
    return [*parts, f'<text x="{middle}" y="{bottom + 33}" text-anchor="middle" font-size="11">{escape(label)}</text>']


def _y_axis(axis: _Axis, label: str) -> list[str]:
    middle = _TOP + _PLOT_HEIGHT // 2
    parts = [f'<path d="M{_LEFT} {_TOP}v{_PLOT_HEIGHT}" stroke="currentColor" stroke-opacity="0.6" fill="none"/>']
    for tick in axis.ticks():
        place = axis.at(tick)
        parts.append(_grid(f"M{_LEFT - 4} {place:g}H{_LEFT + _PLOT_WIDTH}"))
        parts.append(f'<text x="{_LEFT - 7}" y="{place + 3.5:g}" text-anchor="end">{_tick(tick)}</text>')
    turned = f'transform="rotate(-90 13 {middle})"'
    return [*parts, f'<text x="13" y="{middle}" text-anchor="middle" font-size="11" {turned}>{escape(label)}</text>']


def _grid(path: str) -> str:
    return f'<path class="tick" d="{path}" stroke="currentColor" stroke-opacity="0.15" fill="none"/>'


def _tick(value: float) -> str:
    return f"{value:,.0f}" if 1 <= value < 1e6 else f"{value:g}"


def _stroke(number: int) -> str:
    dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="2"{dashed} fill="none"'


def _legend(number: int, name: str) -> str:
    x, y = _LEFT + _PLOT_WIDTH + 12, _TOP + _STEP * number + 8
    return f'<path d="M{x} {y}h20" {_stroke(number)}/><text x="{x + 26}" y="{y + 3.5}">{escape(name)}</text>'


def _line(curve: Curve, number: int, x: _Axis, y: _Axis) -> str:
    there = np.flatnonzero(np.isfinite(curve.x) & np.isfinite(curve.y))
    kept = there[_spaced(len(there))]
    points = [f"{x.at(float(curve.x[i])):g} {y.at(float(curve.y[i])):g}" for i in kept]
    if len(points) == 1:
        points.append(points[0])  # a line of no length and a round cap is a dot
    joined = f'd="M{"L".join(points)}" ' if points else ""
    return (
        f'<path class="curve" {joined}{_stroke(number)} stroke-linejoin="round" stroke-linecap="round">'
        f"<title>{escape(curve.name)}</title></path>"
    )


def _spaced(count: int) -> np.ndarray:
    """Choose points evenly on the logarithmic axis, the first and the last among them."""
    if count <= _MOST_POINTS:
        return np.arange(count)
    return np.unique(np.round(np.geomspace(1, count, _MOST_POINTS)).astype(np.int64)) - 1
