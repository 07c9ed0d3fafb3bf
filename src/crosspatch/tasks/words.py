"""What the generators share: options checked, words that are single tokens, draws that use each option as often."""

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any, TypeVar

from crosspatch.core.errors import BadInput
from crosspatch.tasks.rows import is_id
from crosspatch.tasks.tokens import OpenedModel, continue_with

Option = TypeVar("Option")


def check_n(n: Any) -> None:
    """Raise BadInput if `n` is no whole number of pairs above zero."""
    if not is_id(n) or n < 1:
        raise BadInput(f"n={n!r}: ask for at least one pair.")


def check_choice(what: str, given: Any, allowed: Sequence[Any]) -> None:
    """Raise BadInput, with what is allowed, if an option has a value that does not exist."""
    if given not in allowed:
        raise BadInput(f"{what}={given!r} is not one of {', '.join(map(repr, allowed))}.")


def one_token(tokenizer: Any, words: Iterable[str], *, after: str, space: bool = True) -> dict[str, int]:
    """Keep the words that are one token behind the text `after` (and a space), with that token's id."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    found = ((word, continue_with(tokenizer, after, answer=f"{' ' * space}{word}")) for word in words)
    return {word: ids[0] for word, ids in found if len(ids) == 1 and ids[0] != unknown}


def require(found: Mapping[str, int], fewest: int, *, of: str, task: str, model: OpenedModel) -> dict[str, int]:
    """Return the usable words; raise BadInput if they are fewer than the task needs. `of` reads `36 professions`."""
    if len(found) < fewest:
        what = of.partition(" ")[2]
        raise BadInput(
            f"only {len(found)} of {of} are single tokens for the tokenizer of {model.name!r}, and {task} needs "
            f"{fewest} {what}. Give prompts of your own with from_texts."
        )
    return dict(found)


def usable(model: OpenedModel, words: Sequence[str], *, after: str, fewest: int, of: str) -> dict[str, int]:
    """Keep the words that are one token behind `after`; `of` reads `sva: nouns`. Raises BadInput if few are left."""
    task, what = of.split(": ")
    found = one_token(model.tokenizer, words, after=after)
    return require(found, fewest, of=f"{len(words)} {what}", task=task, model=model)


def of_one_length(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """Keep the largest group of words with equally many tokens, so that one template has one length."""
    groups: dict[int, list[str]] = {}
    for word in words:
        groups.setdefault(len(continue_with(tokenizer, "the", answer=f" {word}")), []).append(word)
    return max(groups.values(), key=len)


def deal(options: Sequence[Option], n: int, rng: Random) -> list[Option]:
    """Use each option equally often, in random order; of more options than `n`, random ones are used."""
    return spread(rng.sample(options, len(options)), n, rng)


def spread(options: Sequence[Option], n: int, rng: Random) -> list[Option]:
    """Use each option equally often, in random order; of more options than `n`, the first are used."""
    repeated = (list(options) * (n // len(options) + 1))[:n]
    return rng.sample(repeated, n)
