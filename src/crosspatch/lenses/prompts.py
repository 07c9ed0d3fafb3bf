"""What a lens is given, read as token ids: a task's prompts, texts, or ids of unequal lengths."""

from collections.abc import Sequence

from crosspatch.core.errors import UnknownName
from crosspatch.models.model import Model
from crosspatch.tasks import Task
from crosspatch.tasks.rows import Rows, SupportsToList, read_rows, refuse_padding
from crosspatch.tasks.tokens import check_ids, encode, tokenizer_of

RUNS = ("clean", "corrupt")
Given = Task | str | Sequence[str] | Rows


def prompts_of(model: Model, given: Given, *, run: str = "clean") -> list[tuple[int, ...]]:
    """Return token ids, one tuple a prompt: those of a task's run, of texts by the model's own tokenizer, or as given.

    Raises:
        UnknownName: another run than clean or corrupt.
        BadInput: no prompt or an empty one, texts without a tokenizer, ids that the model cannot embed, padding.
    """
    if run not in RUNS:
        raise UnknownName.of("run", run, RUNS)
    if isinstance(given, Task):
        found = [getattr(pair, run) for pair in given.pairs]
    elif texts := _texts_in(given):
        tokenizer_of(model)
        found = [encode(model, text) for text in texts]
    else:
        found = read_rows(given, "prompts", mask=None)
        if isinstance(given, SupportsToList):
            refuse_padding(found, getattr(model.tokenizer, "pad_token_id", None), what="prompts")
    for number, prompt in enumerate(found):
        check_ids(prompt, model.vocab_size, what=f"prompt {number}")
    return found


def _texts_in(given: object) -> list[str]:
    """Return the texts given, one or several; none where something else was."""
    if isinstance(given, str):
        return [given]
    listed = list(given) if isinstance(given, Sequence) else []
    return listed if all(isinstance(each, str) for each in listed) else []
