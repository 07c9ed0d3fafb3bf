"""What a model wrote on to prompts: tokens, texts and log-probabilities, beside what it writes when left alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from crosspatch.core.errors import BadInput
from crosspatch.draw import Display, Displayed, spans

SHOWN = 60  # characters of a prompt in a printed line


@dataclass(frozen=True)
class Continuation:
    """What was written on to one prompt: new tokens, log p of each, whether an end token came, steps written at."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    steps: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Generated(Displayed):
    """Continuations of prompts, one entry a prompt in every field.

    `tokens` are the new ones, an end token included; `logprobs` their log-probabilities (natural logarithm, float32)
    under the patched model's own distribution, whatever the temperature; `patched_steps` the steps at which something
    was written (step 0 reads the prompt); `ended` whether an end token came. Texts are ids where there is no tokenizer.
    `unpatched` is the same without edits, if it was asked for.
    """

    prompts: tuple[tuple[int, ...], ...]
    prompt_texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    logprobs: tuple[tuple[float, ...], ...]
    ended: tuple[bool, ...]
    patched_steps: tuple[tuple[int, ...], ...]
    unpatched: "Generated | None" = None
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        prompts: Sequence[tuple[int, ...]],
        rows: Sequence[Continuation],
        *,
        tokenizer: Any,
        provenance: dict[str, Any],
        warnings: tuple[str, ...] = (),
    ) -> "Generated":
        """Put continuations together, with their texts."""
        return cls(
            prompts=tuple(prompts),
            prompt_texts=tuple(_text(tokenizer, ids) for ids in prompts),
            tokens=tuple(row.tokens for row in rows),
            texts=tuple(_text(tokenizer, row.tokens) for row in rows),
            logprobs=tuple(row.logprobs for row in rows),
            ended=tuple(row.ended for row in rows),
            patched_steps=tuple(row.steps for row in rows),
            warnings=warnings,
            provenance=provenance,
        )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def first_differences(self) -> tuple[int | None, ...]:
        """First step at which the patched tokens are not the unpatched ones, None where there is none.

        Raises:
            BadInput: there is no unpatched continuation to compare with.
        """
        if self.unpatched is None:
            raise BadInput("there is no unpatched continuation beside this one: generate with compare=True.")
        return tuple(map(_first_difference, self.tokens, self.unpatched.tokens))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data that `json.dumps` takes; the comparison, if there is one, inside."""
        names = ("prompts", "prompt_texts", "tokens", "texts", "logprobs", "ended", "patched_steps", "warnings")
        plain = {name: _listed(getattr(self, name)) for name in names} | {"provenance": self.provenance}
        if self.unpatched is None:
            return plain
        other = {name: value for name, value in self.unpatched.to_json().items() if name != "provenance"}
        return plain | {"unpatched": other, "first_differences": list(self.first_differences)}

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the heads and rows of a table of prompts and continuations."""
        steps = [spans(steps) for steps in self.patched_steps]
        columns: dict[str, Sequence[str]] = {"prompt": self.prompt_texts, "continuation": self.texts}
        if self.unpatched is not None:
            differ = ["nowhere" if step is None else f"step {step}" for step in self.first_differences]
            columns = {
                "prompt": self.prompt_texts,
                "patched": self.texts,
                "unpatched": self.unpatched.texts,
                "first differ at": differ,
            }
        columns |= {"written at steps": steps} if any(steps) else {}
        return tuple(columns), list(zip(*columns.values(), strict=True))

    def __repr__(self) -> str:
        lines = [f"Generated: {len(self)} prompt{'s' if len(self) > 1 else ''}"]
        for number, (prompt, text) in enumerate(zip(self.prompt_texts, self.texts, strict=True)):
            lines.append(f"{'…' if len(prompt) > SHOWN else ''}{prompt[-SHOWN:]!r} → {text!r}")
            if self.unpatched is not None:
                step = self.first_differences[number]
                where = "the same" if step is None else f"differs from step {step} on"
                lines.append(f"    unpatched: {self.unpatched.texts[number]!r} ({where})")
        return "\n".join([*lines, *self.warnings])

    def display(self) -> Display:
        """Show prompts and continuations side by side."""
        return Display(f"{len(self)} prompt{'s' if len(self) > 1 else ''} continued", *self.rows(), self.warnings)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    if tokenizer is None:
        return " ".join(map(str, ids))
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    return next((step for step, (a, b) in enumerate(zip_longest(one, other)) if a != b), None)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value
