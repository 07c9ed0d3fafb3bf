"""What a probe found: accuracy on held-out examples against the majority and control labels, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from crosspatch.core.errors import CorruptFile, MissingExtra
from crosspatch.core.stats import bootstrap_ratio
from crosspatch.core.store import read_result, write_result
from crosspatch.draw import p_value, rich_table, table_html, with_interval

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

HEADERS = ("measure", "value")
ARRAYS = ("test", "groups", "truth", "predicted", "control_truth", "control_predicted")
Interval = tuple[float, float, float]


@dataclass(frozen=True, eq=False, repr=False)
class ProbeResult:
    """Predictions of a probe for examples that it was not fitted on, and of the same probe fitted on control labels.

    `test[e]` is the place of a held-out example among those given, `groups[e]` its group, `truth` and `predicted` are
    places in `classes`. `control_truth[c]` and `control_predicted[c]` belong to the c-th draw of control labels, in
    which the label of each type of example is drawn at random (Hewitt & Liang 2019, arXiv 1909.03368). `majority` is
    the accuracy of the class that is most frequent among the fitted examples, `control_fit` how well control labels
    were fitted where they were learnt: near 1, the probe could memorise anything. `p` is the share of permuted labels
    that are predicted as well as the real ones; NaN if it was not asked for.
    """

    test: Int[np.ndarray, " example"]
    groups: Int[np.ndarray, " example"]
    truth: Int[np.ndarray, " example"]
    predicted: Int[np.ndarray, " example"]
    control_truth: Int[np.ndarray, "control example"]
    control_predicted: Int[np.ndarray, "control example"]
    classes: tuple[str | int, ...]
    fitted: int
    d: int
    kind: str
    majority: float
    fit: float
    control_fit: float
    p: float
    cautions: tuple[str, ...]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.test)

    @property
    def correct(self) -> Float[np.ndarray, " example"]:
        """1 for each held-out example that was predicted, else 0."""
        return (self.truth == self.predicted).astype(np.float64)

    @property
    def control_correct(self) -> Float[np.ndarray, " example"]:
        """The share of the control draws in which each held-out example's control label was predicted; NaN without."""
        if not len(self.control_truth):
            return np.full(len(self), np.nan)
        return (self.control_truth == self.control_predicted).mean(axis=0)

    def accuracy(self, *, level: float = 0.95) -> Interval:
        """Return the share of held-out examples that was predicted, and its bootstrap interval over their groups."""
        return self._with_interval(self.correct, level)

    def control(self, *, level: float = 0.95) -> Interval:
        """Return the accuracy on control labels, and its bootstrap interval over groups; NaN without controls."""
        return self._with_interval(self.control_correct, level)

    def selectivity(self, *, level: float = 0.95) -> Interval:
        """Return accuracy minus accuracy on control labels, and its bootstrap interval over groups."""
        return self._with_interval(self.correct - self.control_correct, level)

    def _with_interval(self, values: Float[np.ndarray, " example"], level: float) -> Interval:
        _, place, count = np.unique(self.groups, return_inverse=True, return_counts=True)
        sums = np.bincount(place, weights=values)
        low, high = bootstrap_ratio(sums[None], count.astype(np.float64), level=level)
        return float(values.mean()), float(low[0]), float(high[0])

    def measures(self) -> dict[str, Interval]:
        """Return accuracy, accuracy on control labels and selectivity, each with its interval."""
        return {"accuracy": self.accuracy(), "control": self.control(), "selectivity": self.selectivity()}

    def summary(self) -> dict[str, Any]:
        """Describe the result as JSON; nothing stands for what was not measured."""
        numbers = {"majority": self.majority, "fit": self.fit, "control_fit": self.control_fit, "p": self.p}
        measured = {
            name: dict(zip(("mean", "low", "high"), map(plain, found), strict=True))
            for name, found in self.measures().items()
        }
        about = {"what": "probe", "kind": self.kind, "classes": list(self.classes), "d": self.d}
        sizes = {"fitted": self.fitted, "held_out": len(self), "groups": len(np.unique(self.groups))}
        rest = {name: plain(value) for name, value in numbers.items()}
        return {**about, **sizes, **measured, **rest, "cautions": list(self.cautions), "settings": dict(self.settings)}

    def to_frame(self) -> "pd.DataFrame":
        """Make a pandas table, one row a held-out example. Raises MissingExtra without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise MissingExtra("to_frame needs pandas: pip install 'crosspatch[pandas]'") from None
        sides = {
            name: [self.classes[i] for i in side] for name, side in (("label", self.truth), ("said", self.predicted))
        }
        numbers = {"correct": self.correct, "control": self.control_correct}
        return pd.DataFrame({"example": self.test, "group": self.groups, **sides, **numbers})

    def save(self, folder: str | Path) -> Path:
        """Write a result folder (safetensors and JSON); give it. Raises BadInput if it cannot."""
        return write_result(folder, self.arrays(), {"what": "probe", **self.meta()})

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is saved as arrays."""
        return {name: getattr(self, name) for name in ARRAYS}

    def meta(self) -> dict[str, Any]:
        """Return what is saved as JSON."""
        names = ("fitted", "d", "kind")
        numbers = {name: plain(getattr(self, name)) for name in ("majority", "fit", "control_fit", "p")}
        lists = {"classes": list(self.classes), "cautions": list(self.cautions), "settings": dict(self.settings)}
        return {name: getattr(self, name) for name in names} | numbers | lists

    @classmethod
    def load(cls, folder: str | Path) -> "ProbeResult":
        """Read what `save` wrote. Raises BadInput without such a folder, CorruptFile if its content is damaged."""
        arrays, meta = read_result(folder)
        try:
            if meta.pop("what") != "probe":
                raise KeyError("what")
            return cls.from_parts(arrays, meta)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{str(folder)!r} holds no probe as crosspatch writes it: {error}.") from None

    @classmethod
    def from_parts(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> "ProbeResult":
        """Make a result of `arrays()` and `meta()`. Raises KeyError or TypeError if a part is missing."""
        numbers = {
            name: float("nan") if meta[name] is None else float(meta[name])
            for name in ("majority", "fit", "control_fit", "p")
        }
        lists = {"classes": tuple(meta["classes"]), "cautions": tuple(meta["cautions"])}
        rest = {name: meta[name] for name in ("fitted", "d", "kind", "settings")}
        return cls(**{name: arrays[name] for name in ARRAYS}, **numbers, **lists, **rest)

    def title(self) -> str:
        """Say what was measured, in one line."""
        return (
            f"{self.kind} probe of {len(self.classes)} classes in {self.d} numbers, fitted on {self.fitted} examples, "
            f"measured on {len(self)} held out in {len(np.unique(self.groups))} groups"
        )

    def cells(self) -> list[tuple[str, ...]]:
        """Write each measure as a row of text."""
        measured = [(name, with_interval(*found)) for name, found in self.measures().items()]
        numbers = [("majority", self.majority), ("fit", self.fit), ("fit of control labels", self.control_fit)]
        rows = [*measured, *((name, with_interval(value, np.nan, np.nan)) for name, value in numbers)]
        return rows if np.isnan(self.p) else [*rows, ("p by permutation", p_value(self.p))]

    def __repr__(self) -> str:
        rows = [f"{name:<23}{value}" for name, value in self.cells()]
        return "\n".join([f"ProbeResult: {self.title()}", *rows, *(f"! {text}" for text in self.cautions)])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(text)}</p>" for text in self.cautions)
        return f"<div><p><strong>{escape(self.title())}</strong></p>{table_html(HEADERS, self.cells())}{notes}</div>"

    def __rich__(self) -> "Table":
        return rich_table(HEADERS, self.cells())


def plain(value: float) -> float | None:
    """Return a number that JSON can hold: nothing for NaN."""
    return None if np.isnan(value) else float(value)
