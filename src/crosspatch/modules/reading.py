"""Rows that an encoder–decoder reads together, token by token; the source run beside them, each text once."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosspatch.models.kept import of_heard, of_rows, only_heard, take_rows, taken
from crosspatch.models.seq2seq import EncoderDecoder
from crosspatch.modules.trial import Trial
from crosspatch.modules.views import view
from crosspatch.replay import Spot, writing
from crosspatch.replay.values import mapped

NEAR = 1e-3  # share of the largest logit by which two ways to the same logits may differ


class Reading:
    """Rows of one run: their examples, what the encoder gave for them, and the cache of what they have read."""

    def __init__(self, trial: Trial, module: EncoderDecoder, run: str, examples: Sequence[int], heard: Any) -> None:
        self.trial, self.module, self.run = trial, module, run
        self.examples, self.heard, self.past = list(examples), heard, None
        self.given = self._given()

    def _given(self) -> dict[str, Any]:
        inputs = self.module.for_decoder(self.trial.inputs(self.run))
        return self.trial.outline.taken(inputs, torch.tensor(self.examples, dtype=torch.long))

    @property
    def prompt(self) -> Int[Tensor, "row token"]:
        """The tokens that the rows begin with."""
        ids = self.module.prompt(self.trial.inputs(self.run))
        return ids[torch.tensor(self.examples, dtype=torch.long, device=ids.device)]

    def read(self, tokens: Int[Tensor, "row token"]) -> Float[Tensor, "row vocab"]:
        """Read tokens; return the logits of the next ones."""
        with torch.no_grad():
            logits, self.past = self.module.step(self.heard, self.given, tokens, self.past)
        return logits

    def take(self, rows: Sequence[int]) -> None:
        """Go on with these of the rows, in this order; one may be taken often. The cache must be `of_rows`."""
        if list(rows) == list(range(len(self.examples))):
            return
        share = self.module.shares_rows
        self.examples = [self.examples[row] for row in rows]
        self.given = self._given()
        self.heard = mapped(self.heard, partial(taken, rows=rows, share=share))
        if self.past is not None:
            take_rows(self.past, rows, share=share)

    def hear(self) -> None:
        """Make the keys and values of what the encoder gave, so that rows taken from these have them alike."""
        self.read(self.prompt)
        self.past = only_heard(self.past)


class Beside:
    """The source run beside patched rows: it reads each text once that any of them has said."""

    def __init__(self, reading: Reading, spots: Collection[Spot], of: Sequence[int]) -> None:
        self.reading, self.spots = reading, spots
        self.of = list(of)  # which of its rows reads what a patched row reads
        self.tokens = reading.prompt  # what it reads next
        self.values: dict[Spot, Float[Tensor, "row position column"]] = {}

    def read(self) -> tuple[Mapping[Spot, Any], set[Spot]]:
        """Read on and note what is there at the spots; return what would note, and where it did."""
        acts = {spot: partial(self._note, spot) for spot in self.spots}
        with writing(self.reading.trial.outline, acts) as reached:
            self.reading.read(self.tokens)
        return acts, reached

    def _note(self, spot: Spot, value: Tensor) -> Tensor:
        trial = self.reading.trial
        axis, module = trial.outline.shape(spot)[1], trial.module.get_submodule(spot.path)
        self.values[spot] = view(value, axis=axis, count=len(self.reading.examples), module=module)[0]
        return value

    def follow(self, rows: Sequence[int], said: Sequence[int]) -> None:
        """Go on beside these of the patched rows, with what each said."""
        texts = [(self.of[row], token) for row, token in zip(rows, said, strict=True)]
        if of_rows(self.reading.past):
            numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
            self.of, texts = [numbers[text] for text in texts], list(numbers)
            self.reading.take([parent for parent, _ in texts])
        self.tokens = torch.tensor([[token] for _, token in texts], dtype=torch.long, device=self.tokens.device)


def behind_heard(reading: Reading, spots: Collection[Spot]) -> frozenset[Spot]:
    """Return the decoder's spots that may be written in rows that share the keys and values of what was heard.

    They must be reached where those are there already, without other logits; and what is written there, NaN for
    instance, must not come into them. None, if a module does not show this.
    """
    try:
        plain, past = _once(reading, None)
        if not of_rows(past):
            return frozenset()
        heard = [each.clone() for each in of_heard(past)]
        with writing(reading.trial.outline, dict.fromkeys(spots, torch.clone)) as reached:
            again, other = _once(reading, only_heard(past))
        with writing(reading.trial.outline, dict.fromkeys(reached, lambda value: torch.full_like(value, torch.nan))):
            _, tainted = _once(reading, None)
        kept = all(
            torch.equal(one, two) for each in (other, tainted) for one, two in zip(heard, of_heard(each), strict=True)
        )
    except Exception:  # whatever a module does with a cache or values that it did not make itself
        return frozenset()
    near = float((again - plain).abs().max()) <= NEAR * float(plain.abs().max())
    return frozenset(reached) if kept and near and heard else frozenset()


def _once(reading: Reading, past: Any) -> tuple[Float[Tensor, "row vocab"], Any]:
    with torch.no_grad():
        return reading.module.step(reading.heard, reading.given, reading.prompt, past)
