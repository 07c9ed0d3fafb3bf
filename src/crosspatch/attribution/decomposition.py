"""Decomposition: named parts of the answers' logits that add up to them, checked; it draws and lists itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from crosspatch.core.errors import CorruptFile, MissingExtra, NotProved, UnknownName
from crosspatch.core.stats import bootstrap_mean
from crosspatch.core.store import read_result, write_result
from crosspatch.draw import (
    Panel,
    Scale,
    clip,
    colour_bar_svg,
    heatmap_svg,
    nice_limit,
    number,
    rich_table,
    shown,
    table_html,
    with_interval,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

QUANTITIES = {"diff": "logit difference", "right": "right logit", "wrong": "wrong logit"}
WIDEST = 64  # columns of a heat map; more are for tables
ARRAYS = ("values", "logits", "shown")
META = ("scale", "tolerance", "by", "answer", "run", "model", "task", "layers", "softcap")
HEADERS = ("part", "logits [95 %]", "share")


@dataclass(frozen=True, slots=True)
class Part:
    """One summand: `attn.head[5, 3]`, with `position` the source token that a head's share comes from.

    Kinds beside those of sites: `embed.token` and `embed.position`; `attn.bias` and `mlp.bias` (the constants of a
    part's projection and post-norm); `norm.bias` and `unembed.bias`; `block`, where a block is kept whole.
    """

    kind: str
    layer: int | None = None
    unit: int | None = None
    position: int | str | None = None

    def __str__(self) -> str:
        inside = ", ".join(str(number) for number in (self.layer, self.unit) if number is not None)
        source = "" if self.position is None else f" from {self.position}"
        return self.kind + (f"[{inside}]" if inside else "") + source


@dataclass(frozen=True, eq=False, repr=False)
class Decomposition:
    """The answers' logits at the last token as a sum of parts, in logits.

    `values` `[part, example]`; NaN where an example has no such source token. `logits` is what the parts must add up
    to, as the model gives it, before a soft cap; `shown` is the same behind it. `scale` is the largest absolute logit
    of an answer, to which errors are relative, and `tolerance` the largest error allowed. `whole` names parts that
    could not be split at this grain, with the reason. `tokens` are those of each prompt.
    """

    parts: tuple[Part, ...]
    values: Float[np.ndarray, "part example"]
    logits: Float[np.ndarray, " example"]
    shown: Float[np.ndarray, " example"]
    scale: float
    tolerance: float
    by: str
    answer: str
    run: str
    model: str
    task: str
    layers: int
    softcap: float = 0.0
    whole: Mapping[str, str] = field(default_factory=dict)
    tokens: tuple[tuple[str, ...], ...] = ()

    @property
    def sums(self) -> Float[np.ndarray, " example"]:
        """What the parts add up to in each example."""
        return np.nansum(self.values, axis=0)

    @property
    def residual(self) -> Float[np.ndarray, " example"]:
        """What the parts miss in each example: logits − sum, in logits."""
        return self.logits - self.sums

    @property
    def error(self) -> float:
        """Largest absolute residual relative to the largest logit of an answer."""
        return float(np.abs(self.residual).max()) / max(self.scale, 1e-30)

    def check(self) -> float:
        """Return the largest relative error of the sum.

        Raises:
            NotProved: the parts do not add up to the logits within the tolerance.
        """
        if not self.error <= self.tolerance:
            raise NotProved(
                f"the parts add up to the {QUANTITIES[self.answer]} only within {self.error:.1e} of the largest logit; "
                f"{self.tolerance:.0e} is allowed. Forward hooks of your own, or dropout that is on, would explain it."
            )
        return self.error

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, part: str) -> Float[np.ndarray, " example"]:
        """Return one part's values by its text, such as `attn.head[5, 3]`.

        Raises:
            UnknownName: there is no such part.
        """
        names = [str(each) for each in self.parts]
        if part not in names:
            raise UnknownName.of("part", part, names)
        return self.values[names.index(part)]

    def mean(self) -> Float[np.ndarray, " part"]:
        """Average each part over the examples that have it."""
        there = (~np.isnan(self.values)).sum(axis=1)
        return np.nansum(self.values, axis=1) / np.maximum(there, 1)

    def top(self, k: int = 10) -> "TopParts":
        """List the k parts of largest absolute mean, with bootstrap intervals over examples."""
        mean = self.mean()
        chosen = np.argsort(-np.abs(mean), kind="stable")[:k]
        low, high = bootstrap_mean(self.values[chosen])
        total = float(self.logits.mean())
        rows = [
            TopPart(
                self.parts[i], float(mean[i]), float(a), float(b), float(mean[i]) / total if total else float("nan")
            )
            for i, a, b in zip(chosen, low, high, strict=True)
        ]
        return TopParts(tuple(rows))

    def panels(self) -> tuple[Panel, ...]:
        """Make heat maps: layers by heads, by source tokens (summed over heads), or by attention and MLP."""
        made = {"head": [self._units("attn.head")], "token": [self._sources()], "neuron": [self._units("mlp.hidden")]}
        maps = [self._components(), *made.get(self.by, [])]
        return tuple(panel for panel in maps if panel is not None)

    def _components(self) -> Panel | None:
        places: dict[tuple[Any, int | None], list[int]] = {}
        for index, part in enumerate(self.parts):
            if part.layer is not None:
                places.setdefault((part.kind.partition(".")[0], part.layer), []).append(index)
        sides = [side for side in ("attn", "mlp", "block") if any(key == side for key, _ in places)]
        return self._panel("added by block", sides, places, columns=sides) if sides else None

    def _units(self, kind: str) -> Panel | None:
        units = sorted({part.unit for part in self.parts if part.kind == kind and part.unit is not None})
        if not units or len(units) > WIDEST:
            return None
        places = {(part.unit, part.layer): [i] for i, part in enumerate(self.parts) if part.kind == kind}
        return self._panel(kind, units, places, columns=[str(unit) for unit in units])

    def _sources(self) -> Panel | None:
        keys = list(dict.fromkeys(part.position for part in self.parts if part.position is not None))
        if not keys or len(keys) > WIDEST:
            return None
        places: dict[tuple[Any, int | None], list[int]] = {}
        for index, part in enumerate(self.parts):
            if part.position is not None:
                places.setdefault((part.position, part.layer), []).append(index)
        labels = [f"{key} ·{hint}" if (hint := self.hint(key)) else str(key) for key in keys]
        return self._panel("all heads, by source token", keys, places, columns=labels)

    def _panel(self, title: str, keys: list[Any], places: Mapping[Any, list[int]], *, columns: list[str]) -> Panel:
        sums = np.full((self.layers * len(keys), self.values.shape[1]), np.nan)
        for (layer, place), key in np.ndenumerate(np.tile(np.array(keys, dtype=object), (self.layers, 1))):
            del place
            found = places.get((key, layer))
            if found:
                sums[layer * len(keys) + keys.index(key)] = self.total(found)
        low, high = bootstrap_mean(sums)
        with np.errstate(invalid="ignore"):
            there = (~np.isnan(sums)).sum(axis=1)
            mean = np.where(there > 0, np.nansum(sums, axis=1) / np.maximum(there, 1), np.nan)
        shape = self.layers, len(keys)
        rows = tuple(str(layer) for layer in range(self.layers))
        return Panel(title, mean.reshape(shape), low.reshape(shape), high.reshape(shape), rows, tuple(columns))

    def total(self, places: list[int]) -> Float[np.ndarray, " example"]:
        """Add up some parts; NaN where an example has none of them."""
        values = self.values[places]
        return np.where(np.isnan(values).all(axis=0), np.nan, np.nansum(values, axis=0))

    def hint(self, key: int | str) -> str:
        """Return the token that stands at an index in every prompt, '' if they differ."""
        if isinstance(key, str):
            return ""
        found = {row[key] if key < len(row) else "" for row in self.tokens}
        return clip(shown(found.pop()), 12) if len(found) == 1 and "" not in found else ""

    def notes(self) -> tuple[str, ...]:
        """Say what a reader must know: the check, the soft cap, what was kept whole, prompts of several layouts."""
        found = [f"{len(self.parts):,} parts add up to the {QUANTITIES[self.answer]}: largest error {self.error:.0e}"]
        if self.softcap:
            found.append(
                f"logits before the soft cap of {self.softcap:g}, which is not linear: {self.logits.mean():.2f}, "
                f"behind it {self.shown.mean():.2f}"
            )
        for reason in dict.fromkeys(self.whole.values()):
            names = [name for name, why in self.whole.items() if why == reason]
            found.append(f"kept whole: {', '.join(names[:4])}{' …' if len(names) > 4 else ''} ({reason})")
        indexed = any(isinstance(part.position, int) for part in self.parts)
        if indexed and len({len(row) for row in self.tokens}) > 1:
            found.append("prompts have different lengths and no names: one source means different words in them")
        return tuple(found)

    def title(self) -> str:
        """Name what was split, in one line."""
        mean = f"mean {QUANTITIES[self.answer]} {self.logits.mean():.2f}"
        return f"{self.model} · {self.task} · {self.run} run by {self.by}: {mean} over {len(self.logits)} examples"

    def to_frame(self) -> "pd.DataFrame":
        """Make a pandas table, one row a part and example. Raises MissingExtra without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise MissingExtra("to_frame needs pandas: pip install 'crosspatch[pandas]'") from None
        n = self.values.shape[1]
        place: Int[np.ndarray, " row"] = np.repeat(np.arange(len(self.parts)), n)
        parts = [self.parts[i] for i in place]
        columns: dict[str, Any] = {"part": [str(part) for part in parts], "kind": [part.kind for part in parts]}
        for name, dtype in (("layer", "Int64"), ("unit", "Int64"), ("position", "object")):
            columns[name] = pd.array([getattr(part, name) for part in parts], dtype=dtype)
        return pd.DataFrame(
            columns | {"example": np.tile(np.arange(n), len(self.parts)), "logits": self.values.ravel()}
        )

    def save(self, folder: str | Path) -> Path:
        """Write a result folder (safetensors and JSON); give it. Raises BadInput if it cannot."""
        arrays = {name: np.asarray(getattr(self, name)) for name in ARRAYS}
        meta = {name: getattr(self, name) for name in META} | {"whole": dict(self.whole)}
        meta["parts"] = [[part.kind, part.layer, part.unit, part.position] for part in self.parts]
        return write_result(
            folder, arrays, {"what": "attribution", "tokens": [list(row) for row in self.tokens], **meta}
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Decomposition":
        """Read what `save` wrote. Raises BadInput without such a folder, CorruptFile if its content is damaged."""
        arrays, meta = read_result(folder)
        try:
            if meta["what"] != "attribution":
                raise KeyError("what")
            parts, tokens = tuple(Part(*part) for part in meta["parts"]), tuple(tuple(row) for row in meta["tokens"])
            fields: dict[str, Any] = {name: arrays[name] for name in ARRAYS} | {name: meta[name] for name in META}
            return cls(parts=parts, tokens=tokens, whole=dict(meta["whole"]), **fields)
        except (KeyError, TypeError) as error:
            raise CorruptFile(f"{str(folder)!r} holds no saved attribution ({error} is missing or damaged).") from None

    def __repr__(self) -> str:
        return "\n".join([f"Decomposition: {self.title()}", *self.notes(), repr(self.top())])

    def _repr_html_(self) -> str:
        panels = self.panels()
        scale = Scale(nice_limit(np.concatenate([panel.values.ravel() for panel in panels])) if panels else 1.0)
        maps = "".join(heatmap_svg(panel, scale) for panel in panels)
        bar = colour_bar_svg(scale, unit="logits") if panels else ""
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes())
        head = f"<p><strong>{escape(self.title())}</strong></p><ul>{notes}</ul>"
        return f"<div>{head}<div>{maps}</div>{bar}{self.top()._repr_html_()}</div>"

    def __rich__(self) -> "Table":
        return self.top().__rich__()


@dataclass(frozen=True)
class TopPart:
    """One part: its mean in logits with interval, and its share of the mean logit."""

    part: Part
    mean: float
    low: float
    high: float
    share: float

    def cells(self) -> tuple[str, str, str]:
        """Write the row as texts."""
        return str(self.part), with_interval(self.mean, self.low, self.high), f"{number(100 * self.share, 1)} %"


@dataclass(frozen=True)
class TopParts:
    """The largest parts, largest absolute mean first."""

    rows: tuple[TopPart, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[TopPart]:
        return iter(self.rows)

    def __getitem__(self, place: int) -> TopPart:
        return self.rows[place]

    def __repr__(self) -> str:
        lines = [HEADERS, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                [f"{line[0]:<{widths[0]}}", *(f"{text:>{w}}" for text, w in zip(line[1:], widths[1:], strict=True))]
            )
            for line in lines
        )

    def _repr_html_(self) -> str:
        return table_html(HEADERS, [row.cells() for row in self.rows])

    def __rich__(self) -> "Table":
        return rich_table(HEADERS, [row.cells() for row in self.rows])
