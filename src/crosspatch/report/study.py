"""Assemble the page of a study: findings beside the paper's claims, then sections of figures, tables, sounds."""

import io
import wave
from base64 import b64encode
from collections import Counter
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np

from crosspatch.audio.clips import RATE
from crosspatch.core.errors import BadInput
from crosspatch.core.store import write_whole
from crosspatch.draw import (
    Scale,
    colour_bar_svg,
    curves_svg,
    heatmap_svg,
    nice_limit,
    number,
    pooled,
    raster_png,
    rows_svg,
    sound_svg,
    with_interval,
)
from crosspatch.draw.heatmap import class_paint
from crosspatch.draw.timeline import MEL_TALL, WIDE, row_height
from crosspatch.report import sections
from crosspatch.report.frame import clean_text, page_script, page_style, policy, read_asset, template
from crosspatch.studies.study import VERDICTS, Heat, Lines, Pattern, Sound, Study, Table

_FRAMES = 100  # of a spectrogram a second
_FAINTEST = 2.0  # percent of a spectrogram that is left white
_RAMP = np.linspace(0.0, 1.0, 64)[None]
# A sign beside the word, since neither may rest on colour alone.
SIGNS = dict(zip(VERDICTS, "✓✗?–", strict=True))
_SUMMED = {
    "agrees": ("agrees with the paper", "agree with the paper"),
    "contradicts": ("contradicts the paper", "contradict the paper"),
    "undecided": ("is undecided", "are undecided"),
    "no claim": ("has no claim beside it", "have no claim beside them"),
}


def write_study(study: Study, path: str | Path) -> Path:
    """Write the page of a study as one HTML file without any reference to the network; give its path.

    Raises BadInput if the file cannot be written, and for a pattern without cells or with other names than rows.
    """
    path = Path(path)
    write_whole(path, study_page(study).encode("utf-8", errors="replace"))
    return path


def study_page(study: Study) -> str:
    """Give the page as text."""
    style, script = page_style() + read_asset("study.css"), page_script("study.js")
    about = dict(study.provenance)
    command = about.pop("command", None)
    html = template("study.html").render(
        study=study,
        style=style,
        script=script,
        policy=policy(style, script, sound=True),
        chips=[(name, value) for name, value in [("model", study.model), *study.chips] if value],
        signs=SIGNS,
        summary=summary(study),
        parts=[(part, [_view(figure) for figure in part.figures]) for part in study.sections],
        ramp=data_url("image/png", raster_png(_RAMP, 0.0, 1.0)),
        command=str(command) if command else "",
        provenance=sections.flat(about),
    )
    return clean_text(html)


def summary(study: Study) -> str:
    """Count verdicts in words, such as "2 agree with the paper, 1 contradicts the paper"."""
    count = Counter(finding.verdict for finding in study.findings)
    return ", ".join(f"{count[each]} {words[count[each] > 1]}" for each, words in _SUMMED.items() if count[each])


def data_url(kind: str, content: bytes) -> str:
    """Write bytes as an address that holds them."""
    return f"data:{kind};base64,{b64encode(content).decode()}"


def wav(samples: np.ndarray) -> bytes:
    """Write a clip as a WAV file of 16 bits; what is beyond full scale is cut off, what is missing is silence."""
    whole = np.clip(np.nan_to_num(samples.astype(np.float64)) * 32768, -32768, 32767).round().astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(whole.tobytes())
    return file.getvalue()


@singledispatch
def _view(figure: Any) -> dict[str, Any]:
    """Prepare a figure for the template: its kind, its drawing, the numbers behind it."""
    raise TypeError(f"a page has no figure of type {type(figure).__name__}")


@_view.register
def _(figure: Heat) -> dict[str, Any]:
    panel = figure.panel
    scale = Scale(nice_limit(panel.values) if figure.limit is None else figure.limit)
    hatched = bool(np.isnan(panel.values).any())
    # The table has the order of the map, in which row 0 is at the bottom.
    rows = [
        (label, [with_interval(*map(float, ends), digits=3) for ends in zip(*each, strict=True)])
        for label, *each in zip(panel.rows, panel.values, panel.low, panel.high, strict=True)
    ][::-1]
    return {
        "kind": "heat",
        "title": panel.title,
        "svg": heatmap_svg(panel, scale, paint=class_paint, hover=False),
        "bar": colour_bar_svg(scale, paint=class_paint, unit=figure.unit, hatched=hatched),
        "headers": (panel.row_word, *(label.replace(" ·", " ") for label in panel.columns)),
        "rows": rows,
        "unit": figure.unit,
        "note": figure.note,
    }


