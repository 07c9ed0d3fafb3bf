"""Probes of many layers on one split: the best chosen by validation examples, all measured on one test set."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from crosspatch.core.errors import CorruptFile, UnknownName
from crosspatch.core.store import read_result, write_result
from crosspatch.draw import rich_table, table_html, with_interval
from crosspatch.lenses.probe_result import ProbeResult

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

HEADERS = ("layer", "validation", "test", "control", "selectivity", "chosen")
CHOICE = ("validation_correct", "validation_groups")


@dataclass(frozen=True, eq=False, repr=False)
class ProbedLayers:
    """A probe a layer. `validation_correct[l]` says which validation examples a fit without them predicted (1) or not.

    Only these choose the best layer. Test accuracies of the others are there to be seen: the highest of them is no
    estimate of anything, since chance has many tries.
    """

    layers: tuple[str, ...]
    results: tuple[ProbeResult, ...]
    validation_correct: Int[np.ndarray, "layer example"]
    validation_groups: Int[np.ndarray, " example"]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: str | int) -> ProbeResult:
        """Return a layer's result. Raises UnknownName for a layer that was not probed."""
        if str(layer) not in self.layers:
            raise UnknownName.of("layer", str(layer), self.layers)
        return self.results[self.layers.index(str(layer))]

    @property
    def best(self) -> str:
        """The layer with the highest validation accuracy, the first of equals."""
        return self.layers[int(self.validation_correct.mean(axis=1).argmax())]

    def validation(self) -> list[float]:
        """Return each layer's accuracy on the validation examples."""
        return self.validation_correct.mean(axis=1).tolist()

    def summary(self) -> dict[str, Any]:
        """Describe all layers as JSON, and which is the best."""
        rows = zip(self.layers, self.validation(), self.results, strict=True)
        layers = [{"layer": layer, "validation": score, **result.summary()} for layer, score, result in rows]
        return {"what": "probed layers", "best": self.best, "layers": layers}

    def to_frame(self) -> "pd.DataFrame":
        """Make a pandas table, one row a layer and held-out example. Raises MissingExtra without pandas."""
        frames = [
            result.to_frame().assign(layer=layer) for layer, result in zip(self.layers, self.results, strict=True)
        ]
        import pandas as pd

        return pd.concat(frames, ignore_index=True)

    def save(self, folder: str | Path) -> Path:
        """Write a result folder (safetensors and JSON); give it. Raises BadInput if it cannot."""
        arrays = {name: getattr(self, name) for name in CHOICE}
        for number, result in enumerate(self.results):
            arrays |= {f"{number}.{name}": array for name, array in result.arrays().items()}
        meta = {"layers": list(self.layers), "results": [result.meta() for result in self.results]}
        return write_result(folder, arrays, {"what": "probed layers", **meta})

    @classmethod
    def load(cls, folder: str | Path) -> "ProbedLayers":
        """Read what `save` wrote. Raises BadInput without such a folder, CorruptFile if its content is damaged."""
        arrays, meta = read_result(folder)
        try:
            if meta["what"] != "probed layers":
                raise KeyError("what")
            results = []
            for number, each in enumerate(meta["results"]):
                start = f"{number}."
                own = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
                results.append(ProbeResult.from_parts(own, each))
            return cls(tuple(meta["layers"]), tuple(results), *(arrays[name] for name in CHOICE))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{str(folder)!r} holds no probed layers as crosspatch writes them: {error}.") from None

    def title(self) -> str:
        """Say which layer validation chose, and what the test says of it, in one line."""
        found = self[self.best]
        chosen = f"best by {self.validation_correct.shape[1]} validation examples: layer {self.best}"
        measured = (
            f"test accuracy {with_interval(*found.accuracy())}, selectivity {with_interval(*found.selectivity())}"
        )
        return f"{found.kind} probes of {len(self)} layers; {chosen}, {measured}"

    def cells(self) -> list[tuple[str, ...]]:
        """Write each layer as a row of text."""
        rows = []
        for layer, score, result in zip(self.layers, self.validation(), self.results, strict=True):
            measured = (with_interval(*found) for found in result.measures().values())
            rows.append((layer, f"{score:.2f}", *measured, "best" if layer == self.best else ""))
        return rows

    def __repr__(self) -> str:
        lines = [
            "".join((f"{row[0]:<8}", *(f"{cell:>22}" for cell in row[1:5]), f"  {row[5]}")) for row in self.cells()
        ]
        return "\n".join([f"ProbedLayers: {self.title()}", *lines, *(f"! {text}" for text in self[self.best].cautions)])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(text)}</p>" for text in self[self.best].cautions)
        return f"<div><p><strong>{escape(self.title())}</strong></p>{table_html(HEADERS, self.cells())}{notes}</div>"

    def __rich__(self) -> "Table":
        return rich_table(HEADERS, self.cells())
