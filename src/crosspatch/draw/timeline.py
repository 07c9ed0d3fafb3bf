"""What stands around and over an image of time: a wave, seconds, marked stretches, labels of rows; static SVG."""

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float

from crosspatch.core.errors import BadInput
from crosspatch.draw.curves import round_step
from crosspatch.draw.label import clip, number, shown
from crosspatch.draw.panel import text_width

WIDE = 860  # pixels of the image, and of the seconds under it
MEL_TALL = 150  # pixels of a spectrogram; the style sheet knows where images stand: `.plot img`
_COLUMNS = 800  # of a wave: finer ones are less than a pixel
_LEFT, _RIGHT, _FOOT = 52, 24, 36
_WAVE, _GAP, _LANE = 72, 8, 15
_LONGEST = 22  # letters of a mark or a row
_FONT = 'font-family="ui-sans-serif,system-ui,sans-serif" font-size="10.5" fill="currentColor"'

Marks = Sequence[tuple[float, float, str]]


def sound_svg(samples: Float[np.ndarray, " sample"], seconds: float, *, marks: Marks = (), mels: int = 0) -> str:
    """Draw a wave, its seconds, and marks as bands; between wave and seconds there is room for a spectrogram.

    The room is left out with no `mels`. It ends 36 pixels above the bottom and begins 52 from the left.
    """
    seconds = seconds if seconds > 0 else 1.0
    lanes = _lanes(marks, seconds)
    head = _LANE * (1 + max(lanes, default=-1)) + 6
    foot = head + _WAVE + (_GAP + MEL_TALL if mels else 0)
    names = ", ".join(f"{name} from {number(start)} to {number(stop)} s" for start, stop, name in marks)
    words = f"Wave of {number(seconds)} s" + (f", with marks: {names}" if names else "")
    middle = foot - MEL_TALL / 2
    turned = f'transform="rotate(-90 12 {middle:g})"'
    mel = [
        _text("high", x=_LEFT - 7, y=foot - MEL_TALL + 9, anchor="end"),
        _text("low", x=_LEFT - 7, y=foot, anchor="end"),
        f'<text x="12" y="{middle:g}" text-anchor="middle" {turned}>{mels} mels</text>',
    ]
    return "".join(
        [
            _open(_LEFT + WIDE + _RIGHT, foot + _FOOT, words),
            *_bands(marks, lanes, seconds, head=head, foot=foot),
            _wave(samples, head),
            f"<g {_FONT}>",
            *_peak(samples, head),
            *(mel if mels else []),
            *_seconds(seconds, left=_LEFT, foot=foot),
            "</g></svg>",
        ]
    )


