import math

import pytest

from crosspatch.draw import clip, number, p_value, shown, with_interval


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (" John", "John"),
        ("▁John", "John"),
        ("ĠJohn", "John"),
        ("John", "John"),
        ("  ", "␣␣"),
        ("▁", "␣"),
        ("", "∅"),
        ("\n\n", "⏎⏎"),
        ("a\tb", "a⇥b"),
        ("\x00\x1b[2J", "��[2J"),
        ("\u202eevil\u2066", "�evil�"),
        ("\ud800", "�"),
        ("é漢🙂", "é漢🙂"),
        ("<b>&", "<b>&"),
    ],
)
def test_tokens_are_made_visible(token, text):
    """Nothing that breaks XML, reorders the line or cannot be written survives; escaping is for the page."""
    assert shown(token) == text
    shown(token).encode()


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.00"), (-0.314, "-0.31"), (0.0, "0.00"), (-0.0, "0.00"), (0.006, "0.01"), (0.00012, "1.2e-4"),
     (2e7, "2.0e7"), (math.nan, "–"), (12345.678, "12345.68")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_intervals():
    assert with_interval(1.0, 0.97, 1.023) == "1.00 [0.97, 1.02]"
    assert with_interval(0.5, math.nan, math.nan) == "0.50"
    assert with_interval(0.0, -0.001, 0.001) == "0.00 [0.00, 0.00]"
    assert with_interval(2e5, 1e5, 3e5) == "2.0e5 [1.0e5, 3.0e5]"


def test_p_values():
    assert [p_value(v) for v in (0.0004, 0.0321, 1.0, math.nan)] == ["< 0.001", "= 0.032", "= 1", "–"]


def test_clipping():
    assert [clip("abcdef", width) for width in (6, 5, 1)] == ["abcdef", "abcd…", "…"]
