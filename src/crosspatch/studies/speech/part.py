"""One part of a study as it is measured and kept: arrays and JSON facts, from which the page is drawn again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.core.store import read_result, write_result


@dataclass(frozen=True, eq=False)
class Part:
    """What a part measured: named arrays, and facts that JSON can hold."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


def kept(folder: Path | None, name: str, settings: Mapping[str, Any], make: Callable[[], Part]) -> Part:
    """Return a part as it was measured under these settings, or measure it and keep it in the folder."""
    where = None if folder is None else folder / name
    found = None if where is None else _read(where)
    if found is not None and found.facts.get("settings") == dict(settings):
        return found
    made = make()
    made = Part(made.arrays, {**made.facts, "settings": dict(settings)})
    if where is not None:
        write_result(where, made.arrays, dict(made.facts))
    return made


def _read(where: Path) -> Part | None:
    try:
        return Part(*read_result(where))
    except (BadInput, CorruptFile):  # a part that a stop cut short is measured again
        return None
