"""Effects as a user of a terminal reads them, and as one JSON document."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from crosspatch.engine.effects import Effects
    from crosspatch.engine.tables import Row, Top

MOST_COLUMNS = 60  # of one heat map in a terminal; wider ones are for the page


def effects_text(effects: "Effects", table: "Top") -> "Iterator[RenderableType]":
    """Yield a title, one heat map a kind, a table of sites and the cautions."""
    from rich.text import Text

    yield Text(title(effects), style="bold")
    yield from heat_maps(effects)
    yield table.__rich__()
    cautions = effects.cautions()
    yield from (f"! {caution}" for caution in cautions)
    if cautions:
        yield ""


def title(effects: "Effects") -> str:
    """Name what was run, in one line."""
    settings = effects.provenance.get("settings", {})
    seconds = settings.get("seconds")
    took = f" in {seconds:.1f} s" if isinstance(seconds, int | float) else ""
    return (
        f"{effects.model} · {effects.task} · {effects.direction} · {effects.metric}: "
        f"{len(effects.sites):,} sites × {effects.n} pairs{took}"
    )


def heat_maps(effects: "Effects") -> "Iterator[RenderableType]":
    """Yield one heat map a kind on one scale; kinds with too many columns get a line instead."""
    from rich.text import Text

    from crosspatch.draw import TerminalMap

    grids, scale = effects.drawable(), effects.colours()
    narrow = [grid for grid in grids if len(grid.columns) <= MOST_COLUMNS]
    claim = effects.claim()
    best = None if claim.row is None else claim.row.index
    for grid in narrow:
        yield Text()
        yield TerminalMap(grid.panel(best=best), scale, legend=grid is narrow[-1])
    drawn = {grid.kind for grid in narrow}
    for kind in effects.kinds:
        if kind not in drawn:
            count = sum(site.kind == kind for site in effects.sites)
            yield f"{kind}: {count:,} sites are too many for a terminal; their strongest are in the table."


def ending(effects: "Effects", folder: Path, page: Path | None) -> tuple[str, str]:
    """Give the last lines: the finding, and where its report (or at least its numbers) went."""
    return effects.finding(), f"report → {page}" if page is not None else f"saved → {folder}"


def summary_of(effects: "Effects", *, top: int, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe effects as a JSON document: what was asked, the finding, the strongest sites, the cautions."""
    provenance = effects.provenance
    settings = provenance.get("settings", {})
    return {
        "crosspatch": provenance.get("crosspatch"),
        "time": provenance.get("time"),
        "complete": bool(settings.get("complete", True)),
        "model": effects.model,
        "model_hash": settings.get("model_hash"),
        "task": effects.task,
        "task_settings": settings.get("task_settings", {}),
        "n": effects.n,
        "seed": provenance.get("seed"),
        "direction": effects.direction,
        "metric": effects.metric,
        "metric_unit": effects.metric_unit,
        "base": _mean(effects.base),
        "source": _mean(effects.source),
        "selection": settings.get("sites"),
        "sites": len(effects.sites),
        "seconds": settings.get("seconds"),
        "plan": settings.get("plan", {}),
        "finding": effects.finding(),
        "top": [row_of(row) for row in effects.top(top)],
        "cautions": list(effects.cautions()),
        **(more or {}),
    }


def row_of(row: "Row") -> dict[str, Any]:
    """Describe one site's effect as JSON."""
    site = row.site
    return {
        "site": str(site),
        "kind": site.kind,
        "layer": site.layer,
        "unit": site.unit,
        "position": site.position,
        "hint": row.hint,
        "effect": row.effect,
        "low": row.low,
        "high": row.high,
        "raw": row.raw,
        "q": row.q,
        "n": row.n,
    }


def _mean(values: Any) -> float | None:
    """Average the numbers in an array; None if there is none."""
    there = [float(value) for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else None
