"""LaTeX tables: no sign of a cell is read by LaTeX as anything but itself."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspatch.draw import latex_text, table_latex

SPECIAL = "_%&#${}~^\\"


@pytest.mark.parametrize("sign", SPECIAL)
def test_each_special_sign_is_escaped(sign):
    text = latex_text(f"a{sign}b")
    assert re.fullmatch(r"a(\\[_%&#${}]|\\text[a-z]+\{\})b", text)


@given(st.text(alphabet=SPECIAL + "[]<>|\n ab–…", max_size=30))
def test_what_is_left_after_known_commands_has_no_special_sign(text):
    """Taking away what the escapes are made of leaves letters alone; none was forgotten, none was escaped twice."""
    known = r"\\text[a-z]+\{\}|\\ldots\{\}|\\[_%&#${}]"
    assert not set(re.sub(known, "", latex_text(text))) & set(SPECIAL + "\n")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("-0.42 [-0.47, -0.37]", "$-$0.42 [$-$0.47, $-$0.37]"),
        ("attn.out[3]@-1", "attn.out[3]@$-$1"),
        ("gemma-3-270m", "gemma-3-270m"),
        ("1.1e-5", "1.1e-5"),
        ("a - b, --3", "a - b, --3"),
    ],
)
def test_only_the_hyphen_before_a_number_is_a_minus(text, written):
    assert latex_text(text) == written


def test_a_table_has_its_rules_and_its_columns():
    lines = table_latex(("site", "effect [95%]"), [("a_b", "1.0"), ("[0, 1]", "*")]).splitlines()
    assert lines[1] == r"\begin{tabular}{lr}"
    assert lines[2:] == [
        r"\toprule",
        r"site & effect [95\%] \\",
        r"\midrule",
        r"a\_b & 1.0 \\",
        r"{}[0, 1] & * \\",  # a bracket behind the end of a line would be its argument
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert lines[0].startswith("%")
    assert "booktabs" in lines[0]
