"""Points of two numbers each, with the diagonal where both agree; static SVG, readable on light and dark pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

from crosspatch.draw.colour import OKABE_ITO
from crosspatch.draw.label import number

_LEFT, _TOP, _SIZE, _BELOW, _STEP = 52, 14, 240, 44, 15
_FONT = 'font-family="ui-sans-serif,system-ui,sans-serif" font-size="10" fill="currentColor"'
_FAINT = 'stroke="currentColor" opacity="0.4"'
_COLOURS = (OKABE_ITO[0], OKABE_ITO[3], OKABE_ITO[2], OKABE_ITO[4])


@dataclass(frozen=True)
class Point:
    """One point, with the name that a pointer shows; `group` chooses its colour, and stands in the legend."""

    x: float
    y: float
    name: str
    group: str


@dataclass(frozen=True)
class _Range:
    low: float
    high: float

    def at(self, value: float) -> float:
        return round(_SIZE * (value - self.low) / (self.high - self.low), 1)


def scatter_svg(points: Sequence[Point], *, x: str, y: str, title: str) -> str:
    """Draw points on two equal axes; those on the diagonal agree. Points without finite numbers are left out."""
    there = [point for point in points if isfinite(point.x) and isfinite(point.y)]
    values = [0.0, *(value for point in there for value in (point.x, point.y))]
    room = 0.05 * max(max(values) - min(values), 1e-9)
    axis = _Range(min(values) - room, max(values) + room)
    groups = list(dict.fromkeys(point.group for point in there))
    colours = {group: _COLOURS[i % len(_COLOURS)] for i, group in enumerate(groups)}
    dots = [_dot(point, axis, colours[point.group], words=(x, y)) for point in there]
    width, height = _LEFT + _SIZE + 14, _TOP + _SIZE + _BELOW + _STEP * len(groups)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">{_frame(axis, sorted({min(values), 0.0, max(values)}), x, y=y)}'
        f"{''.join(dots)}{_legend(colours)}</svg>"
    )


def _frame(axis: _Range, ticks: Sequence[float], x: str, *, y: str) -> str:
    bottom, middle = _TOP + _SIZE, _SIZE / 2
    parts = [
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIZE}" height="{_SIZE}" fill="none" {_FAINT}/>',
        f'<line x1="{_LEFT}" y1="{bottom}" x2="{_LEFT + _SIZE}" y2="{_TOP}" {_FAINT}/>',
        f'<text x="{_LEFT + middle}" y="{bottom + 28}" text-anchor="middle" {_FONT}>{escape(x)}</text>',
        f'<text transform="translate(12 {_TOP + middle}) rotate(-90)" text-anchor="middle" {_FONT}>{escape(y)}</text>',
    ]
    for tick in ticks:
        place, text = axis.at(tick), number(tick)
        parts.append(f'<text x="{_LEFT + place}" y="{bottom + 13}" text-anchor="middle" {_FONT}>{text}</text>')
        parts.append(f'<text x="{_LEFT - 5}" y="{bottom - place + 3}" text-anchor="end" {_FONT}>{text}</text>')
    return "".join(parts)


def _dot(point: Point, axis: _Range, colour: str, *, words: tuple[str, str]) -> str:
    label = escape(f"{point.name}: {words[0]} {number(point.x)}, {words[1]} {number(point.y)}")
    return (
        f'<circle cx="{_LEFT + axis.at(point.x)}" cy="{_TOP + _SIZE - axis.at(point.y)}" r="4" fill="{colour}" '
        f'fill-opacity="0.75"><title>{label}</title></circle>'
    )


def _legend(colours: dict[str, str]) -> str:
    parts = []
    for row, (group, colour) in enumerate(colours.items()):
        top = _TOP + _SIZE + _BELOW + _STEP * row
        parts.append(f'<circle cx="{_LEFT + 8}" cy="{top}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + 17}" y="{top + 3}" {_FONT}>{escape(group)}</text>')
    return "".join(parts)
