"""The sweep over any module: patched runs share a batch, and what they do not change is proved and then reused."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from crosspatch.core.errors import BadInput, MemoryShortage
from crosspatch.engine.attempt import Attempt
from crosspatch.modules.anatomy import Place
from crosspatch.modules.cells import Cell
from crosspatch.modules.trial import Trial
from crosspatch.modules.views import view
from crosspatch.replay import Recording, Spot, Write, record, replay, see

NEAR = 1e-4  # share of the largest metric by which a proof may miss


@dataclass
class Counts:
    """What a sweep did: proofs, runs of many rows, how often they were halved."""

    proofs: int = 0
    runs: int = 0
    rows: int = 0
    beside: int = 0  # rows of the source run, one for each step, where it reads along
    halvings: int = 0
    plain: list[str] = field(default_factory=list)  # where nothing could be reused


@dataclass(frozen=True, eq=False)
class Sides:
    """The two runs of a chunk of pairs: the base run recorded, its metric, and what the source run has at the spots."""

    trial: Trial
    recording: Recording
    values: Mapping[Spot, Tensor]
    base: Float[Tensor, " example"]
    source: Float[Tensor, " example"]


def sweep(
    trial: Trial, cells: Sequence[Cell], *, direction: str, rows: int, count: Counts
) -> tuple[Mapping[Cell, float], Float32[np.ndarray, " example"], Float32[np.ndarray, " example"]]:
    """Run all cells; return metric(patched) of each, and the metrics of the base and the source run.

    Ctrl-C ends early, with the cells so far.
    """
    sides = _sides(trial, {spot for cell in cells for spot in cell.spots}, direction)
    found: dict[Cell, float] = {}
    try:
        for spots, alike in _by_spots(cells).items():
            reuse = _proved(sides, spots, count)
            for first in range(0, len(alike), rows):
                _run(sides, alike[first : first + rows], reuse=reuse, found=found, count=count)
    except KeyboardInterrupt:
        pass
    return found, sides.base.numpy(), sides.source.numpy()


def _by_spots(cells: Sequence[Cell]) -> dict[tuple[Spot, ...], list[Cell]]:
    """Gather cells that write at the same places, which can share a run."""
    found: dict[tuple[Spot, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.spots, []).append(cell)
    return found


def _sides(trial: Trial, spots: set[Spot], direction: str) -> Sides:
    base, source = ("corrupt", "clean") if direction == "denoise" else ("clean", "corrupt")
    recording = record(trial.outline, trial.inputs(base), spots)
    output, values = see(trial.module, trial.inputs(source), tuple(spots))
    if missed := next((spot for spot in spots if spot not in values), None):
        raise BadInput(f"module {missed.path!r} is called in the {base} run, and not as often in the {source} run.")
    every = range(trial.count)
    scores = trial.score(recording.result, every, f"{base} run"), trial.score(output, every, f"{source} run")
    return Sides(trial, recording, values, *scores)


def _proved(sides: Sides, spots: tuple[Spot, ...], count: Counts) -> bool:
    """Whether a run that writes the base run's own values, with all else reused, gives the base run; in another order.

    Modules that keep a state or change what they are handed may not, and are then run as a whole.
    """
    rows = list(reversed(range(sides.trial.count)))
    own: dict[Spot, Callable[[Tensor], Tensor]] = dict.fromkeys(spots, torch.clone)
    for reuse in (True, False):
        count.proofs += 1
        attempt = Attempt()
        try:
            with attempt:
                output = replay(sides.recording, own, rows=rows, reuse=reuse)
                score = sides.trial.score(output, rows, "base run, run again")
        except Exception:  # whatever a module does with values it did not make itself
            if not reuse:
                raise
            continue
        if attempt.short:
            raise MemoryShortage(
                f"{len(rows)} pairs at once do not fit in memory: give fewer of them, or shorter inputs."
            )
        size = float(torch.stack([sides.base.abs(), sides.source.abs()]).max())
        if float((score - sides.base[rows]).abs().max()) <= NEAR * max(size, 1e-6):
            if not reuse:
                count.plain.append(spots[0].path)
            return reuse
    raise BadInput(
        f"{type(sides.trial.module).__name__} gives other numbers when its examples come in another order or number, "
        "or its metric reads them by their places in the output. Give pairs one at a time, or a metric with a second "
        "parameter, which says which examples the rows of the output are."
    )


def _run(sides: Sides, cells: Sequence[Cell], *, reuse: bool, found: dict[Cell, float], count: Counts) -> None:
    """Run some cells that write at the same places, half of them at a time if memory is short."""
    attempt = Attempt()
    with attempt:
        examples = [cell.example for cell in cells]
        writes = {spot: _writer(sides, cells, spot) for spot in cells[0].spots}
        output = replay(sides.recording, writes, rows=examples, reuse=reuse)
        values = sides.trial.score(output, examples, f"run patched at {cells[0].spots[0].path}")
        found.update(zip(cells, values.tolist(), strict=True))
        count.runs += 1
        count.rows += len(cells)
        return
    if len(cells) == 1:
        raise MemoryShortage("not even one patched run fits in memory: give fewer pairs, or shorter inputs.")
    count.halvings += 1
    half = len(cells) // 2
    for part in (cells[:half], cells[half:]):
        _run(sides, part, reuse=reuse, found=found, count=count)


def _writer(sides: Sides, cells: Sequence[Cell], spot: Spot) -> Write:
    """Return what writes the source run's values at a spot, each row its own positions and columns."""
    taken = viewed(sides.trial, sides.values[spot], spot)
    return writer(sides.trial, cells, spot, lambda row: taken[cells[row].example])


def viewed(trial: Trial, value: Tensor, spot: Spot) -> Float[Tensor, "example position column"]:
    """Return a spot's value of a run of all examples, by example."""
    axis, module = trial.outline.shape(spot)[1], trial.module.get_submodule(spot.path)
    return view(value, axis=axis, count=trial.count, module=module)[0]


def writer(trial: Trial, cells: Sequence[Cell], spot: Spot, source: Callable[[int], Tensor]) -> Write:
    """Return what writes at a spot of a run whose rows are the cells.

    `source(row)` gives what the source run has for a row, `[position, column]`.
    """
    module = trial.module.get_submodule(spot.path)
    axis = trial.outline.shape(spot)[1]

    def write(value: Tensor) -> Tensor:
        changed, back = view(value, axis=axis, count=len(cells), module=module)
        for row, cell in enumerate(cells):
            taken = source(row)
            if changed.shape[1:] != taken.shape:
                raise BadInput(
                    f"module {spot.path!r} has {list(taken.shape)} positions and columns in the source "
                    f"run and {list(changed.shape[1:])} in the patched one."
                )
            for part in cell.parts:
                if part.place.spot == spot:
                    _write(changed[row], taken, part.place, part.unit, part.positions)
        return back(changed)

    return write


def _write(
    to: Float[Tensor, "position column"],
    taken: Float[Tensor, "position column"],
    place: Place,
    unit: int | None,
    positions: tuple[int, ...] | None,
) -> None:
    columns = place.columns(unit)
    for at in (slice(None),) if positions is None else positions:
        to[at, columns] = taken[at, columns]
