"""Effects as a user of a terminal reads them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from crosspatch.report.summary import title

if TYPE_CHECKING:
    from rich.console import RenderableType

    from crosspatch.engine.effects import Effects
    from crosspatch.engine.tables import Top

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
