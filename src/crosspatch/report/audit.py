"""Assemble the page of an audit: verdict, findings, agreement, correlations, maps of every way, windows, cost."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crosspatch.core.store import write_whole
from crosspatch.draw import Scale, colour_bar_svg, heatmap_svg, nice_limit, number
from crosspatch.draw.heatmap import class_paint
from crosspatch.engine.effects import Effects, Grid
from crosspatch.engine.wording import metric_words
from crosspatch.referee.compare import inflations, single_sites
from crosspatch.referee.rules import INFLATED
from crosspatch.report import sections
from crosspatch.report.correlations import correlation_bar, correlation_svg
from crosspatch.report.frame import clean_text, page_script, page_style, policy, template
from crosspatch.report.set_up import DIRECTIONS, corruption_words, shared_ends

if TYPE_CHECKING:
    from crosspatch.referee import Audit, Finding, Setting

MOST_SITES = 24  # lines of the table of agreement
MOST_CELLS = 1200  # of one small map
MOST_SPOKEN = 20_000  # cells of all small maps that name their value when pointed at
CELL = 15  # pixels of a square in the map of correlations
TITLES = {
    "caution": "Read with care",
    "breaks": "A corruption that breaks nothing",
    "gate.AND": "Needed together: AND",
    "gate.OR": "Each enough: OR",
    "gate.ADDER": "Adding up",
    "backup": "Backed up",
    "direction": "Directions disagree",
    "saturation": "No room to move",
    "metric": "Metrics disagree",
    "corruption": "Corruptions disagree",
    "question": "Another question",
    "window": "Windows inflate",
    "steps": "Counted in steps",
}

# The page of an audit has these besides the style of all pages.
STYLE = """
.cards { list-style: none; margin: 12px 0; padding: 0; columns: 370px 3; column-gap: 14px; }
.cards li { background: var(--card); border: 1px solid var(--line); border-left: 3px solid var(--warn-line);
  border-radius: 6px; padding: 8px 14px; margin: 0 0 12px; overflow-wrap: anywhere; break-inside: avoid; }
