"""Assemble the page of one result: sections, drawings, data and policy in a single HTML file."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspatch.core.store import write_whole
from crosspatch.draw import Scale, colour_bar_svg, heatmap_svg
from crosspatch.draw.heatmap import class_paint
from crosspatch.engine.effects import MOST_CELLS, Effects, Grid
from crosspatch.engine.tables import Row
from crosspatch.engine.wording import ends, metric_words, normalisation_words
from crosspatch.lenses import HeadPatterns
from crosspatch.report import sections
from crosspatch.report.attention import attention_of
from crosspatch.report.frame import clean_text, page_script, page_style, policy, read_asset, template
from crosspatch.report.metrics import compare_metrics
from crosspatch.report.payload import Payload, build_payload
from crosspatch.report.set_up import how_lines, kicker
from crosspatch.report.verification import verification
from crosspatch.sites import KINDS, split_stack

if TYPE_CHECKING:
    from crosspatch.report.circuit_content import CircuitContent

TOP_ROWS, UNIT_ROWS = 20, 8


def write_page(
    effects: Effects,
    path: str | Path,
    *,
    attention: HeadPatterns | None = None,
    others: Sequence[Effects] = (),
    circuit: "CircuitContent | None" = None,
) -> Path:
    """Write effects as one HTML file without any reference to the network; give its path.

    With `attention`, a head that is clicked in its map shows what it attends to; `others` are the same sweep by other
    metrics, which the page compares; `circuit` and how faithful it is have sections of their own. Raises BadInput if
    the file cannot be written, for attention of another model or other prompts, for others that are not of the same
    sweep, and for a circuit of another model.
    """
    path = Path(path)
    html = page_html(effects, attention=attention, others=others, circuit=circuit)
    write_whole(path, html.encode("utf-8", errors="replace"))
    return path


def page_html(
    effects: Effects,
    *,
    attention: HeadPatterns | None = None,
    others: Sequence[Effects] = (),
    circuit: "CircuitContent | None" = None,
) -> str:
    """Give the page as text. Raises BadInput for attention, others and a circuit as `write_page` does."""
    grids, claim = effects.drawable(), effects.claim()
    rows = list(effects.top(TOP_ROWS))
    strongest = [row for kind in effects.kinds for row in effects.top(1, kind=kind)]
    heads = [row for grid in grids if _has_units(grid) for row in effects.top(UNIT_ROWS, kind=grid.kind)]
    inside = attention_of(effects, attention, heads) if heads else None
    beside, letters = _beside(effects, circuit)
    top = sorted({row.index for row in (*rows, *strongest, *heads)})
    payload = build_payload(effects, grids, top=top, taken=letters)
    html = template("page.html").render(
        finding=effects.finding(),
        chips=sections.chips(effects),
        strongest=sections.top_lines(effects, strongest),
        heads=sections.top_lines(effects, heads),
        attention=inside,
        verified=verification(effects),
        metrics=compare_metrics(effects, others),
        circuit=beside,
        **_frame(effects, attention=inside is not None, circuit=circuit is not None),
        **_set_up(effects),
        **_drawings(effects, grids, best=None if claim.row is None else claim.row.index),
        **_tables(effects, rows, payload=payload),
    )
    return clean_text(html)


def _frame(effects: Effects, *, attention: bool, circuit: bool) -> dict[str, Any]:
    style = page_style() + (read_asset("network.css") if circuit else "")
    scripts = ["viz.js", *(("board.js", "attention.js") if attention else ()), *(("network.js",) if circuit else ())]
    script = page_script(*scripts)
    return {"effects": effects, "style": style, "script": script, "policy": policy(style, script)}


def _beside(effects: Effects, circuit: "CircuitContent | None") -> tuple[dict[str, Any] | None, int]:
    """Give what is shown of a circuit, and the letters that it takes; a page without one starts without torch."""
    if circuit is None:
        return None, 0
    from crosspatch.report.circuit_beside import circuit_beside, letters_of

    beside = circuit_beside(effects, circuit)
    return beside, letters_of(beside)


def _set_up(effects: Effects) -> dict[str, Any]:
    return {
        "pairs": sections.pairs(effects),
        "open_pairs": sections.OPEN_PAIRS,
        "kicker": kicker(effects),
        "how": how_lines(effects),
        "baselines": sections.baselines(effects),
        "metric_words": metric_words(effects.metric),
        "right_answers": sections.right_answers(effects),
        "normalisation": normalisation_words(effects.direction, effects.metric),
        "warnings": effects.cautions(),
    }


def _drawings(effects: Effects, grids: Sequence[Grid], *, best: int | None) -> dict[str, Any]:
    scale = effects.colours()
    figures = [
        {"number": place, "svg": _map(grid, scale, best=best), "title": grid.title, "units": _has_units(grid)}
        for place, grid in enumerate(grids)
    ]
    drawn = {grid.kind for grid in grids}
    counts = {kind: sum(site.kind == kind for site in effects.sites) for kind in effects.kinds if kind not in drawn}
    hatched = any(bool(np.isnan(grid.values).any()) for grid in grids)
    unit = sections.scale_unit(effects)
    letters = max(len(word) for name in (True, False) for word in ends(effects.direction, normalised=name))
    return {
        "figures": figures,
        "units_title": _units_title(grids),
        "bar": colour_bar_svg(scale, paint=class_paint, unit=unit, hatched=hatched, letters=letters),
        "scale": effects.scale,
        "marked": any(any(grid.marked) for grid in grids),
        "misses": any(scale.misses(float(value)) for grid in grids for value in grid.values.flat),
        "too_many": counts,
        "most_cells": MOST_CELLS,
    }


def _unit(kind: str) -> str | None:
    """Name the units of a kind's columns; groups have none."""
    name = split_stack(kind)[1]
    return KINDS[name].unit if name in KINDS else None


def _has_units(grid: Grid) -> bool:
    """Tell whether columns are heads or neurons; those maps stand in a section of their own."""
    return _unit(grid.kind) is not None and (bool(grid.note) or any("@" in label for label in grid.columns))


def _units_title(grids: Sequence[Grid]) -> str:
    units = {_unit(grid.kind) for grid in grids if _has_units(grid)}
    return "Which neurons" if units == {"neuron"} else "Which heads and neurons" if "neuron" in units else "Which heads"


def _map(grid: Grid, scale: Scale, *, best: int | None) -> str:
    return heatmap_svg(grid.panel(best=best), scale, paint=class_paint, hover=False)


def _tables(effects: Effects, rows: Sequence[Row], *, payload: Payload) -> dict[str, Any]:
    about = dict(effects.provenance)
    command = about.pop("command", None)
    hashes = {"raw effects": "sha256:" + sha256(np.ascontiguousarray(effects.raw).tobytes()).hexdigest()}
    return {
        "top": sections.top_lines(effects, rows),
        "site_count": len(effects.sites),
        "command": str(command) if command else "",
        "provenance": [*sections.flat(about), *hashes.items()],
        "facts": payload.facts,
        "names": payload.names,
        "numbers": payload.numbers,
        "rounded": payload.rounded,
        "partial": payload.partial,
    }
