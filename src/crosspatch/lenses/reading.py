"""Logit lens: decode the residual stream after every block by the model's own readout, as it is or translated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosspatch.core.errors import BadInput, ManyTokenAnswer, NotFinite
from crosspatch.engine.readout import targets_of
from crosspatch.lenses.decoding import Decoder
from crosspatch.lenses.lens_view import LensView
from crosspatch.lenses.streams import Streams, read_streams
from crosspatch.lenses.translators import Translators, TunedLens
from crosspatch.metrics import Readout, get_metric
from crosspatch.models.model import Model
from crosspatch.models.weights import untracked
from crosspatch.tasks import Task, token_strings
from crosspatch.tasks.given import Given, prompts_of


def logit_lens(
    model: Model, prompts: Given, *, at: str = "end", k: int = 5, run: str = "clean", lens: TunedLens | None = None
) -> LensView:
    """Decode the stream before the first block and after each block by the model's final norm and unembedding.

    `prompts` is a task (`run`: its clean or corrupt prompts), texts, or token ids of any lengths. `at` is "end" (the
    last token of each prompt) or "all". The target whose log-probability and rank are followed is the right answers
    where a task is read at its end, else the token that the last layer puts first. With a trained `lens` each stream
    is translated first. nostalgebraist 2020, "interpreting GPT: the logit lens"; Belrose et al. 2023 for the rest.

    Raises:
        UnknownName: another run or place.
        BadInput: prompts that this model cannot be run on, a k that is no number of tokens, or another model's lens.
        ManyTokenAnswer: an answer of several tokens; a lens reads one.
        NotProved: norms and unembedding were not proved to give the model's logits.
        NotFinite: a layer decodes to no number.

    >>> view = logit_lens(model, task)  # doctest: +SKIP
    >>> view.mean_saturation()  # doctest: +SKIP
    """
    if not 1 <= k <= model.vocab_size:
        raise BadInput(f"k={k}: give the number of likeliest tokens to keep, 1 to {model.vocab_size}.")
    sequences = prompts_of(model, prompts, run=run)
    task = prompts if isinstance(prompts, Task) else None
    if lens is not None:
        lens.require(model)
    reader = Reader(
        Decoder.of(model),
        None if lens is None else lens.on(model.device),
        _Answers.of(model, task) if task is not None and at == "end" else None,
        k,
    )
    with untracked(model.module):
        sheet = _filled(model, sequences, reader, at=at)
    found = np.unique(sheet["top"][sheet["top"] >= 0]).tolist()
    return LensView(
        **sheet,
        tokens=tuple(token_strings(model.tokenizer, prompt) for prompt in sequences),
        words=dict(zip(found, token_strings(model.tokenizer, found), strict=True)),
        at=at,
        target="right answers" if reader.answers is not None else "the last layer's top token",
        lens="logit lens" if lens is None else "tuned lens",
        run=run if task is not None else "",
        model=model.name,
        task=task.name if task is not None else "",
    )


def _filled(model: Model, sequences: Sequence[Sequence[int]], reader: "Reader", *, at: str) -> dict[str, np.ndarray]:
    """Read all prompts into arrays `[example, layer, read]`."""
    shape = (len(sequences), model.anatomy.layers + 1, max(map(len, sequences)) if at == "all" else 1)
    sheet = reader.blank(shape)
    for streams in read_streams(model, sequences, at=at):
        for part in streams.split(reader.decoder.rows):
            reader.fill(sheet, part, part.positions.numpy() if at == "all" else np.zeros_like(part.examples.numpy()))
    return sheet


@dataclass(frozen=True)
class _Answers:
    """The right answers of each example, as many columns as the most has."""

    ids: Int[Tensor, "example answer"]
    mask: Bool[Tensor, "example answer"]

    @classmethod
    def of(cls, model: Model, task: Task) -> "_Answers":
        """Lay out a task's answers. Raises ManyTokenAnswer for one of several tokens."""
        for number, pair in enumerate(task.pairs):
            if any(len(answer) > 1 for answer in pair.right):
                raise ManyTokenAnswer(
                    f"example {number} has an answer of several tokens, and a lens reads one next token: make the task "
                    "with answers='first token'."
                )
        targets = targets_of(task.pairs, model.device)
        return cls(targets.right[:, 0], targets.right_mask[:, 0])


@runtime_checkable
class Readable(Protocol):
    """What turns streams into logits, so many rows at once."""

    @property
    def rows(self) -> int:
        """How many rows are decoded at once."""
        ...

    def logits(self, stream: Float[Tensor, "row d_model"], /) -> Float[Tensor, "row vocab"]:
        """Return the logits that the module would give if this were its last stream."""
        ...


@dataclass(frozen=True)
class Reader:
    """Turns streams into what is kept of each layer's distribution."""

    decoder: Readable
    translators: Translators | None
    answers: _Answers | None
    k: int

    def blank(self, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
        """Return arrays `[example, layer, read]` in which nothing was read."""
        sheet: dict[str, np.ndarray] = {
            name: np.full(shape, np.nan, np.float32) for name in ("logprob", "rank", "kl", "entropy")
        }
        sheet["top"] = np.full((*shape, self.k), -1, np.int64)
        sheet["top_logprob"] = np.full((*shape, self.k), np.nan, np.float32)
        return sheet

    def fill(self, sheet: dict[str, np.ndarray], part: Streams, reads: np.ndarray) -> None:
        """Read some streams into arrays, each row at its example and its place among what is read."""
        for layer, found in enumerate(self.read(part)):
            for name, values in found.items():
                sheet[name][part.examples.numpy(), layer, reads] = values.cpu().numpy()

    def read(self, part: Streams) -> list[dict[str, Tensor]]:
        """Return each layer's numbers, one a row."""
        own = self.decoder.logits(part.layers[-1])
        reference = own.float().log_softmax(-1)
        last = len(part.layers) - 1
        right, mask = self._targets(part, own)
        found: list[dict[str, Tensor]] = []
        for layer, stream in enumerate(part.layers):
            logits = own if layer == last else self.decoder.logits(self._translated(layer, stream))
            none = torch.zeros(len(right), 0, device=right.device)
            out = Readout(logits.gather(1, right), none, mask, none.bool(), right, logits=logits, reference=reference)
            found.append(self._numbers(out, layer))
        return found

    def _translated(self, layer: int, stream: Tensor) -> Float[Tensor, "row d_model"]:
        return stream if self.translators is None else self.translators(layer, stream)

    def _targets(self, part: Streams, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens that are followed, and which columns are real."""
        if self.answers is not None:
            rows = part.examples.to(own.device)
            return self.answers.ids[rows], self.answers.mask[rows]
        top = own.argmax(-1, keepdim=True)
        return top, torch.ones_like(top, dtype=torch.bool)

    def _numbers(self, out: Readout, layer: int) -> dict[str, Tensor]:
        logprobs = out.logprobs
        if logprobs.isnan().any():
            raise NotFinite(
                f"layer {layer} decodes to NaN: the model's stream is not finite there. Open it in float32, or look "
                "at the prompts."
            )
        chances = logprobs.exp()
        entropy = -torch.where(chances > 0, chances * logprobs, 0.0).sum(-1)
        top_logprob, top = logprobs.topk(self.k)
        found = {name: get_metric(name).score(out) for name in ("logprob", "rank", "kl")}
        return {**found, "entropy": entropy, "top": top, "top_logprob": top_logprob}
