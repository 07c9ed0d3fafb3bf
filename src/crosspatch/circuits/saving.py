"""Circuits on disk: a result folder of safetensors and JSON, checked when read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.graph import CircuitEdge, Graph
from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.core.store import read_result, write_result
from crosspatch.sites import Site

_DETAIL = "details."  # before the names of arrays that are details


class _GraphData(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    layers: PositiveInt
    heads: NonNegativeInt
    kv_heads: NonNegativeInt
    sequential: bool
    places: tuple[str, ...]
    mlps: bool


class _Meta(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    what: Literal["circuit"]
    graph: _GraphData
    signed: bool
    settings: dict[str, Any]
    details: dict[str, Any]


def save_circuit(circuit: Circuit, folder: str | Path) -> Path:
    """Write a circuit as a result folder (safetensors and JSON); give the folder.

    Marks are bytes, scores float32. Of the details, arrays are kept as they are; all else of settings and details must
    be JSON (tuples come back as lists, numpy numbers as plain ones, sites and edges as texts).

    Raises:
        BadInput: the folder cannot be written, a setting or detail is no JSON, or a score is too large for float32.
    """
    arrays: dict[str, np.ndarray] = {"included": circuit.included.astype(np.uint8)}
    if circuit.scores is not None:
        with np.errstate(over="ignore"):
            arrays["scores"] = circuit.scores.astype(np.float32)
        if (np.isinf(arrays["scores"]) & ~np.isinf(circuit.scores)).any():
            raise BadInput("a score is too large for float32: scale the scores before saving the circuit.")
    kept = {name: value for name, value in circuit.details.items() if isinstance(value, np.ndarray)}
    meta = {
        "what": "circuit",
        "graph": {name: getattr(circuit.graph, name) for name in _GraphData.model_fields},
        "signed": circuit.signed,
        "settings": plain(circuit.settings),
        "details": plain({name: value for name, value in circuit.details.items() if name not in kept}),
    }
    return write_result(folder, arrays | {f"{_DETAIL}{name}": value for name, value in kept.items()}, meta)


def load_circuit(folder: str | Path) -> Circuit:
    """Read what `save_circuit` wrote.

    Raises:
        BadInput: there is no such folder.
        CorruptFile: its content is damaged, or is no circuit.
    """
    arrays, meta = read_result(folder)
    if meta.get("what") != "circuit":
        raise CorruptFile(f"{str(folder)!r} holds {meta.get('what') or 'something else'}, not a circuit.")
    try:
        data = _Meta.model_validate(meta)
        graph = Graph(**data.graph.model_dump())
        included, scores = arrays.pop("included"), arrays.pop("scores", None)
        _check(graph, included, scores)
        details = data.details | {name.removeprefix(_DETAIL): value for name, value in arrays.items()}
        return Circuit(graph, included.astype(bool), scores, data.signed, data.settings, details)
    except (ValidationError, KeyError, BadInput) as error:
        raise CorruptFile(f"{str(folder)!r} holds no circuit as crosspatch writes them: {error}.") from None


def _check(graph: Graph, included: np.ndarray, scores: np.ndarray | None) -> None:
    if included.dtype != np.uint8 or not np.isin(included, (0, 1)).all():
        raise BadInput("its marks are not bytes of 0 and 1")
    if scores is not None and (scores.dtype != np.float32 or scores.shape != graph.shape):
        raise BadInput(f"its scores are {scores.dtype} {scores.shape}, not float32 {graph.shape}")


def plain(value: Any) -> Any:
    """Turn settings into what JSON can hold: mappings, lists, plain numbers; sites and edges into texts."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(each) for each in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value) if isinstance(value, Site | CircuitEdge) else value
