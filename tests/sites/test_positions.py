"""Positions of one example: indices, names with offsets, spans, and errors that state what there is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.sites import Span, expand_positions, parse, resolve_position

NAMES = {"IO": 2, "S1": 4, "S1+1": 9, "S2": 10, "end": 14, "last": -1}


@pytest.mark.parametrize(
    ("position", "index"),
    [(0, 0), (14, 14), (-1, 14), (-15, 0), ("S2", 10), ("S2+1", 11), ("end-1", 13), ("S1+1", 9), ("S1+2", 6)],
)  # fmt: skip
def test_one_position(position, index):
    assert resolve_position(position, NAMES, 15) == index


def test_a_name_may_count_from_the_end():
    assert resolve_position("last", NAMES, 15) == 14
    assert resolve_position("last-2", NAMES, 15) == 12


@given(st.integers(-20, 20), st.integers(1, 15))
def test_an_index_resolves_as_python_indexes(index, length):
    try:
        expected = list(range(length))[index]
    except IndexError:
        with pytest.raises(UnknownName, match=f"position {index} .*{length} positions"):
            resolve_position(index, {}, length)
    else:
        assert resolve_position(index, {}, length) == expected


@pytest.mark.parametrize(
    ("position", "error", "words"),
    [
        ("S3", UnknownName, ["'S3'", "IO", "S1", "S2", "end", "index"]),
        ("S3+1", UnknownName, ["'S3+1'", "Known: IO"]),
        ("S2+9", UnknownName, ["S2+9", "15 positions", "0..14"]),
        ("IO-3", UnknownName, ["IO-3", "15 positions"]),
        (15, UnknownName, ["position 15", "15 positions", "-15..-1"]),
        ("all", BadInput, ["'all'", "no single index"]),
    ],
)
def test_positions_that_are_not_there(position, error, words):
    with pytest.raises(error) as raised:
        resolve_position(position, NAMES, 15)
    assert all(word in str(raised.value) for word in words)


def test_a_name_beyond_a_shorter_prompt_is_refused():
    with pytest.raises(UnknownName, match="position end is outside this prompt: it has 3 positions"):
        resolve_position("end", NAMES, 3)


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("*", tuple(range(15))),
        ("2:5", (2, 3, 4)),
        ("12:99", (12, 13, 14)),
        ("-3:", (12, 13, 14)),
        ("S2|S2+1|10|-1|end", (10, 11, 14)),
        ("all|3|all", ("all", 3)),
        ("20:", ()),
    ],
)
def test_positions_of_one_example(text, indices):
    positions = parse(f"embed@{text}").patterns[0].positions
    assert expand_positions(positions, NAMES, 15) == indices


ENDS = st.none() | st.integers(-9, 9)


@given(st.lists(st.builds(Span, ENDS, ENDS) | st.integers(0, 5), min_size=1, max_size=4), st.integers(6, 9))
def test_positions_equal_a_naive_twin(items, length):
    every = list(range(length))
    expected = []
    for item in items:
        expected += every[item.start : item.stop] if isinstance(item, Span) else [item]
    assert list(expand_positions(tuple(items), {}, length)) == sorted(set(expected), key=expected.index)
