"""The answers of each example: read from what the user gives, and fitted to how many tokens may count."""

from collections.abc import Callable, Sequence
from typing import Any

from crosspatch.core.errors import BadInput, ManyTokenAnswer
from crosspatch.tasks.pair import Answer
from crosspatch.tasks.rows import is_id, to_plain

MODES = ("one token", "first token", "all tokens")
Show = Callable[[Sequence[int]], tuple[str, ...]]


def check_mode(mode: str) -> None:
    """Raise BadInput if `mode` is no way to treat answers of several tokens."""
    if mode not in MODES:
        raise BadInput(
            f"answers={mode!r} is not one of {', '.join(map(repr, MODES))}: refuse answers of several tokens, "
            "keep their first token, or keep them whole."
        )


def per_example(given: Any, count: int, *, what: str) -> list[Any]:
    """Return one entry an example; `()` means no answers. Raises BadInput if the number of entries differs."""
    plain = to_plain(given)
    if not isinstance(plain, list):
        raise BadInput(f"{what} must list one entry for each of the {count} examples, but got {plain!r}.")
    if what == "wrong" and not plain:
        return [[] for _ in range(count)]
    if len(plain) != count:
        raise BadInput(f"{what} has {len(plain)} entries, but there are {count} examples: give one for each.")
    return plain


def read_ids(given: Any, count: int, *, what: str) -> list[tuple[Answer, ...]]:
    """Read token-id answers: for each example an id, a list of alternative ids, or a list of token-id lists.

    Raises BadInput for anything else.
    """
    return [
        _read_entry(entry, f"{what} of example {i}") for i, entry in enumerate(per_example(given, count, what=what))
    ]


def _read_entry(entry: Any, what: str) -> tuple[Answer, ...]:
    alternatives = entry if isinstance(entry, list) else [entry]
    answers = [tuple(each) if isinstance(each, list) else (each,) for each in alternatives]
    if not all(answer and all(map(is_id, answer)) for answer in answers):
        raise BadInput(
            f"{what} is {entry!r}: give a token id, a list of alternative ids, or a list of token-id lists "
            "(one answer of two tokens is [[5, 6]])."
        )
    return tuple(answers)


def fit(answers: tuple[Answer, ...], mode: str, *, show: Show, what: str) -> tuple[Answer, ...]:
    """Keep answers of one token, the first token of each, or all tokens, as `mode` says; duplicates are removed.

    Raises ManyTokenAnswer for an answer of several tokens where one is needed.
    """
    if mode == "first token":
        answers = tuple(answer[:1] for answer in answers)
    long = next((answer for answer in answers if len(answer) > 1), None)
    if mode == "one token" and long:
        raise ManyTokenAnswer(
            f"{what} has {len(long)} tokens, {list(show(long))}, and one is needed. Choose an answer of one token, "
            "or say answers='first token' (score its first token) or answers='all tokens' (metric logprob)."
        )
    return tuple(dict.fromkeys(answers))


def check_sides(right: tuple[Answer, ...], wrong: tuple[Answer, ...], *, show: Show, index: int) -> None:
    """Raise BadInput if an example has no right answer or calls one answer both right and wrong."""
    if not right:
        raise BadInput(f"example {index} has no right answer: give at least one.")
    both = [answer for answer in right if answer in wrong]
    if both:
        raise BadInput(
            f"example {index}: {''.join(show(both[0]))!r} (token ids {list(both[0])}) is both a right and a wrong "
            "answer, so they cannot be told apart. Give answers that differ in the tokens that are scored."
        )