def rows_svg(labels: Sequence[str], height: int, seconds: float) -> str:
    """Draw the labels of an image's rows, `height` pixels each, on its left, and seconds below it.

    The image ends 36 pixels above the bottom and 24 from the right. Where rows are low, only some are labelled.
    """
    texts = [clip(shown(label), _LONGEST) for label in labels]
    left = 18 + round(max(map(text_width, texts), default=0.0))
    foot = 6 + height * len(texts)
    step = -(-11 // height)
    rows = [
        _text(text, x=left - 7, y=6 + (row + 0.5) * height + 3.7, anchor="end")
        for row, text in enumerate(texts)
        if row % step == 0
    ]
    words = f"{len(texts)} rows over {number(seconds)} s: {', '.join(texts)}"
    axis = _seconds(seconds if seconds > 0 else 1.0, left=left, foot=foot)
    frame = f'<path d="M{left} 6h{WIDE}v{foot - 6}h-{WIDE}z" stroke="currentColor" stroke-opacity="0.18" fill="none"/>'
    parts = [_open(left + WIDE + _RIGHT, foot + _FOOT, words), frame, f"<g {_FONT}>", *rows, *axis, "</g></svg>"]
    return "".join(parts)


def row_height(rows: int) -> int:
    """Choose how many pixels a row of an image gets.

    Raises BadInput without rows.
    """
    if rows < 1:
        raise BadInput("an image has no rows: give one at least.")
    return max(3, min(16, 480 // rows))


def _open(width: int, height: int, words: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="over" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(words)}">'
    )


def _text(text: str, *, x: float | int, y: float | int, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _seconds(seconds: float, *, left: int, foot: int) -> list[str]:
    parts = [f'<path d="M{left} {foot + 0.5}h{WIDE}" stroke="currentColor" stroke-opacity="0.6" fill="none"/>']
    step = round_step(seconds / 10)
    for i in range(int(seconds / step + 1e-6) + 1):
        x = left + WIDE * i * step / seconds
        parts.append(f'<path d="M{x:.1f} {foot}v5" stroke="currentColor" stroke-opacity="0.6" fill="none"/>')
        parts.append(_text(f"{i * step:.6g}", x=round(x, 1), y=foot + 17, anchor="middle"))
    return [*parts, _text("seconds", x=left + WIDE / 2, y=foot + 32, anchor="middle")]


def _wave(samples: Float[np.ndarray, " sample"], top: int) -> str:
    """Draw the lowest and the highest sample of each column as one closed shape; samples that are missing are zero."""
    if not samples.size:
        return ""
    samples = np.nan_to_num(samples.astype(np.float64), posinf=0.0, neginf=0.0)
    columns = min(_COLUMNS, len(samples))
    starts = np.arange(columns) * len(samples) // columns
    limit = float(np.abs(samples).max()) or 1.0
    x = _LEFT + (np.arange(columns) + 0.5) * WIDE / columns
    high, low = (top + _WAVE * (0.5 - 0.48 * f.reduceat(samples, starts) / limit) for f in (np.maximum, np.minimum))
    upper = [f"{a:.1f} {b:.1f}" for a, b in zip(x, high, strict=True)]
    lower = [f"{a:.1f} {b:.1f}" for a, b in zip(x[::-1], low[::-1], strict=True)]
    # The stroke keeps silence, which has no height, in sight.
    return f'<path class="wave" d="M{"L".join(upper + lower)}z" stroke-width="0.8" stroke-linejoin="round"/>'


def _peak(samples: Float[np.ndarray, " sample"], top: int) -> list[str]:
    there = np.abs(samples[np.isfinite(samples)])
    text = f"±{number(float(there.max()))}" if there.size and there.max() > 0 else "0"
    return [_text(text, x=_LEFT - 7, y=top + _WAVE / 2 + 3.7, anchor="end")]


def _lanes(marks: Marks, seconds: float) -> list[int]:
    """Set each mark's name in the lowest line where it meets no other."""
    ends: list[float] = []
    lanes = [0] * len(marks)
    for place in sorted(range(len(marks)), key=lambda i: marks[i][0]):
        start, stop = _reach(marks[place], seconds)
        lane = next((i for i, end in enumerate(ends) if end <= start), len(ends))
        ends[lane : lane + 1] = [stop + 6]
        lanes[place] = lane
    return lanes


def _reach(mark: tuple[float, float, str], seconds: float) -> tuple[float, float]:
    """Give the pixels of a mark's name: above the middle of its band, within the picture."""
    half = text_width(clip(mark[2], _LONGEST)) / 2
    first, last = _ends(mark, seconds)
    middle = min(max((first + last) / 2, _LEFT + half), _LEFT + WIDE - half)
    return middle - half, middle + half


def _ends(mark: tuple[float, float, str], seconds: float) -> tuple[float, float]:
    first, last = (min(max(float(second), 0.0), seconds) for second in mark[:2])
    return _LEFT + WIDE * first / seconds, _LEFT + WIDE * last / seconds


def _bands(marks: Marks, lanes: Sequence[int], seconds: float, *, head: int, foot: int) -> list[str]:
    parts = []
    for mark, lane in zip(marks, lanes, strict=True):
        first, last = _ends(mark, seconds)
        middle = round(sum(_reach(mark, seconds)) / 2, 1)
        name = _text(clip(mark[2], _LONGEST), x=middle, y=head - _LANE * lane - 5, anchor="middle")
        across = f'x="{first:.1f}" y="{head}" width="{max(last - first, 1):.1f}"'
        # A tint over the wave alone: over a spectrogram it would change colours that mean something.
        tint = f'<rect class="mark" {across} height="{_WAVE}"/>'
        parts.append(f'{tint}<rect class="edge" {across} height="{foot - head}" fill="none"/><g {_FONT}>{name}</g>')
    return parts
