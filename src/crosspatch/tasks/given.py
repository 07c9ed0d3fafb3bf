"""Prompts as users give them, to whatever reads prompts alone: a task's, texts, or token ids of any lengths."""

from collections.abc import Sequence
from typing import Any

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.tasks.pair import Task
from crosspatch.tasks.rows import Rows, SupportsToList, is_id, read_rows, refuse_padding, to_plain
from crosspatch.tasks.tokens import OpenedModel, check_ids, encode, tokenizer_of

RUNS = ("clean", "corrupt")
Given = Task | str | Sequence[Any] | Rows


def prompts_of(model: OpenedModel, given: Given, *, run: str = "clean") -> list[tuple[int, ...]]:
    """Return token ids, one tuple a prompt: those of a task's run, of texts by the model's own tokenizer, or as given.

    One text, or one prompt's ids, is a list of one.

    Raises:
        UnknownName: another run than clean or corrupt.
        BadInput: no prompt or an empty one, texts without a tokenizer, ids that the model cannot embed, padding.
    """
    if run not in RUNS:
        raise UnknownName.of("run", run, RUNS)
    found = [getattr(pair, run) for pair in given.pairs] if isinstance(given, Task) else _read(model, given)
    for number, prompt in enumerate(found):
        check_ids(prompt, model.vocab_size, what=f"prompt {number}")
    return found


def _read(model: OpenedModel, given: Any) -> list[tuple[int, ...]]:
    """Read texts or rows of ids, one or several."""
    plain = [given] if isinstance(given, str) else to_plain(given)
    if not isinstance(plain, list) or not plain:
        raise BadInput(f"prompts={given!r}: give at least one prompt, as text or as a list of token ids.")
    if all(isinstance(each, str) for each in plain):
        tokenizer_of(model)
        return [encode(model, text) for text in plain]
    found = read_rows([plain] if all(map(is_id, plain)) else plain, "prompts", mask=None)
    if isinstance(given, SupportsToList):
        refuse_padding(found, getattr(model.tokenizer, "pad_token_id", None), what="prompts")
    return found
