"""Scorecards on disk: a result folder of safetensors and JSON, checked when read."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from crosspatch.circuits.areas import Area, FaithfulnessCurve
from crosspatch.circuits.saving import plain
from crosspatch.circuits.scorecard import Knockout, Scorecard
from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.core.store import read_result, write_result

_EXAMPLES = ("values", "full", "empty", "complement", "kl")
_POINTS = ("fractions", "faithfulness", "low", "high")
_KNOCKED, _LOST, _DRAWN = "completeness", "minimality", "drawn"


class _Named(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    nodes: tuple[str, ...]


class _Meta(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    what: Literal["scorecard"]
    size: NonNegativeInt
    of: NonNegativeInt
    completeness: tuple[_Named, ...]
    minimality: tuple[str, ...]
    curves: tuple[str, ...]
    warnings: tuple[str, ...]
    settings: dict[str, Any]


def save_scorecard(score: Scorecard, folder: str | Path) -> Path:
    """Write a scorecard as a result folder (safetensors and JSON); give the folder.

    Raises:
        BadInput: the folder cannot be written, or a setting is no JSON.
    """
    arrays = {name: np.asarray(getattr(score, name)) for name in (*_EXAMPLES, _DRAWN)}
    knocked = [(each.circuit, each.model) for each in score.completeness]
    arrays[_KNOCKED] = np.array(knocked, dtype=np.float64).reshape(-1, 2)
    arrays[_LOST] = np.array(list(score.minimality.values()), dtype=np.float64)
    for name, curve in score.curves.items():
        arrays |= {f"curves.{name}.{part}": np.asarray(getattr(curve, part)) for part in _POINTS}
        areas = [(area.value, area.low, area.high) for area in (curve.cpr, curve.cmd)]
        arrays[f"curves.{name}.areas"] = np.array(areas, dtype=np.float64)
    meta = {
        "what": "scorecard",
        "size": score.size,
        "of": score.of,
        "completeness": [{"name": each.name, "nodes": list(each.nodes)} for each in score.completeness],
        "minimality": list(score.minimality),
        "curves": list(score.curves),
        "warnings": list(score.warnings),
        "settings": plain(score.settings),
    }
    return write_result(folder, arrays, meta)


def load_scorecard(folder: str | Path) -> Scorecard:
    """Read what `save_scorecard` wrote.

    Raises:
        BadInput: there is no such folder.
        CorruptFile: its content is damaged, or is no scorecard.
    """
    arrays, meta = read_result(folder)
    if meta.get("what") != "scorecard":
        raise CorruptFile(f"{str(folder)!r} holds {meta.get('what') or 'something else'}, not a scorecard.")
    try:
        return _scorecard(arrays, _Meta.model_validate(meta))
    except (ValidationError, KeyError, ValueError, BadInput) as error:
        raise CorruptFile(f"{str(folder)!r} holds no scorecard as crosspatch writes them: {error}.") from None


def _scorecard(arrays: dict[str, np.ndarray], meta: _Meta) -> Scorecard:
    examples = {name: arrays[name] for name in _EXAMPLES}
    if len({array.shape for array in examples.values()}) > 1:
        raise BadInput("its scores are of several numbers of examples")
    knocked = zip(meta.completeness, arrays[_KNOCKED].tolist(), strict=True)
    return Scorecard(
        size=meta.size,
        of=meta.of,
        drawn=arrays[_DRAWN],
        completeness=tuple(Knockout(each.name, each.nodes, *values) for each, values in knocked),
        minimality=dict(zip(meta.minimality, arrays[_LOST].tolist(), strict=True)),
        curves={name: _curve(arrays, name) for name in meta.curves},
        warnings=meta.warnings,
        settings=meta.settings,
        **examples,
    )


def _curve(arrays: dict[str, np.ndarray], name: str) -> FaithfulnessCurve:
    cpr, cmd = (Area(*map(float, row)) for row in arrays[f"curves.{name}.areas"])
    points = {part: arrays[f"curves.{name}.{part}"] for part in _POINTS}
    return FaithfulnessCurve(**points, cpr=cpr, cmd=cmd)
