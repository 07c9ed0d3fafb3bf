"""Join effects of several sweeps of the same task into one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crosspatch.core.errors import BadInput
from crosspatch.engine.effects import Effects
from crosspatch.sites import Address

_SAME = ("model", "task", "metric", "metric_unit", "direction", "layers", "examples")
_TOLERANCE = 1e-3  # of the largest baseline: another batch size moves float32 results by less


def concat(parts: Sequence[Effects]) -> Effects:
    """Join sweeps of the same model, task, metric and pairs; a site swept twice keeps its first numbers.

    Raises BadInput if there is no part, if they differ in what they measured, or if a site swept twice has two answers.
    """
    if not parts:
        raise BadInput("there are no effects to join: give one at least.")
    first = parts[0]
    for other in parts[1:]:
        _check_same(first, other)
    size = float(np.nanmax(np.abs([first.base, first.source]))) if first.n else 0.0
    found: dict[Address, np.ndarray] = {}
    for part in parts:
        for site, values in zip(part.sites, part.raw, strict=True):
            found[site] = _agreed(site, old=found.get(site), new=values, tolerance=_TOLERANCE * size)
    warnings = dict.fromkeys(text for part in parts for text in part.warnings)
    raw = np.stack(list(found.values())) if found else first.raw
    return replace(first, sites=tuple(found), raw=raw, warnings=tuple(warnings), provenance=_joined(parts))


def _check_same(first: Effects, other: Effects) -> None:
    for name in _SAME:
        if getattr(first, name) != getattr(other, name):
            given = "" if name == "examples" else f": {getattr(first, name)!r} and {getattr(other, name)!r}"
            raise BadInput(f"effects with different {name} cannot be joined{given}. Sweep the same task on both.")
    for name in ("base", "source"):
        mine, theirs = getattr(first, name), getattr(other, name)
        size = float(np.nanmax(np.abs(mine), initial=1e-6))
        if not np.allclose(mine, theirs, rtol=0, atol=_TOLERANCE * size, equal_nan=True):
            raise BadInput(f"the {name} runs of these effects differ: they come from other weights or other pairs.")


def _agreed(site: Address, *, old: np.ndarray | None, new: np.ndarray, tolerance: float) -> np.ndarray:
    """Fill the holes of one sweep from the other; refuse two different numbers."""
    if old is None:
        return new
    both = ~np.isnan(old) & ~np.isnan(new)
    if (np.abs(old[both] - new[both]) > tolerance).any():
        raise BadInput(f"{site} has different effects in the sweeps to join: they patched it with different values.")
    return np.where(np.isnan(old), new, old)


def _joined(parts: Sequence[Effects]) -> dict[str, Any]:
    """Keep what all parts say alike, and each part's own description beside it."""
    descriptions = [dict(part.provenance) for part in parts]
    shared = {key: value for key, value in descriptions[0].items() if all(d.get(key) == value for d in descriptions)}
    return {**shared, "parts": [{k: v for k, v in d.items() if k not in shared} for d in descriptions]}
