"""The data inside a page: what the script reads, as JSON and as packed float32."""

import json
import math
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from crosspatch.draw import shown
from crosspatch.engine.effects import Effects, ExampleView, Grid

COLUMNS = ("mean", "low", "high", "raw_mean", "raw_low", "raw_high", "q", "pairs")
MOST_VALUES = 120_000  # single values a page carries; beyond, only the strongest sites keep theirs
MOST_LETTERS = 162_000  # of packed values, and of what else a page has that is not always there: 300 KB in all
_DROPPED_BITS = 9  # leaves 15 significant bits: 2e-5 of a value, the size of float32 noise between batch sizes


@dataclass(frozen=True)
class Payload:
    """What is embedded: JSON text, packed names and numbers, and whether values were rounded or left out."""

    facts: str
    names: str
    numbers: str
    rounded: bool
    partial: bool


def build_payload(effects: Effects, grids: Sequence[Grid], *, top: Sequence[int], taken: int = 0) -> Payload:
    """Gather all that the page shows: every cell of the grids and the sites of the top table.

    What else stands on the page has `taken` so many letters of its budget.
    """
    shown_sites = sorted({int(i) for grid in grids for i in grid.index[grid.index >= 0]} | set(top))
    part = effects.only(shown_sites)
    place = {site: number for number, site in enumerate(shown_sites)}
    strongest = [place[site] for site in top]
    summary = summary_columns(part, effects.q_values()[shown_sites])
    numbers, rounded, partial = pack_fitting(summary, part.raw, part.raw[strongest], taken=taken)
    facts = _facts(effects, part)
    facts |= {"rows": strongest if partial else None, "panels": [panel_facts(grid, place) for grid in grids]}
    names = deflated("\n".join(map(str, part.sites)).encode())
    return Payload(to_script_json(facts), names, numbers, rounded, partial)


def to_script_json(value: Any) -> str:
    """Write JSON that can stand inside a script element: no `<`, `>`, `&` or line separators as such."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pack(values: Float32[np.ndarray, "..."], *, drop: int = 0) -> str:
    """Pack float32 for the page: rounded by `drop` bits but for whole numbers, bytes grouped, deflated, in base64."""
    bits = np.ascontiguousarray(values, dtype="<f4").ravel().view("<u4").astype(np.int64)
    if drop:
        whole = np.asarray(values).ravel() == np.rint(values).ravel()  # counts stay what they are
        bits = np.where(whole, bits, (bits + (1 << (drop - 1))) >> drop << drop)
    planes = bits.astype("<u4").view(np.uint8).reshape(-1, 4).T
    return deflated(planes.tobytes())


def deflated(content: bytes) -> str:
    """Deflate bytes, in base64."""
    return b64encode(zlib.compress(content, 9)).decode("ascii")


def pack_fitting(
    summary: np.ndarray, raw: np.ndarray, strongest: np.ndarray, *, taken: int = 0
) -> tuple[str, bool, bool]:
    """Pack within the page's budget: exactly, else rounded, else with the single values of the strongest sites alone.

    Tells whether values were rounded, and whether single ones were left out.
    """
    text, rounded, partial = "", False, False
    for single, drop in ((raw, 0), (raw, _DROPPED_BITS), (strongest, 0), (strongest, _DROPPED_BITS)):
        if single is raw and raw.size > MOST_VALUES:
            continue
        values = np.concatenate([summary.ravel(), single.ravel()]).astype(np.float32)
        text, rounded, partial = pack(values, drop=drop), drop > 0, single is not raw
        if len(text) + taken <= MOST_LETTERS:
            break
    return text, rounded, partial


def summary_columns(part: Effects, q: np.ndarray) -> np.ndarray:
    """Give what the page tells of each site, `[column, site]`, in the order of `COLUMNS`."""
    low, high = part.interval(scale="normalised")
    raw_low, raw_high = part.interval(scale="raw")
    pairs = (~np.isnan(part.raw)).sum(axis=1)
    columns = (part.mean("normalised"), low, high, part.mean("raw"), raw_low, raw_high, q, pairs)
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns])


def panel_facts(grid: Grid, place: Mapping[int, int]) -> dict[str, Any]:
    """Describe a map: the place of each cell's site among those of the page, and the words of rows and columns."""
    index = [[place.get(int(site), -1) for site in row] for row in grid.index]
    rows = [f"{grid.kind}[{row}]" if row else grid.kind for row in grid.rows]
    return {"index": index, "rows": rows, "columns": list(grid.columns)}


def _facts(effects: Effects, part: Effects) -> dict[str, Any]:
    scales = {"raw": effects.colours("raw"), "normalised": effects.colours("normalised")}
    usable = effects.scale == "normalised"
    return {
        "name": "".join(letter if letter.isalnum() else "-" for letter in f"{effects.task}-{effects.model}")[:60],
        "n": effects.n,
        "gap": effects.mean_gap if usable else 1.0,
        "normalised": usable,
        "unit": effects.metric_unit,
        "scale_words": "share of the gap",
        "words": {name: (scale.negative, scale.positive) for name, scale in scales.items()},
        "limits": {name: scale.limit for name, scale in scales.items()},
        "sites": len(part.sites),
        "columns": COLUMNS,
        "answers": [_answers(example) for example in effects.examples],
        "about": _about(effects),
    }


def _answers(example: ExampleView) -> str:
    return shown(example.right) + (f" over {shown(example.wrong)}" if example.wrong else "")


def _about(effects: Effects) -> dict[str, Any]:
    """Say in a downloaded file what it holds."""
    names = ("model", "task", "direction", "metric", "metric_unit")
    return {
        **{name: getattr(effects, name) for name in names},
        "finding": effects.finding(),
        "warnings": list(effects.cautions()),
        "base": effects.base.tolist(),
        "source": effects.source.tolist(),
        "provenance": dict(effects.provenance),
    }


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON has no word for, by null; whatever else is unknown becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
