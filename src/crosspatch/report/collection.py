"""A page of several findings, each by itself: what was asked, what came out, its maps, its table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosspatch.core.provenance import here
from crosspatch.draw import colour_bar_svg, heatmap_svg
from crosspatch.draw.heatmap import class_paint
from crosspatch.engine.effects import Effects
from crosspatch.report import sections
from crosspatch.report.frame import clean_text, page_script, page_style, policy, template

TOP = 5


@dataclass(frozen=True)
class Entry:
    """One finding: its title, its sentence, what its finder wrote beside it, its effects."""

    title: str
    finding: str
    note: str
    effects: Effects


def collection_html(title: str, entries: Sequence[Entry], code: str = "") -> str:
    """Give the page of some findings as text; `code` is Python that finds them anew."""
    style, script = page_style(), page_script("plain.js")
    html = template("collection.html").render(
        title=title,
        style=style,
        script=script,
        policy=policy(style, script),
        entries=[_shown(entry) for entry in entries],
        code=code,
        provenance=sections.flat(
            {name: value for name, value in here().items() if name not in ("command", "settings")}
        ),
    )
    return clean_text(html)


def _shown(entry: Entry) -> dict[str, Any]:
    effects, scale = entry.effects, entry.effects.colours()
    grids = effects.drawable() if len(effects.sites) > 1 else []
    return {
        "title": entry.title,
        "finding": entry.finding,
        "note": entry.note,
        "chips": sections.chips(effects),
        "pairs": sections.pairs(effects)[: sections.OPEN_PAIRS],
        "maps": [heatmap_svg(grid.panel(), scale, paint=class_paint) for grid in grids],
        "bar": colour_bar_svg(scale, paint=class_paint, unit=sections.scale_unit(effects)) if grids else "",
        "top": sections.top_lines(effects, list(effects.top(TOP))),
        "cautions": effects.cautions(),
    }
