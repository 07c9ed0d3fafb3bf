"""What a lens read: each layer's distribution beside the model's own, by example, with intervals; shown, saved."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from crosspatch.core.errors import BadInput, CorruptFile, MissingExtra, UnknownName
from crosspatch.core.stats import bootstrap_mean
from crosspatch.core.store import read_result, write_result
from crosspatch.draw import (
    Panel,
    Scale,
    clip,
    colour_bar_svg,
    heatmap_svg,
    number,
    rich_table,
    shown,
    table_html,
    with_interval,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

MEASURES = {
    "logprob": "log-probability, nats",
    "rank": "tokens above it",
    "kl": "KL to the model's own, nats",
    "entropy": "entropy, nats",
    "agrees": "share with the model's top token",
}
ARRAYS = ("logprob", "rank", "kl", "entropy", "top", "top_logprob")
WIDEST = 40  # columns of the map
CELLS = 4  # top tokens shown


@dataclass(frozen=True, eq=False, repr=False)
class LensView:
    """The distribution that each layer decodes to, at each token read of each example; NaN (−1) where none was read.

    Layer 0 is the stream that enters the first block, layer l leaves l blocks; the last one is the model's own.
    `logprob` (nats) and `rank` (tokens above it, ties one half) are those of the target: the right answers (their
    summed probability and the best one's rank), or the last layer's own top token, as `target` says. `kl` is
    D(model's own ‖ layer) in nats, `entropy` the layer's own in nats. `top` are the k likeliest token ids,
    the likeliest first, `top_logprob` their log-probabilities. `positions` say which token of the prompt was
    read, `tokens` are the prompts, `words` what the ids in `top` stand for.
    """

    logprob: Float[np.ndarray, "example layer read"]
    rank: Float[np.ndarray, "example layer read"]
    kl: Float[np.ndarray, "example layer read"]
    entropy: Float[np.ndarray, "example layer read"]
    top: Int[np.ndarray, "example layer read k"]
    top_logprob: Float[np.ndarray, "example layer read k"]
    tokens: tuple[tuple[str, ...], ...]
    words: Mapping[int, str]
    at: str
    target: str
    lens: str
    run: str
    model: str
    task: str

    @property
    def layers(self) -> int:
        """Number of streams that were decoded: the blocks, and what enters the first."""
        return self.logprob.shape[1]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def positions(self) -> Int[np.ndarray, "example read"]:
        """The position in the prompt of each token read; −1 where none was."""
        places = (
            np.arange(self.kl.shape[2])[None] if self.at == "all" else np.array([[len(t) - 1] for t in self.tokens])
        )
        return np.where(self.top[:, -1, :, 0] >= 0, places, -1)

    @cached_property
    def agrees(self) -> Float[np.ndarray, "example layer read"]:
        """1 where a layer's top token is the last layer's, 0 where not."""
        first = self.top[..., 0]
        same = (first == first[:, -1:]).astype(np.float32)
        return np.where(first >= 0, same, np.float32(np.nan))

    @cached_property
    def saturation(self) -> Int[np.ndarray, "example read"]:
        """The first layer from which on the top token is always the last layer's; −1 where nothing was read."""
        differs = self.agrees == 0
        layers = np.arange(1, self.layers + 1)[None, :, None]
        after_last_other = np.where(differs, layers, 0).max(axis=1)
        return np.where(self.top[:, -1, :, 0] >= 0, after_last_other, -1)

    def mean_saturation(self, *, level: float = 0.95) -> tuple[float, float, float]:
        """Return the mean saturation layer and its bootstrap interval over examples, each the mean of its tokens."""
        each = _over_reads(np.where(self.saturation < 0, np.nan, self.saturation)[:, None])
        low, high = bootstrap_mean(each.T, level=level)
        return float(each.mean()), float(low[0]), float(high[0])

    def by_layer(self, measure: str, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a measure's mean at each layer and its bootstrap interval over examples, each the mean of its tokens.

        `measure` is logprob, rank, kl, entropy or agrees. Raises UnknownName for another.
        """
        if measure not in MEASURES:
            raise UnknownName.of("measure", measure, tuple(MEASURES))
        each = _over_reads(getattr(self, measure))
        return (each.mean(axis=0), *bootstrap_mean(each.T, level=level))

    def words_at(self, example: int = 0, position: int = -1) -> list[list[tuple[str, float]]]:
        """Return for each layer the likeliest tokens at one token of one example, with their probabilities.

        Raises:
            BadInput: there is no such example, or that position was not read.
        """
        if not 0 <= example < len(self):
            raise BadInput(f"example {example}: this view has examples 0..{len(self) - 1}.")
        place = position if position >= 0 else len(self.tokens[example]) + position
        reads = np.flatnonzero(self.positions[example] == place)
        if place < 0 or not len(reads):
            raise BadInput(f"position {position} of example {example} was not read: this view reads at={self.at!r}.")
        ids, chances = self.top[example, :, reads[0]], np.exp(self.top_logprob[example, :, reads[0]])
        return [
            [(self.words[token], float(p)) for token, p in zip(*each, strict=True)]
            for each in zip(ids.tolist(), chances, strict=True)
        ]

    def summary(self) -> dict[str, Any]:
        """Describe the view as JSON: each measure by layer with bootstrap intervals, and the saturation layer."""
        about = {name: getattr(self, name) for name in ("lens", "model", "task", "run", "at", "target")}
        measures = {
            name: [
                dict(zip(("mean", "low", "high"), map(_plain, row), strict=True)) for row in zip(*found, strict=True)
            ]
            for name, found in ((name, self.by_layer(name)) for name in MEASURES)
        }
        saturation = dict(zip(("mean", "low", "high"), map(_plain, self.mean_saturation()), strict=True))
        return {**about, "n": len(self), "layers": self.layers, "saturation": saturation, **measures}

    def to_frame(self) -> "pd.DataFrame":
        """Make a pandas table, one row an example, layer and token read. Raises MissingExtra without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise MissingExtra("to_frame needs pandas: pip install 'crosspatch[pandas]'") from None
        example, layer, read = np.nonzero(~np.isnan(self.kl))
        at, first = self.positions[example, read], self.top[example, layer, read, 0]
        columns: dict[str, Any] = {"example": example, "layer": layer, "position": at}
        columns["token"] = [self.tokens[e][p] for e, p in zip(example, at, strict=True)]
        columns |= {name: getattr(self, name)[example, layer, read] for name in MEASURES}
        columns |= {"top": [self.words[token] for token in first.tolist()]}
        columns |= {"top_logprob": self.top_logprob[example, layer, read, 0]}
        return pd.DataFrame(columns | {"saturation": self.saturation[example, read]})

    def save(self, folder: str | Path) -> Path:
        """Write a result folder (safetensors and JSON); give it. Raises BadInput if it cannot."""
        meta = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*ARRAYS, "words", "tokens")}
        lists = {"tokens": [list(row) for row in self.tokens], "words": {str(i): w for i, w in self.words.items()}}
        return write_result(folder, {name: getattr(self, name) for name in ARRAYS}, {"what": "lens", **meta, **lists})

    @classmethod
    def load(cls, folder: str | Path) -> "LensView":
        """Read what `save` wrote. Raises BadInput without such a folder, CorruptFile if its content is damaged."""
        arrays, meta = read_result(folder)
        try:
            if meta.pop("what") != "lens":
                raise KeyError("what")
            tokens = tuple(tuple(row) for row in meta.pop("tokens"))
            words = {int(token): word for token, word in meta.pop("words").items()}
            return cls(**{name: arrays[name] for name in ARRAYS}, tokens=tokens, words=words, **meta)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{str(folder)!r} holds no view of a lens as crosspatch writes it: {error}.") from None

    def title(self) -> str:
        """Name what was read, and say where it saturates, in one line."""
        where = "last token" if self.at == "end" else "all tokens"
        mean = with_interval(*self.mean_saturation(), digits=1)
        about = " · ".join(part for part in (self.model, self.task, f"{self.run} run") if part)
        return f"{about}: {self.lens}, {where} of {len(self)} prompts; saturates at layer {mean} of {self.layers - 1}"

    def headers(self) -> tuple[str, ...]:
        """Name the columns of the table."""
        target = "answer" if self.target == "right answers" else "top token"
        return ("layer", f"log p of {target}", "rank", "KL", "entropy", "agrees", "first prompt's top tokens")

    def cells(self) -> list[tuple[str, ...]]:
        """Write each layer's means with intervals, and what the first prompt's last token decodes to."""
        columns = [[with_interval(*row) for row in zip(*self.by_layer(name), strict=True)] for name in MEASURES]
        words = [" ".join(clip(shown(word), 14) for word, _ in row[:CELLS]) for row in self.words_at()]
        return list(zip(self.names(), *columns, words, strict=True))

    def panel(self) -> Panel:
        """Make a map of the target's probability: layers by tokens of the first prompt, or by prompts at their ends."""
        if self.at == "all":
            values, columns = self.logprob[0][:, : len(self.tokens[0])], map(shown, self.tokens[0])
        else:
            values, columns = self.logprob[:, :, 0].T, (str(number) for number in range(len(self)))
        values = np.exp(values)[:, :WIDEST].astype(np.float64)
        hole, rows = np.full_like(values, np.nan), self.names()
        labels = tuple(f"{place} ·{word}" if self.at == "all" else word for place, word in enumerate(columns))
        return Panel(f"p of {self.target}", values, hole, hole, rows, labels[:WIDEST])

    def __repr__(self) -> str:
        lines = ["  ".join((f"{row[0]:<6}", *(f"{cell:>22}" for cell in row[1:6]), row[6])) for row in self.cells()]
        return "\n".join([f"LensView: {self.title()}", *lines])

    def _repr_html_(self) -> str:
        scale = Scale(1.0)
        picture = f"<div>{heatmap_svg(self.panel(), scale)}</div>{colour_bar_svg(scale, unit='probability')}"
        head = f"<p><strong>{escape(self.title())}</strong></p>"
        return f"<div>{head}{picture}{table_html(self.headers(), self.cells())}</div>"

    def __rich__(self) -> "Table":
        # A terminal has no room for intervals.
        means = [[number(value) for value in self.by_layer(name)[0].tolist()] for name in MEASURES]
        words = [" ".join(clip(shown(word), 9) for word, _ in row[:3]) for row in self.words_at()]
        headers = ("layer", "log p", "rank", "KL", "entropy", "agrees", "top tokens")
        return rich_table(headers, list(zip(self.names(), *means, words, strict=True)))

    def names(self) -> tuple[str, ...]:
        """Name the layers."""
        return ("embed", *map(str, range(1, self.layers)))


def _over_reads(values: Float[np.ndarray, "example any read"]) -> Float[np.ndarray, "example any"]:
    """Average over the tokens read of each example; all have one at least."""
    return np.asarray(np.nanmean(values, axis=2, dtype=np.float64))


def _plain(value: float) -> float | None:
    """Return a number that JSON can hold: nothing for NaN."""
    return None if np.isnan(value) else float(value)
