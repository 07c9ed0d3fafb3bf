"""Assemble the page of several runs side by side, on one scale: findings, what differs, maps, sites one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crosspatch.core.store import write_whole
from crosspatch.draw import Scale, colour_bar_svg, heatmap_svg, nice_limit
from crosspatch.draw.heatmap import class_paint
from crosspatch.engine.effects import Effects, Grid
from crosspatch.report import sections
from crosspatch.report.contrast import Run, check_shared, contrast, same_pairs, short_name
from crosspatch.report.frame import clean_text, page_script, page_style, policy, template
from crosspatch.report.payload import (
    COLUMNS,
    deflated,
    pack_fitting,
    panel_facts,
    summary_columns,
    to_script_json,
)
from crosspatch.report.set_up import shared_ends

WIDE = 250  # pixels of a map among several
_CAP = 2.0  # of the shared scale, as on the page of one run: twice the whole gap


@dataclass(frozen=True, eq=False)
class _Shared:
    """What all runs share: the kinds that two or more of them can draw, their grids by run, the scale."""

    kinds: tuple[str, ...]
    grids: tuple[dict[str, Grid], ...]
    scale: Scale
    normalised: bool
    unit: str


def compare_page(results: Sequence[Run], path: str | Path) -> Path:
    """Write one HTML page that compares runs, given as (name, effects), on one scale; give its path.

    The first run is compared with each other one. Raises BadInput for fewer than two runs, names that are there twice,
    runs whose metrics have different units or of which only some have a gap, or a file that cannot be written.
    """
    path = Path(path)
    write_whole(path, compare_html(results).encode("utf-8", errors="replace"))
    return path


def compare_html(results: Sequence[Run]) -> str:
    """Give the page as text. Raises BadInput as `compare_page` does, but for files."""
    check_shared(results)
    shared = _shared(results)
    style, script = page_style(), page_script("viz.js")
    every = [sections.chips(effects) for _, effects in results]
    common = [chip for chip in every[0] if all(chip in chips for chips in every)]
    cards = [
        {
            "name": name,
            "finding": effects.finding(),
            "chips": [chip for chip in chips if chip not in common],
            "warnings": effects.cautions(),
            "origin": _origin(effects),
        }
        for (name, effects), chips in zip(results, every, strict=True)
    ]
    html = template("compare.html").render(
        style=style,
        script=script,
        policy=policy(style, script),
        names=[name for name, _ in results],
        common=common,
        cards=cards,
        notes=_notes(results, shared),
        contrasts=[(name, contrast(results[0], (name, effects))) for name, effects in results[1:]],
        unit=shared.unit,
        **_maps(results, shared),
        **_data(results, shared),
    )
    return clean_text(html)


def _shared(results: Sequence[Run]) -> _Shared:
    grids = tuple({grid.kind: grid for grid in effects.drawable()} for _, effects in results)
    order = dict.fromkeys(kind for each in grids for kind in each)
    kinds = tuple(kind for kind in order if sum(kind in each for each in grids) > 1)
    first = results[0][1]
    normalised = first.scale == "normalised"
    values = [each[kind].values.ravel() for each in grids for kind in kinds if kind in each]
    limit = nice_limit(np.concatenate(values), cap=_CAP if normalised else float("inf")) if values else 1.0
    words = shared_ends((effects.direction for _, effects in results), normalised=normalised)
    return _Shared(
        kinds, grids, Scale(limit, *words), normalised, "share of the gap" if normalised else first.metric_unit
    )


def _notes(results: Sequence[Run], shared: _Shared) -> list[str]:
    """Say what a reader must know before comparing: directions, metrics, models or pairs that differ, missing kinds."""
    effects = [each for _, each in results]
    found = []
    if len({each.direction for each in effects}) > 1:
        found.append(
            "The runs differ in direction: denoising asks what is enough, noising what is needed. Equal numbers do not "
            "mean the same, and different ones are no contradiction."
        )
    metrics = dict.fromkeys(each.metric for each in effects)
    if len(metrics) > 1:
        found.append(
            f"The runs are by different metrics of one unit ({', '.join(metrics)}), each divided by its own gap."
        )
    if len({each.layers for each in effects}) > 1:
        found.append("The models differ in depth: equal layers are not equal shares of it.")
    if not all(same_pairs(effects[0], each) for each in effects[1:]):
        found.append("The runs have different pairs.")
    alone = [kind for kind in dict.fromkeys(k for each in effects for k in each.kinds) if kind not in shared.kinds]
    if alone:
        found.append(f"Not drawn, since only one run has them or they are too many: {', '.join(alone)}.")
    return found


def _maps(results: Sequence[Run], shared: _Shared) -> dict[str, Any]:
    kinds, number = [], 0
    for kind in shared.kinds:
        figures = []
        for (name, _), grids in zip(results, shared.grids, strict=True):
            if kind in grids:
                panel = replace(grids[kind].panel(), title=short_name(name))
                svg = heatmap_svg(panel, shared.scale, paint=class_paint, hover=False, room=WIDE)
                figures.append({"number": number, "svg": svg, "title": f"{name}, {grids[kind].title}"})
                number += 1
        notes = {grids[kind].note for grids in shared.grids if kind in grids}
        kinds.append({"title": f"{kind}{notes.pop() if len(notes) == 1 else ''}", "figures": figures})
    drawn = [grids[kind] for grids in shared.grids for kind in shared.kinds if kind in grids]
    hatched = any(bool(np.isnan(grid.values).any()) for grid in drawn)
    return {
        "kinds": kinds,
        "bar": colour_bar_svg(shared.scale, paint=class_paint, unit=shared.unit, hatched=hatched),
        "limit": shared.scale.limit,
        "marked": any(any(grid.marked) for grid in drawn),
        "misses": any(shared.scale.misses(float(value)) for grid in drawn for value in grid.values.flat),
    }


def _data(results: Sequence[Run], shared: _Shared) -> dict[str, Any]:
    """Give what the script of a page of one run reads, for the sites of all runs one after another."""
    names: list[str] = []
    columns, rows = [], []
    panels: dict[tuple[str, int], dict[str, Any]] = {}
    most = max(effects.n for _, effects in results)
    for number, (name, effects) in enumerate(results):
        grids = {kind: grid for kind, grid in shared.grids[number].items() if kind in shared.kinds}
        sites = sorted({int(i) for grid in grids.values() for i in grid.index[grid.index >= 0]})
        place = {site: len(names) + i for i, site in enumerate(sites)}
        panels |= {(kind, number): panel_facts(grid, place) for kind, grid in grids.items()}
        part = effects.only(sites)
        columns.append(summary_columns(part, effects.q_values()[sites]))
        values = part.values if shared.normalised else part.raw
        rows.append(np.pad(values, ((0, 0), (0, most - effects.n)), constant_values=np.nan))
        names += [f"{name} · {site}" for site in part.sites]
    single = np.concatenate(rows)
    numbers, rounded, partial = pack_fitting(np.concatenate(columns, axis=1), single, single[:0])
    facts = _facts(shared, n=most, sites=len(names)) | {
        "rows": [] if partial else None,
        "panels": [panels[kind, i] for kind in shared.kinds for i in range(len(results)) if (kind, i) in panels],
    }
    return {
        "facts": to_script_json(facts),
        "names_data": deflated("\n".join(names).encode()),
        "numbers": numbers,
        "rounded": rounded,
        "partial": partial,
    }


def _facts(shared: _Shared, *, n: int, sites: int) -> dict[str, Any]:
    words, limit = (shared.scale.negative, shared.scale.positive), shared.scale.limit
    return {
        "name": "comparison",
        "n": n,
        "gap": 1.0,  # single values are on the shared scale already
        "normalised": shared.normalised,
        "unit": shared.unit,
        "scale_words": shared.unit,
        "words": {"raw": words, "normalised": words},
        "limits": {"raw": limit, "normalised": limit},
        "sites": sites,
        "columns": COLUMNS,
        "answers": [],
        "about": {},
    }


def _origin(effects: Effects) -> dict[str, str]:
    """Give when a run was made and by which command."""
    about = effects.provenance
    return {name: str(about.get(name) or "–") for name in ("time", "crosspatch", "command")}
