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


def refuse_loss(where: Path, settings: Mapping[str, Any]) -> None:
    """Raise BadInput if a kept part was measured under other settings, its version apart: it would be lost."""
    found = _read(where)
    before = {} if found is None else found.facts.get("settings", {})
    other = [
        f"{name} {before[name]!r}, now {value!r}"
        for name, value in settings.items()
        if name in before and before[name] != value and name != "version"
    ]
    if other:
        raise BadInput(
            f"{where} was measured with other settings ({'; '.join(other)}). Give another folder, or remove it first: "
            f"crosspatch runs remove {where.parent}"
        )


def _read(where: Path) -> Part | None:
    try:
        return Part(*read_result(where))
    except (BadInput, CorruptFile):  # a part that a stop cut short is measured again
        return None
