"""Word errors against a naive search, and repetitions."""

from functools import cache

import hypothesis.strategies as st
import pytest
from hypothesis import given

from crosspatch.audio import repeats, word_error_rate

LETTERS = st.lists(st.sampled_from(["ab", "c"]), max_size=6)


def naive_distance(one, two):
    """Try every way to line two lists up, from the definition."""

    @cache
    def least(i, j):
        if i == len(one) or j == len(two):
            return len(one) - i + len(two) - j
        other = one[i] != two[j]
        return min(least(i + 1, j) + 1, least(i, j + 1) + 1, least(i + 1, j + 1) + other)

    return least(0, 0)


@given(LETTERS, LETTERS.filter(bool))
def test_word_errors_are_the_least_that_do(said, truth):
    assert word_error_rate(" ".join(said), " ".join(truth)) == naive_distance(said, truth) / len(truth)


def test_case_and_punctuation_do_not_count():
    assert word_error_rate("The quick, brown FOX.", "the quick brown fox") == 0
    assert word_error_rate("I'm here", "I am here") == pytest.approx(2 / 3)


def test_a_truth_without_words():
    assert word_error_rate("...", "") == 0
    assert word_error_rate("you", " . ") == float("inf")


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([1, 2, 3], (1, 3)),
        ([], (1, 1)),
        ([5, 7, 7, 7], (3, 1)),
        ([9, 1, 2, 1, 2, 1, 2], (3, 2)),
        ([1, 1, 2, 1, 1, 2], (2, 3)),
        (["no", "no", "no", "no"], (4, 1)),
    ],
)
def test_repetitions_at_the_end(items, expected):
    assert repeats(items) == expected
