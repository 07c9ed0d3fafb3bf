"""`generate`: let the user's own module write on, with activations written while it does."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from crosspatch.core.errors import BadInput, NotFinite
from crosspatch.core.provenance import here
from crosspatch.engine.edits import Edit
from crosspatch.engine.generated import Continuation, Generated
from crosspatch.engine.script import Asked, Rewriting, Script, When
from crosspatch.models.decoding import Decoder, end_tokens, most_tokens, settings_left_out
from crosspatch.models.guard import refuse_compiled
from crosspatch.models.model import Model
from crosspatch.models.weights import untracked
from crosspatch.sites import Site
from crosspatch.tasks.given import Given, prompts_of

AT_ONCE = 16  # prompts in one forward
Names = Mapping[str, int] | Sequence[Mapping[str, int]] | None


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, and how many at most."""

    max_tokens: int
    sample: bool
    temperature: float
    seed: int
    cache: bool

    def __post_init__(self) -> None:
        if isinstance(self.max_tokens, bool) or self.max_tokens < 1:
            raise BadInput(f"max_tokens={self.max_tokens!r}: give 1 or more.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise BadInput(f"temperature={self.temperature}: give a number above 0; sample=False is the limit at 0.")
        if self.temperature != 1.0 and not self.sample:
            raise BadInput(f"temperature={self.temperature} acts on samples only: give sample=True, or leave it out.")


def generate(
    model: Model,
    prompts: Given,
    *,
    edits: Mapping[str | Site, Edit] | None = None,
    when: When = "prefill",
    names: Names = None,
    max_tokens: int = 20,
    sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    cache: bool = True,
    compare: bool = False,
) -> Generated:
    """Let the model continue prompts while activations are written; with `compare`, also while none is.

    `prompts` are texts, token ids of any lengths, or a task's clean prompts. `edits` are as in `write`:
    `{"attn.head[5, 3]@S2": Zero()}`.
    An edit sees one prompt at a time, `[1, pos, width]`, so that no prompt depends on the others; a `Replace` or `Add`
    of `[prompt, pos, width]` gives each its own row, `Noise` and `Resample` draw for each by itself.

    `when` says at which steps: "prefill" (while the prompt is read), "always", or steps such as {0, 3}. Step k is the
    forward that predicts new token k: step 0 reads the prompt, later ones the newest token. A place in the prompt
    (`@3`, `@S2`, of `names`) is written at step 0 and stays as written; `@end`, `@-1`, `@all` and no position mean the
    prompt's last token (all its tokens) at step 0, and the newest token later.

    `cache=False` reads all tokens at every step, with all that was written so far written again: the same numbers,
    provided that an edit gives the same for the same activation. Without `sample` the likeliest token is taken; with
    it, tokens are drawn from softmax(logits / temperature) over the whole vocabulary by the Gumbel-max method, with
    noise from `seed` and the prompt alone, so that runs with and without edits differ where an edit moves the
    distribution. A row ends with an end token of the module's generation config or after `max_tokens`. No other
    setting of that config is used.

    Raises:
        UnknownName: no such site, position or time.
        BadInput: the module is training, a prompt is empty or too long, a position lies beyond a prompt, a step is
            never run, an edit does not fit, or the module keeps no cache.
        NotFinite: a logit is NaN.

    >>> made = generate(model, ["Rome is in"], edits={"mlp.out[3]@end": Zero()}, compare=True)  # doctest: +SKIP
    """
    decoding = Decoding(max_tokens, sample, temperature, seed, cache)
    refuse_compiled(model.module)
    if model.module.training:
        raise BadInput("the module is in training mode, whose dropout makes every run another. Call .eval() first.")
    if not model.anatomy.causal:
        raise BadInput(
            f"{model.name}: its tokens change what stands before them, so it cannot write on token by token."
        )
    asked = _asked(model, prompts, names, max_tokens)
    script = Script.of(model, edits or {}, when, max_tokens=max_tokens)
    settings = {
        "model": model.name,
        "model_hash": model.fingerprint,
        "edits": {str(site): type(edit).__name__ for site, edit in script.edits},
        "when": when if isinstance(when, str) else sorted(when),
        "sample": sample,
        "temperature": temperature,
        "seed": seed,
        "cache": cache,
        "max_tokens": max_tokens,
    }
    made = _generated(script, asked, decoding, here(**settings))
    return replace(made, unpatched=_generated(Script(model), asked, decoding, made.provenance)) if compare else made


def _asked(model: Model, prompts: Given, names: Names, max_tokens: int) -> list[Asked]:
    """Read prompts as token ids, with their names.

    Raises:
        BadInput: as `prompts_of` does, for names of another number of prompts, or for a prompt that is too long.
    """
    plain = prompts_of(model, prompts)
    named = [names or {}] * len(plain) if names is None or isinstance(names, Mapping) else list(names)
    if len(named) != len(plain):
        raise BadInput(f"names for {len(named)} prompts, and {len(plain)} prompts: give one mapping a prompt, or one.")
    most, seen = most_tokens(model.module), defaultdict[tuple[int, ...], int](int)
    found = []
    for number, ids in enumerate(plain):
        if most is not None and len(ids) + max_tokens - 1 > most:
            raise BadInput(
                f"prompt {number} has {len(ids)} tokens, and max_tokens={max_tokens}: the model has positions "
                f"for {most}. Shorten one of them."
            )
        # The same prompt given twice is sampled twice.
        found.append(Asked(ids, named[number], seen[ids]))
        seen[ids] += 1
    return found


def _generated(script: Script, asked: Sequence[Asked], decoding: Decoding, provenance: dict[str, Any]) -> Generated:
    rows: dict[int, Continuation] = {}
    edits = [script.edits_of(number, asked) for number in range(len(asked))]
    for prompt in asked:
        for site, _ in script.edits:
            prompt.place(site)  # before anything is run
    for numbers in _batches(asked):
        chosen = [asked[number] for number in numbers]
        writing = Rewriting(script, chosen, [edits[number] for number in numbers], decoding.cache)
        rows |= dict(zip(numbers, _Batch(script.model, chosen, decoding, writing).run(numbers), strict=True))
    model = script.model
    left_out = settings_left_out(model.module)
    return Generated.of(
        [prompt.ids for prompt in asked],
        [rows[number] for number in range(len(asked))],
        tokenizer=model.tokenizer,
        provenance=provenance,
        warnings=tuple(f"The generation config asks for {setting}, which is not used here." for setting in left_out),
    )


def _batches(asked: Sequence[Asked]) -> Iterator[list[int]]:
    """Yield prompts of one length, so that no padding is needed."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(asked):
        by_length[len(prompt.ids)].append(number)
    for numbers in by_length.values():
        for start in range(0, len(numbers), AT_ONCE):
            yield numbers[start : start + AT_ONCE]


@dataclass(frozen=True)
class _Batch:
    """Prompts of one length that are continued together."""

    model: Model
    prompts: Sequence[Asked]
    decoding: Decoding
    writing: Rewriting

    def run(self, numbers: Sequence[int]) -> list[Continuation]:
        """Run forwards until every row has ended; `numbers` are the prompts' own, for messages."""
        ends, script = end_tokens(self.model), self.writing.script
        tokens: list[list[int]] = [[] for _ in self.prompts]
        scores: list[list[float]] = [[] for _ in self.prompts]
        draws = [torch.Generator().manual_seed(prompt.seed(self.decoding.seed)) for prompt in self.prompts]
        ids = torch.tensor([prompt.ids for prompt in self.prompts], device=self.model.device)
        everywhere = any(site.kind == "logits" for site, _ in script.edits)
        decoder = Decoder(self.model, ids, self.decoding.cache, everywhere)
        with untracked(self.model.module), self.writing.hooks() if script.edits else nullcontext():
            for step in range(self.decoding.max_tokens):
                self.writing.step = step
                logits = decoder.next_logits()
                for row, (said, number) in enumerate(zip(tokens, numbers, strict=True)):
                    if said and said[-1] in ends:
                        continue
                    logprobs = logits[row].log_softmax(-1)
                    if logprobs.isnan().any():
                        raise NotFinite(_not_finite(number, step, written=bool(script.edits)))
                    said.append(self._choose(logits[row], draws[row]))
                    scores[row].append(float(logprobs[said[-1]]))
                if all(said[-1] in ends for said in tokens):
                    break
                decoder.extend(torch.tensor([said[-1] for said in tokens]))
        self.writing.check_fired()
        return [
            Continuation(tuple(said), tuple(score), said[-1] in ends, script.steps_written(len(said)))
            for said, score in zip(tokens, scores, strict=True)
        ]

    def _choose(self, logits: Float32[Tensor, " vocab"], draw: torch.Generator) -> int:
        """Return the likeliest token, or a sampled one (Gumbel-max: the same noise moves as little as it can)."""
        if not self.decoding.sample:
            return int(logits.argmax())
        waits: Float64[Tensor, " vocab"] = torch.empty(len(logits), dtype=torch.float64)
        waits.exponential_(generator=draw)
        return int((logits.double() / self.decoding.temperature - waits.log()).argmax())


def _not_finite(number: int, step: int, *, written: bool) -> str:
    cause = "what was written there may be too large" if written else "its forward overflows, or its weights hold NaN"
    return f"prompt {number}, step {step}: the logits give no probabilities (NaN or infinity): {cause}."
