"""A look at a task as plain text: clean and corrupt tokens one above the other, names over them."""

from collections.abc import Iterator, Mapping, Sequence
from shutil import get_terminal_size
from typing import Any

from crosspatch.tasks.pair import Answer, Pair, Task
from crosspatch.tasks.tokens import token_strings

WIDTH = 100  # where there is no terminal
NARROWEST = 20
HEADS = ("position", "name", "clean", "corrupt", "")


def preview(task: Task, tokenizer: Any = None, *, k: int = 3, width: int | None = None) -> str:
    """Return the first `k` pairs as text: position, names, clean and corrupt tokens aligned, changes marked with ^.

    A leading space is shown as ·. Without a tokenizer, tokens that the task itself cannot name are shown as #id.
    Columns wrap at `width` characters: None is the terminal's width, or 100 where there is none.
    """
    room = get_terminal_size((WIDTH, 0)).columns if width is None else width
    words = _vocabulary(task, tokenizer)
    blocks = [repr(task)]
    for index, pair in enumerate(task.pairs[: max(k, 0)]):
        answers = f"right: {_join(pair.right, words)}   wrong: {_join(pair.wrong, words) or 'none'}"
        blocks.append("\n".join([f"pair {index}   {answers}", *_lines(pair, words, room)]))
    return "\n\n".join(blocks)


def _vocabulary(task: Task, tokenizer: Any) -> dict[int, str]:
    """Map every id of the task to a string: the tokenizer's, else what the task's own clean tokens tell."""
    pairs = task.pairs
    ids = sorted({i for p in pairs for part in (p.clean, p.corrupt, *p.right, *p.wrong) for i in part})
    if tokenizer is not None:
        words = dict(zip(ids, token_strings(tokenizer, ids), strict=True))
    else:
        words = {each: f"#{each}" for each in ids}
        for pair, tokens in zip(pairs, task.tokens, strict=False):
            words |= zip(pair.clean, tokens, strict=True)
    return {each: _visible(word) for each, word in words.items()}


def _visible(word: str) -> str:
    plain = word.replace(" ", "·").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return plain or "''"


def _join(answers: Sequence[Answer], words: Mapping[int, str]) -> str:
    return " | ".join("".join(words[each] for each in answer) for answer in answers)


def _lines(pair: Pair, words: Mapping[int, str], width: int) -> Iterator[str]:
    columns = [_pad(column) for column in _columns(pair, words)]
    room = max(width - len(_head("")), NARROWEST)
    for start, stop in _wrap([len(column[0]) for column in columns], room):
        for head, *cells in zip(HEADS, *columns[start:stop], strict=True):
            if "".join(cells).strip():
                yield f"{_head(head)}{' '.join(cells)}".rstrip()


def _head(text: str) -> str:
    return f"  {text:<9}"


def _pad(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    return [cell.ljust(width) for cell in column]


def _columns(pair: Pair, words: Mapping[int, str]) -> Iterator[tuple[str, ...]]:
    for at, (clean, corrupt) in enumerate(zip(pair.clean, pair.corrupt, strict=True)):
        names = ",".join(name for name, index in pair.names.items() if index == at)
        yield str(at), names, words[clean], words[corrupt], "^" * len(words[corrupt]) if clean != corrupt else ""


def _wrap(widths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of columns that fit into a line of `room` characters."""
    start, used = 0, 0
    for at, width in enumerate(widths):
        if used + width > room and at > start:
            yield start, at
            start, used = at, 0
        used += width + 1
    yield start, len(widths)
