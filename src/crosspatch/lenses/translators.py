"""Tuned lens: one affine map a layer from its residual stream to the last one; checked, applied, saved, loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.core.errors import BadInput, CorruptFile, MissingExtra
from crosspatch.core.stats import bootstrap_mean
from crosspatch.core.store import read_result, write_result
from crosspatch.draw import number, rich_table, table_html, with_interval
from crosspatch.models.model import Model

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

HEADERS = ("layer", "KL of logit lens", "KL of tuned lens", "change")
ARRAYS = ("weights", "biases", "before", "after")


@dataclass(frozen=True)
class Translators:
    """The maps of all layers but the last: x → x + A x + b."""

    weights: Float[Tensor, "layer d_model d_model"]
    biases: Float[Tensor, "layer d_model"]

    def __call__(self, layer: int, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Translate what leaves `layer` blocks; the last stream is left as it is."""
        if layer == len(self.biases):
            return stream
        return translate(stream, self.weights[layer], self.biases[layer])


def translate(
    stream: Float[Tensor, "row d_model"], weight: Float[Tensor, "d_model d_model"], bias: Float[Tensor, " d_model"]
) -> Float[Tensor, "row d_model"]:
    """Return x + A x + b of each row."""
    return stream + stream @ weight.to(stream).T + bias.to(stream)


@dataclass(frozen=True, eq=False, repr=False)
class TunedLens:
    """Affine translators of every layer, and how well they do on prompts that they were not trained on.

    `weights[l]` A and `biases[l]` b act on the stream that leaves l blocks (0: that enters the first) as x + A x + b.
    `before` and `after` are the mean KL(model's own ‖ lens) over each held-out prompt's tokens, in nats, of the plain
    logit lens and of this one. Belrose et al. 2023, "Eliciting latent predictions with the tuned lens", eq. 9.
    """

    weights: Float[np.ndarray, "layer d_model d_model"]
    biases: Float[np.ndarray, "layer d_model"]
    before: Float[np.ndarray, "layer prompt"]
    after: Float[np.ndarray, "layer prompt"]
    model: str
    model_hash: str
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.biases)

    def require(self, model: Model) -> None:
        """Raise BadInput unless this lens was trained on the very model that is given."""
        if model.fingerprint != self.model_hash:
            raise BadInput(
                f"this lens was trained on {self.model} ({self.model_hash}), and the model given is {model.name} "
                f"({model.fingerprint}): train one on it, or open the model that the lens belongs to."
            )

    def on(self, device: torch.device) -> Translators:
        """Return the maps as tensors."""
        weights, biases = (torch.from_numpy(array).to(device) for array in (self.weights, self.biases))
        return Translators(weights, biases)

    def change(self, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return each layer's mean change of the held-out KL, below zero where it fell, and its bootstrap interval."""
        change = self.after - self.before
        return (change.mean(axis=1), *bootstrap_mean(change, level=level))

    def summary(self) -> dict[str, Any]:
        """Describe the lens as JSON: the settings, and each layer's held-out KL with bootstrap intervals."""
        rows = zip(
            *(self._column(values) for values in (self.before, self.after, self.after - self.before)), strict=True
        )
        layers = [{"layer": i, "before": b, "after": a, "change": c} for i, (b, a, c) in enumerate(rows)]
        about = {"what": "tuned lens", "model": self.model, "model_hash": self.model_hash}
        return about | {"settings": dict(self.settings), "unit": "nats", "layers": layers}

    def _column(self, values: Float[np.ndarray, "layer prompt"]) -> list[list[float]]:
        return np.stack([values.mean(axis=1), *bootstrap_mean(values)], axis=1).tolist()

    def to_frame(self) -> "pd.DataFrame":
        """Make a pandas table, one row a layer and held-out prompt. Raises MissingExtra without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise MissingExtra("to_frame needs pandas: pip install 'crosspatch[pandas]'") from None
        layer, prompt = np.indices(self.before.shape).reshape(2, -1)
        values = {"before": self.before.reshape(-1), "after": self.after.reshape(-1)}
        return pd.DataFrame({"layer": layer, "prompt": prompt, **values})

    def save(self, folder: str | Path) -> Path:
        """Write a result folder (safetensors and JSON); give it. Raises BadInput if it cannot."""
        meta = {"what": "tuned lens", "model": self.model, "model_hash": self.model_hash}
        arrays = {name: getattr(self, name) for name in ARRAYS}
        return write_result(folder, arrays, {**meta, "settings": dict(self.settings)})

    @classmethod
    def load(cls, folder: str | Path, model: Model | None = None) -> "TunedLens":
        """Read what `save` wrote, for a model if one is given.

        Raises:
            BadInput: there is no such folder, or the lens was trained on another model.
            CorruptFile: its content is damaged, or is no tuned lens.
        """
        arrays, meta = read_result(folder)
        try:
            if meta["what"] != "tuned lens":
                raise KeyError("what")
            about = {name: meta[name] for name in ("model", "model_hash", "settings")}
            found = cls(**{name: arrays[name] for name in ARRAYS}, **about)
        except (KeyError, TypeError) as error:
            raise CorruptFile(f"{str(folder)!r} holds no tuned lens as crosspatch writes it: {error}.") from None
        if model is not None:
            found.require(model)
        return found

    def title(self) -> str:
        """Say what was trained, in one line."""
        return (
            f"{self.model}: {len(self)} translators, {self.settings['steps']} steps, "
            f"KL to the model's own distribution in nats over {self.before.shape[1]} held-out prompts"
        )

    def cells(self) -> list[tuple[str, ...]]:
        """Write each layer's row as text."""
        columns = [self._column(values) for values in (self.before, self.after, self.after - self.before)]
        rows = zip(*columns, strict=True)
        return [(str(i), *(with_interval(*each, digits=3) for each in row)) for i, row in enumerate(rows)]

    def __repr__(self) -> str:
        means = zip(*(side.mean(axis=1).tolist() for side in (self.before, self.after)), strict=True)
        lines = [f"{i:>5}{number(b, 3):>12} → {number(a, 3)}" for i, (b, a) in enumerate(means)]
        return "\n".join([f"TunedLens: {self.title()}", *lines])

    def _repr_html_(self) -> str:
        return f"<div><p><strong>{escape(self.title())}</strong></p>{table_html(HEADERS, self.cells())}</div>"

    def __rich__(self) -> "Table":
        return rich_table(HEADERS, self.cells())
