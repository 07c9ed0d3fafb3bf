"""How wrong a transcript is: word errors, and whether it runs in circles."""

import re
from collections.abc import Sequence

_WORD = re.compile(r"[\w']+")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def word_error_rate(said: str, truth: str) -> float:
    """Return the least number of words to insert, drop or replace, over the number of words in `truth`.

    Case and punctuation do not count. A truth without words gives 0 for a transcript without words, else infinity.
    """
    heard, wanted = words_of(said), words_of(truth)
    if not wanted:
        return float("inf") if heard else 0.0
    return _distance(heard, wanted) / len(wanted)


def _distance(one: Sequence[str], two: Sequence[str]) -> int:
    """Return the edit distance of two lists (Levenshtein 1966)."""
    row = list(range(len(two) + 1))
    for number, item in enumerate(one, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(two, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (item != other))
    return row[-1]


def repeats(items: Sequence[int] | Sequence[str], *, longest: int = 8) -> tuple[int, int]:
    """Return how often the last items come again right before themselves, and how many they are: (times, length).

    Of all lengths up to `longest` the one that covers most of the end counts; (1, length) is no repetition.
    """
    best = (1, max(1, len(items)))
    for length in range(1, min(longest, len(items)) + 1):
        times, last = 1, list(items[-length:])
        while list(items[-length * (times + 1) : -length * times]) == last:
            times += 1
        if times > 1 and (best[0] == 1 or times * length > best[0] * best[1]):
            best = (times, length)
    return best
