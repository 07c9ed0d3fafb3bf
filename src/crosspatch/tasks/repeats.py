"""Induction: random words A B … A → B."""

from collections.abc import Mapping, Sequence
from random import Random

from crosspatch.core.errors import BadInput
from crosspatch.tasks.pair import Task
from crosspatch.tasks.prompts import Drawn, compose, make_task
from crosspatch.tasks.tokens import OpenedModel, tokenizer_of
from crosspatch.tasks.words import check_choice, check_n, one_token

CORRUPTIONS = ("B", "A")
LENGTHS = (12, 6, 24, 48)
FEWEST_WORDS = 60
ORDINARY = 4000  # words that come first in a vocabulary, which are its frequent ones
SHORTEST, LONGEST = 3, 10
SPACES = ("▁", "Ġ")  # how SentencePiece and byte-level vocabularies write a space


def induction(model: OpenedModel, n: int = 64, *, seed: int = 0, corrupt: str = "B", length: int = 12) -> Task:
    """Make `n` pairs of `length` random words of which the last has stood before: what followed it then is right.

    Words are lower-case tokens of the vocabulary's own, each standing once but for A. `corrupt`: "B" puts another word
    in the place of the one that followed (wrong is that word, so that the answer flips), "A" another in the place of
    the first A, so that nothing repeats (wrong is a word that follows another). Positions: A, B, end (the second A).
    The task's `alternatives` hold the other corrupt prompt. The same seed gives the same task.

    Raises BadInput for an option that does not exist or a vocabulary with fewer than 60 such words.
    """
    check_n(n)
    check_choice("corrupt", corrupt, CORRUPTIONS)
    check_choice("length", length, LENGTHS)
    tokenizer_of(model)
    rng = Random(seed)
    words = _draw_words(model, rng)
    drawn = [_draw(model, words, length=length, corrupt=corrupt, rng=rng) for _ in range(n)]
    settings = {"n": n, "seed": seed, "corrupt": corrupt, "length": length}
    return make_task(model, "induction", drawn=drawn, settings=settings)


def _draw_words(model: OpenedModel, rng: Random) -> dict[str, int]:
    """Draw usable words of the vocabulary, several times as many as a prompt can hold."""
    ordered = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    marked = any(piece.startswith(SPACES) for piece in model.tokenizer.tokenize("a word"))
    words = list(dict.fromkeys(word for piece, _ in ordered if (word := _word(piece, marked=marked))))[:ORDINARY]
    found = one_token(model.tokenizer, rng.sample(words, min(len(words), 10 * FEWEST_WORDS)), after="and")
    if len(found) < FEWEST_WORDS:
        raise BadInput(
            f"the tokenizer of {model.name!r} has only {len(found)} lower-case words as single tokens, and induction "
            f"needs {FEWEST_WORDS}. Give token ids of your own with from_tokens."
        )
    return found


def _word(piece: str, *, marked: bool) -> str | None:
    """Read a token as a lower-case word behind a space; a vocabulary without signs for spaces has bare words."""
    if marked and not piece.startswith(SPACES):
        return None
    bare = piece.lstrip("".join(SPACES))
    return bare if SHORTEST <= len(bare) <= LONGEST and bare.isascii() and bare.isalpha() and bare.islower() else None


def _draw(model: OpenedModel, words: Mapping[str, int], *, length: int, corrupt: str, rng: Random) -> Drawn:
    *row, other_a, other_b = rng.sample(list(words), length + 1)
    at = rng.randrange(1, length - 3)  # one word before A, one at least between B and the second A
    row.append(row[at])
    clean = compose(model, *_slots(row, at))
    prompts = {
        "B": compose(model, *_slots([*row[: at + 1], other_b, *row[at + 2 :]], at)),
        "A": compose(model, *_slots([*row[:at], other_a, *row[at + 1 :]], at)),
    }
    follower = rng.choice([word for i, word in enumerate(row[:-1]) if i not in (0, at, at + 1)])
    wrong = {"B": other_b, "A": follower}[corrupt]
    return Drawn(clean, prompts.pop(corrupt), [words[row[at + 1]]], [words[wrong]], prompts)


def _slots(row: Sequence[str], at: int) -> tuple[str, dict[str, str]]:
    """Write a template of the words with slots for A and B; a space comes first, so that the first word is a token."""
    slots = ["{A}" if i == at else "{B}" if i == at + 1 else word for i, word in enumerate(row)]
    return " " + " ".join(slots), {"A": row[at], "B": row[at + 1]}
