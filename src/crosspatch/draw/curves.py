"""Curves over a logarithmic axis or over layers: lines, bands, a legend; static SVG for light and dark pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
_MOST_TICKS = 12  # of an x axis of layers
_LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT, _BELOW, _STEP = 58, 30, 360, 230, 40, 17
_FONT = 'font-family="ui-sans-serif,system-ui,sans-serif" font-size="10" fill="currentColor"'


@dataclass(frozen=True, eq=False)
class Curve:
    """One line: its name in the legend, and its points; NaN is left out.

    `low` and `high` bound a band about it. A `reference` is drawn in the colour of the text, behind the others.
    Raises BadInput unless all have one length.
    """

    name: str
    x: Float[np.ndarray, " point"]
    y: Float[np.ndarray, " point"]
    low: Float[np.ndarray, " point"] | None = None
    high: Float[np.ndarray, " point"] | None = None
    reference: bool = False

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if any(values.shape != self.x.shape for values in (self.y, *bounds)):
            raise BadInput(f"curve {self.name!r} of {len(self.x)} and {len(self.y)} numbers: give as many x as y.")

    @property
    def heights(self) -> list[np.ndarray]:
        """All that the y axis must span."""
        return [self.y, *(bound for bound in (self.low, self.high) if bound is not None)]


@dataclass(frozen=True)
class _Axis:
    """An axis: the ends of its domain, and the pixels that they stand at; logarithmic unless it is linear."""

    low: float
    high: float
    start: int
    stop: int
    linear: bool = False
    step: float | None = None  # between the ticks of a linear one; by default about five are set

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.linear else self._log_share(value)
        return round(self.start + share * (self.stop - self.start), 1)

    def _log_share(self, value: float) -> float:
        return math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Give round numbers within the axis: on a linear one about five, else powers of ten, or their parts too."""
        if self.linear:
            step = self.step or round_step((self.high - self.low) / 5)
            return [step * i for i in range(math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6) + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1,), (1, 2, 5)):
            found = [step * 10.0**power for power in powers for step in steps]
            found = [tick for tick in found if self.low * 0.999 <= tick <= self.high * 1.001]
            if len(found) > 2:
                break
        return found or [self.low]


def curves_svg(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    linear_y: bool = False,
    linear_x: bool = False,
) -> str:
    """Draw curves over a logarithmic x axis as one SVG element, with a legend on the right in the order given.

    The y axis is logarithmic too, unless `linear_y`: then each point is marked, since few were measured. It holds
    zero and one. With `linear_x`, for curves over layers, both axes are linear, and y need hold zero alone.
    Text and axes take the colour of the page's text. Raises BadInput without a curve, and for numbers that are not
    above zero on a logarithmic axis.
    """
    _check(curves, linear_x=linear_x, linear_y=linear_x or linear_y)
    names = [clip(curve.name, 32) for curve in curves]
    width = _LEFT + _PLOT_WIDTH + 46 + math.ceil(max(map(text_width, names)))
    height = max(_TOP + _PLOT_HEIGHT, _TOP + _STEP * len(curves)) + _BELOW
    x, y = _axes(curves, linear_x=linear_x, linear_y=linear_y)
    looks = _looks(curves)
    # References lie behind what they are compared with.
    order = sorted(range(len(curves)), key=lambda i: not curves[i].reference)
    words = escape(f"{title}: {y_label} against {x_label} of {', '.join(curve.name for curve in curves)}")
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{words}">',
            f'<g {_FONT}><text x="2" y="13" font-size="12" font-weight="600">{escape(title)}</text>',
            *_x_axis(x, x_label),
            *_y_axis(y, y_label),
            *(_legend(number, name, looks[number]) for number, name in enumerate(names)),
            "</g>",
            *(_band(curves[i], looks[i].colour, x, y=y) for i in order),
            *(_line(curves[i], looks[i], x, y=y) for i in order),
            "</svg>",
        ]
    )


def _check(curves: Sequence[Curve], *, linear_x: bool, linear_y: bool) -> None:
    if not curves:
        raise BadInput("there are no curves to draw: give one at least.")
    if not linear_x and (names := [curve.name for curve in curves if (curve.x <= 0).any()]):
        raise BadInput(f"curve {names[0]!r} has an x that is not above zero: their axis is logarithmic.")
    if not linear_y and any((height <= 0).any() for curve in curves for height in curve.heights):
        raise BadInput("a curve's y is zero or less: a logarithmic axis has no such place; give linear_y=True.")


def _axes(curves: Sequence[Curve], *, linear_x: bool, linear_y: bool) -> tuple[_Axis, _Axis]:
    across, up = (_LEFT, _LEFT + _PLOT_WIDTH), (_TOP + _PLOT_HEIGHT, _TOP)
    places, heights = [curve.x for curve in curves], [values for curve in curves for values in curve.heights]
    if linear_x:
        y = _linear_axis(heights, *up, held=(0.0,))
        return _layer_axis(places, *across), replace(y, step=round_step((y.high - y.low) / 7))
    # Shares are read against nothing and all.
    return _axis(places, *across), _linear_axis(heights, *up, held=(0.0, 1.0)) if linear_y else _axis(heights, *up)