.cards h3 { margin: 0 0 4px; }
.cards h3 .mono { color: var(--soft); font-weight: 400; font-size: 12px; margin-left: 6px; }
.cards p { font-size: 13.5px; margin: 0 0 8px; max-width: none; }
.cards p.soft { font-size: 12.5px; margin: 0 0 2px; }
.way > p { font-size: 13.5px; margin: 4px 0; }
.way .maps { align-items: flex-start; }
.way > p.off { font-style: italic; }
.share .back { fill: var(--line); }
"""


def write_audit(audit: "Audit", path: str | Path) -> Path:
    """Write an audit as one HTML file without any reference to the network; give its path.

    Raises BadInput if the file cannot be written.
    """
    path = Path(path)
    write_whole(path, audit_html(audit).encode("utf-8", errors="replace"))
    return path


def audit_html(audit: "Audit") -> str:
    """Give the page as text."""
    main = audit.effects[audit.main]
    style, script = page_style() + STYLE, page_script("plain.js")
    about = dict(audit.provenance)
    command = about.pop("command", None)
    html = template("audit.html").render(
        audit=audit,
        effects=main,
        style=style,
        script=script,
        policy=policy(style, script),
        sentences=_sentences(audit.verdict()),
        chips=chips(audit),
        findings=cards(audit.findings),
        metric_words=metric_words(audit.main.metric),
        command=str(command) if command else "",
        provenance=sections.flat(about),
        **_agreement(audit),
        **_correlations(audit),
        **_maps(audit),
        windows=list(window_lines(audit)),
    )
    return clean_text(html)


def _sentences(verdict: str) -> tuple[str, str]:
    """Part a verdict into what stands in the heading and the rest."""
    first, sign, rest = verdict.partition(". ")
    return first + sign.strip(), rest


def chips(audit: "Audit") -> list[tuple[str, str]]:
    """List what a reader must know beside the verdict, as (name, value)."""
    main, settings = audit.effects[audit.main], audit.provenance.get("settings", {})
    seconds = settings.get("seconds")
    found = [
        ("model", main.model),
        ("task", main.task),
        ("pairs", str(main.n)),
        ("settings", f"{len(audit.settings)}, {len(audit.alike)} of them counted"),
        ("compared with", str(audit.main)),
        ("seed", str((settings.get("task_settings") or {}).get("seed", ""))),
        ("time", f"{seconds:.3g} s" if isinstance(seconds, int | float) else ""),
    ]
    return [(name, value) for name, value in found if value]


def cards(findings: "Sequence[Finding]") -> list[dict[str, Any]]:
    """Gather the findings by rule, in the order of the rules."""
    return [
        {
            "rule": rule,
            "title": TITLES.get(rule, rule.capitalize()),
            "texts": [(each.text, each.source) for each in group],
        }
        for rule, group in groupby(findings, key=lambda each: each.rule)
    ]


def _agreement(audit: "Audit") -> dict[str, Any]:
    rows, main = audit.agreement(), audit.main
    ways = [s for s in audit.telling if (s.corruption, s.metric) == (main.corruption, main.metric)]
    means = [dict(zip(map(str, e.sites), e.mean().tolist(), strict=True)) for e in map(audit.effects.__getitem__, ways)]
    lines = [
        {
            "site": row.site,
            "count": f"{row.finders} of {row.settings}",
            "bar": share_svg(row.helping / row.settings, (row.finders - row.helping) / row.settings),
            "sign": row.sign,
            "effects": [_short(mean.get(row.site, float("nan"))) for mean in means],
        }
        for row in rows[:MOST_SITES]
    ]
    return {"agreement": lines, "more_sites": len(rows) - len(lines), "ways": [way.direction for way in ways]}


def _short(value: float) -> str:
    return "–" if np.isnan(value) else f"{value + 0.0:.2f}"


def share_svg(helping: float, hurting: float) -> str:
    """Draw the shares of settings that find a site helping and hurting as a bar."""
    wide, tall = 120, 9
    first, second = round(helping * wide, 1), round(hurting * wide, 1)
    label = f"{helping:.0%} of the settings: helps; {hurting:.0%}: hurts"
    return (
        f'<svg class="share" viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}" role="img" '
        f'aria-label="{label}"><path class="back" d="M0 0h{wide}v{tall}h-{wide}z"/>'
        f'<path class="p14" d="M0 0h{first:g}v{tall}h-{first:g}z"/>'
        f'<path class="n14" d="M{first:g} 0h{second:g}v{tall}h-{second:g}z"/></svg>'
    )


def _correlations(audit: "Audit") -> dict[str, Any]:
    names = list(map(str, audit.telling))
    return {
        "correlations": correlation_svg(names, audit.correlations, cell=CELL, what="settings")
        if len(names) > 1
        else "",
        "correlation_bar": correlation_bar(),
    }


def _maps(audit: "Audit") -> dict[str, Any]:
    """Draw the main effects of every corruption and direction on one scale, and say what each corruption does."""
    chosen = [s for s in audit.settings if s.metric == audit.main.metric]
    grids = {setting: small_grids(audit.effects[setting]) for setting in chosen}
    told = [grids[setting] for setting in chosen if setting in audit.telling]
    values = [grid.values.ravel() for each in told for grid in each]
    limit = nice_limit(np.concatenate(values), cap=1.5) if values else 1.0
    scale = Scale(limit, *shared_ends((each.direction for each in chosen), normalised=True))
    spoken = sum(map(len, values)) <= MOST_SPOKEN
    rows = [
        {
            "name": corruption,
            "words": corruption_words(_settings(audit.effects[group[0]]).get("corruption") or {}),
            "ways": [_way(audit, setting, grids[setting], scale, spoken=spoken) for setting in group],
        }
        for corruption, group in ((name, list(each)) for name, each in groupby(chosen, key=lambda s: s.corruption))
    ]
    every = [grid for each in grids.values() for grid in each]
    hatched = any(bool(np.isnan(grid.values).any()) for grid in every)
    return {
        "corruptions": rows,
        "bar": colour_bar_svg(scale, paint=class_paint, unit="share of the gap", hatched=hatched),
        "misses": any(scale.misses(float(value)) for part in values for value in part),
    }


def _way(audit: "Audit", setting: "Setting", grids: Sequence[Grid], scale: Scale, *, spoken: bool) -> dict[str, Any]:
    effects = audit.effects[setting]
    found = audit.found.get(setting)
    return {
        "direction": setting.direction,
        "words": DIRECTIONS[setting.direction],
        "gap": number(effects.mean_gap),
        "found": None if found is None else len(found.all),
        "maps": [heatmap_svg(grid.panel(), scale, paint=class_paint, hover=spoken, room=230) for grid in grids],
    }


def small_grids(effects: Effects) -> list[Grid]:
    """Give the grids of single sites of the kinds with few enough cells for a small map."""
    single = single_sites(effects)
    return [grid for grid in single.drawable() if grid.values.size <= MOST_CELLS]


def window_lines(audit: "Audit") -> Iterator[dict[str, Any]]:
    """Compare joint windows with sums of single layers under the main corruption and metric."""
    for setting in audit.telling:
        if (setting.corruption, setting.metric) != (audit.main.corruption, audit.main.metric):
            continue
        for each in inflations(audit.effects[setting]):
            yield {
                "direction": setting.direction,
                "kind": each.kind,
                "width": each.width,
                "window": each.window,
                "joint": number(each.joint),
                "summed": number(each.summed),
                "ratio": number(each.ratio) if np.isfinite(each.ratio) else "∞",
                "inflated": abs(each.ratio) >= INFLATED,
            }


def _settings(effects: Effects) -> dict[str, Any]:
    return dict(effects.provenance.get("settings", {}))