@_view.register
def _(figure: Lines) -> dict[str, Any]:
    svg = ""
    if figure.curves:
        labels = {"title": figure.title, "x_label": figure.x_label, "y_label": figure.y_label}
        svg = curves_svg(figure.curves, **labels, linear_x=True, linear_y=True)
    nothing = float("nan")
    rows = [
        (curve.name, f"{float(x):g}", with_interval(float(y), float(low), float(high), digits=3))
        for curve in figure.curves
        for x, y, low, high in zip(
            curve.x,
            curve.y,
            np.full(len(curve.x), nothing) if curve.low is None else curve.low,
            np.full(len(curve.x), nothing) if curve.high is None else curve.high,
            strict=True,
        )
    ]
    about = {"title": figure.title, "x_label": figure.x_label, "y_label": figure.y_label, "note": figure.note}
    return {"kind": "lines", "svg": svg, "rows": rows, **about}


@_view.register
def _(figure: Table) -> dict[str, Any]:
    return {"kind": "table", "headers": figure.headers, "rows": figure.rows, "caption": figure.caption}


@_view.register
def _(figure: Sound) -> dict[str, Any]:
    seconds = len(figure.samples) / RATE or figure.mel.shape[1] / _FRAMES
    mels = figure.mel.shape[0] if figure.mel.size else 0
    return {
        "kind": "sound",
        "title": figure.title,
        "svg": sound_svg(figure.samples, seconds, marks=figure.marks, mels=mels),
        "image": _spectrogram(figure.mel, seconds) if mels else "",
        "alt": f"Log-mel spectrogram of {figure.title}: {mels} mels by {number(seconds)} seconds, low frequencies at "
        "the bottom, stronger colour where it is louder.",
        "size": (WIDE, MEL_TALL),
        "audio": data_url("audio/wav", wav(figure.samples)) if len(figure.samples) else "",
        "seconds": f"{seconds:.2f} s",
        "heard": figure.heard,
    }


def _spectrogram(mel: np.ndarray, seconds: float) -> str:
    """Draw as many frames as the sound is long, low frequencies at the bottom; what it lacks is left out."""
    frames = max(1, round(seconds * _FRAMES))
    shown = np.full((mel.shape[0], frames), np.nan)
    count = min(frames, mel.shape[1])
    shown[:, :count] = mel[::-1, :count]
    there = shown[np.isfinite(shown)]
    low, high = (float(np.percentile(there, _FAINTEST)), float(there.max())) if there.size else (0.0, 1.0)
    return data_url("image/png", raster_png(pooled(shown, WIDE), low, high))


@_view.register
def _(figure: Pattern) -> dict[str, Any]:
    weights = figure.weights.astype(np.float64)
    rows, frames = weights.shape
    if rows != len(figure.rows):
        raise BadInput(f"pattern {figure.title!r} has {rows} rows and {len(figure.rows)} names for them.")
    height = row_height(rows)
    limit = nice_limit(weights, cap=1.0)
    return {
        "kind": "pattern",
        "title": figure.title,
        "svg": rows_svg(figure.rows, height, figure.seconds),
        "image": data_url("image/png", raster_png(pooled(weights, WIDE), 0.0, limit)),
        "alt": f"{figure.title}: weights of {rows} rows over {number(figure.seconds)} seconds in {frames} columns."
        + _strongest(figure),
        "size": (WIDE, rows * height),
        "limit": f"{limit:g}",
        "note": figure.note,
    }


def _strongest(figure: Pattern) -> str:
    if not np.isfinite(figure.weights).any():
        return ""
    row, column = np.unravel_index(np.nanargmax(figure.weights), figure.weights.shape)
    second = (column + 0.5) * figure.seconds / figure.weights.shape[1]
    return f" Strongest: {number(float(figure.weights[row, column]))}, {figure.rows[row]} at {second:.2f} s."