def _axis(values: Sequence[np.ndarray], start: int, stop: int) -> _Axis:
    """Span all finite values; a single one stands in the middle of a decade, none at one."""
    every = np.concatenate(values)
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if len(every) else (1.0, 1.0)
    if high / low < 1.1:
        low, high = low / math.sqrt(10), high * math.sqrt(10)
    return _Axis(low, high, start, stop)


def _linear_axis(values: Sequence[np.ndarray], start: int, stop: int, *, held: Sequence[float]) -> _Axis:
    """Span all finite values and those that the axis must hold."""
    every = np.concatenate([*values, np.array(held, dtype=np.float64)])
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    room = 0.03 * (high - low) or 0.5
    return _Axis(low - room, high + room, start, stop, linear=True)


def _layer_axis(values: Sequence[np.ndarray], start: int, stop: int) -> _Axis:
    """Span all finite values, with ticks at whole numbers where all are whole."""
    axis = _linear_axis(values, start, stop, held=())
    whole = all((there == there.round()).all() for each in values if len(there := each[np.isfinite(each)]))
    step = round_step((axis.high - axis.low) / _MOST_TICKS)
    return replace(axis, step=max(1.0, step) if whole else step)


def round_step(least: float) -> float:
    """Give the next step of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * 0.999)


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
    return f"{value:,.0f}" if 1 <= value < 1e6 and value == round(value) else f"{value + 0.0:.6g}"


@dataclass(frozen=True)
class _Look:
    colour: str
    dash: str

    def stroke(self) -> str:
        dashed = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        return f'stroke="{self.colour}" stroke-width="2"{dashed} fill="none"'


def _looks(curves: Sequence[Curve]) -> list[_Look]:
    """Give each curve a colour and dashes: methods those of the palette in turn, references the text's."""
    looks, methods, references = [], 0, 0
    for curve in curves:
        if curve.reference:
            looks.append(_Look("currentColor", _DASHES[1 + references % (len(_DASHES) - 1)]))
        else:
            dash = _DASHES[methods // len(_COLOURS) % len(_DASHES)]
            looks.append(_Look(_COLOURS[methods % len(_COLOURS)], dash))
        references, methods = references + curve.reference, methods + (not curve.reference)
    return looks


def _legend(number: int, name: str, look: _Look) -> str:
    x, y = _LEFT + _PLOT_WIDTH + 12, _TOP + _STEP * number + 8
    return f'<path d="M{x} {y}h20" {look.stroke()}/><text x="{x + 26}" y="{y + 3.5}">{escape(name)}</text>'


def _line(curve: Curve, look: _Look, x: _Axis, *, y: _Axis) -> str:
    there = np.flatnonzero(np.isfinite(curve.x) & np.isfinite(curve.y))
    kept = there[_spaced(len(there), even=x.linear)]
    points = [f"{x.at(float(curve.x[i])):g} {y.at(float(curve.y[i])):g}" for i in kept]
    marks = "".join(f"M{point}h0" for point in points) if y.linear else ""
    if len(points) == 1:
        points.append(points[0])  # a line of no length and a round cap is a dot
    joined = f'd="M{"L".join(points)}" ' if points else ""
    dots = f'<path d="{marks}" stroke="{look.colour}" stroke-width="5" stroke-linecap="round"/>' if marks else ""
    return (
        f'<path class="curve" {joined}{look.stroke()} stroke-linejoin="round" stroke-linecap="round">'
        f"<title>{escape(curve.name)}</title></path>{dots}"
    )


def _band(curve: Curve, colour: str, x: _Axis, *, y: _Axis) -> str:
    """Fill what lies between both bounds."""
    low, high = curve.low, curve.high
    if low is None or high is None:
        return ""
    there = np.flatnonzero(np.isfinite(curve.x) & np.isfinite(low) & np.isfinite(high))
    there = there[_spaced(len(there), even=x.linear)]
    ring = [(i, high) for i in there] + [(i, low) for i in there[::-1]]
    points = "L".join(f"{x.at(float(curve.x[i])):g} {y.at(float(bound[i])):g}" for i, bound in ring)
    shade = f'fill="{colour}" fill-opacity="{0.08 if curve.reference else 0.16}"'
    return f'<path class="band" {shade} d="M{points}z"/>' if points else ""


def _spaced(count: int, *, even: bool) -> np.ndarray:
    """Choose points evenly on the axis, logarithmic or even, the first and the last among them."""
    if count <= _MOST_POINTS:
        return np.arange(count)
    if even:
        return np.linspace(0, count - 1, _MOST_POINTS).round().astype(np.int64)
    return np.unique(np.round(np.geomspace(1, count, _MOST_POINTS)).astype(np.int64)) - 1
