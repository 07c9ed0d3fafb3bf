"""A sweep whose cells are told as they come: one event a pack, kept so that a reloaded page can read on."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from crosspatch.core.errors import CrosspatchError
from crosspatch.core.journal import UNIT, Columns
from crosspatch.draw import Scale, heatmap_svg
from crosspatch.draw.heatmap import class_paint
from crosspatch.engine.effects import MOST_CELLS, Effects
from crosspatch.engine.grids import ExampleView, Grid, empty_grid, kinds_of
from crosspatch.engine.patching import Question, effects_of, prepare, view_of
from crosspatch.engine.select import select_sites
from crosspatch.engine.sweep import Options, Sweep
from crosspatch.engine.units import BASE, SOURCE, SweepJob
from crosspatch.engine.wording import ends
from crosspatch.models.model import Model
from crosspatch.sites import Address
from crosspatch.workbench.asked import AskedPatch
from crosspatch.workbench.pairs import checked_ids, task_of
from crosspatch.workbench.state import Limits

PACK = 128  # tokens at once: small packs come soon, and cost little more where a model is small
TOP = 5  # sites named when a sweep has ended


class LiveSweep:
    """One sweep of one pair, as work for the line. `events` only grows; its last one ends the sweep."""

    def __init__(self, model: Model, asked: AskedPatch, limits: Limits) -> None:
        """Check the question and cut its work, without running any. Raises as `patch` does; BadInput for many cells."""
        self.model, self.asked = model, asked
        for text in (asked.pair.clean, asked.pair.corrupt):
            checked_ids(model, text, limits)
        self.task = task_of(model, asked.pair)
        options = Options(memory=limits.memory, tokens=PACK)
        chosen = select_sites(model, self.task, asked.sites, most=limits.cells)
        question = Question(chosen, asked.direction, (asked.metric,))
        self.sweep: Sweep = prepare(model, self.task, question, options=options)
        self.sweep.sizes.require_room()
        self.view = view_of(model, self.task.pairs[0], self.task.corruption)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.effects: Effects | None = None
        self.cancelled = False
        self.began = 0.0
        self._columns: list[Columns] = []
        self._job = SweepJob(self.sweep)
        self._next = self._done = 0

    @property
    def ended(self) -> bool:
        """Whether no event will follow."""
        return bool(self.events) and self.events[-1][0] in ("done", "failed", "cancelled")

    def cancel(self) -> None:
        """End the sweep at its next step."""
        self.cancelled = True

    def step(self) -> bool:
        """Run one unit and tell of it; return whether the sweep has ended."""
        if self.cancelled:
            self._end("cancelled", done=self._done, of=len(self.sweep.sites))
            return True
        self.began = self.began or time.monotonic()
        unit = self._next
        found = self._job.run(unit)
        self._columns.append({UNIT: np.full(len(found["site"]), unit, np.int64), **found})
        self._tell(found)
        self._next += 1
        if self._next < len(self.sweep.units):
            return False
        self._finish()
        return True

    def pause(self) -> None:
        """Let go of the two runs that are held, and of what is set up on the model for them."""
        self._job.close()

    def fail(self, problem: BaseException) -> None:
        """Tell what went wrong."""
        known = isinstance(problem, CrosspatchError)
        self._end("failed", error=str(problem) if known else f"internal error: {type(problem).__name__}: {problem}")

    def _end(self, kind: str, **content: Any) -> None:
        try:
            self._job.close()
        finally:  # who listens must learn that it has ended
            self.events.append((kind, content))

    def _tell(self, found: Columns) -> None:
        sites, values = found["site"], found[f"0 {self.sweep.metrics[0].name}"]
        if (sites < 0).any():
            base, source = (float(values[sites == mark][0]) for mark in (BASE, SOURCE))
            still = self._still()
            self.events.append(("begun", {"base": base, "source": source, "still": still}))
            self._done += len(still)
            return
        self._done += len(sites)
        cells = {"sites": sites.tolist(), "raw": values.tolist()}
        self.events.append(("cells", cells | {"done": self._done}))

    def _still(self) -> list[int]:
        """List the sites at which both runs agree: patching them changes nothing, so they are not run."""
        return [site for site, _, cell in self.sweep.found() if cell is None]

    def _finish(self) -> None:
        names = self._columns[0]
        self.sweep.take({name: np.concatenate([part[name] for part in self._columns]) for name in names})
        run = {"sites": self.asked.sites, "seconds": time.monotonic() - self.began}
        self.effects = effects = effects_of(self.sweep, self.task, self.sweep.plan(), run)
        self._end(
            "done",
            finding=effects.finding(),
            cautions=list(effects.cautions()),
            limit=effects.colours().limit,
            seconds=run["seconds"],
            top=[{"site": row.index, "effect": row.effect, "raw": row.raw} for row in effects.top(TOP)],
        )

    def described(self) -> dict[str, Any]:
        """Describe the maps that will fill: an empty drawing a kind, and which site each cell is."""
        sites, layers = self.sweep.sites, self.model.anatomy.layers
        grids = grids_of(sites, layers, [self.view])
        drawn = {grid.kind for grid in grids}
        return {
            "asked": self.asked.model_dump(),
            "sites": [str(site) for site in sites],
            "panels": [panel_of(grid, self.asked.direction) for grid in grids],
            "undrawn": [kind for kind in kinds_of(sites) if kind not in drawn],
            "direction": self.asked.direction,
            "metric": self.sweep.metrics[0].name,
            "unit": self.sweep.metrics[0].unit,
            "ends": {name: list(ends(self.asked.direction, normalised=name == "share")) for name in ("share", "raw")},
        }


def grids_of(sites: Sequence[Address], layers: int, examples: Sequence[ExampleView]) -> list[Grid]:
    """Lay the sites out as maps, without those that hold more cells than a map can show."""
    grids = [empty_grid(kind, sites, layers=layers, examples=examples) for kind in kinds_of(sites)]
    return [grid for grid in grids if grid.index.size <= MOST_CELLS]


def panel_of(grid: Grid, direction: str) -> dict[str, Any]:
    """Describe one map for the browser: its drawing, and the place of each cell's site."""
    scale = Scale(1.0, *ends(direction, normalised=True))
    return {
        "kind": grid.kind,
        "title": grid.title,
        "svg": heatmap_svg(grid.panel(), scale, paint=class_paint, hover=False),
        "index": grid.index.tolist(),
        "rows": list(grid.rows),
        "columns": list(grid.columns),
    }
