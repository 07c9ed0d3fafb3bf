import io
import re

import numpy as np
import pytest
from rich.console import Console

from builders_pictures import GPT2, PLACED, ranked
from crosspatch.draw import Panel, Scale, TerminalMap, diverging, edge_table, rich_table, score_table


def make_panel(values, columns):
    values = np.asarray(values, dtype=np.float32)
    rows = tuple(str(i) for i in range(len(values)))
    return Panel("resid.pre", values, values, values, rows, columns)


def printed(thing, *, width=60, colour="truecolor", **more):
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=colour, force_terminal=colour is not None, **more)
    console.print(thing)
    return out.getvalue()


def rgb(level):
    colour = diverging(level)
    return ";".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))


def test_two_layers_share_a_line_of_half_blocks():
    text = printed(TerminalMap(make_panel([[0.0], [1.0], [-1.0]], ("0 ·John",)), Scale(1.0)))
    lines = [line for line in text.splitlines() if "▀" in line]
    assert len(lines) == 2
    assert f"38;2;{rgb(-20)};48;2;{rgb(20)}m" in lines[0]
    assert f"38;2;{rgb(0)}m" in lines[1]
    assert "48;2" not in lines[1]  # layer 0 stands alone below
    assert "John" in text


def test_without_colour_digits_carry_sign_and_size():
    panel = make_panel([[0.04, -0.31, 2.0, np.nan], [1.0, 0.95, -2.0, 0.0]], ("a", "b", "c", "d"))
    lines = printed(TerminalMap(panel, Scale(1.0, "hurts", "restores")), colour=None, width=90).splitlines()
    assert lines[0] == "resid.pre"
    assert lines[1].split() == ["1", "#", "9", "-#", "."]
    assert lines[2].split() == ["0", ".", "-3", "#", "x"]
    assert lines[4] == "  tenths of 1.00 (+ restores, - hurts); # more, . zero, x not run"
    assert "\x1b" not in "".join(lines)


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(TerminalMap(make_panel([[1.0]], ("a",)), Scale(1.0)))
    assert "▀" not in text
    assert "38;2" not in text


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("colour", ["truecolor", None])
def test_no_line_is_longer_than_the_terminal(width, colour):
    panel = make_panel(np.zeros((4, 45)), tuple(f"{i} ·word{i}" for i in range(45)))
    text = printed(TerminalMap(panel, Scale(1.0)), width=width, colour=colour)
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= width
    assert plain.count("wor") == 45  # every column has its label, in whichever part it stands


def test_wide_panels_are_cut_into_parts_that_hold_every_column():
    panel = make_panel(np.arange(40, dtype=float)[None] / 40, tuple(str(i) for i in range(40)))
    lines = printed(TerminalMap(panel, Scale(1.0)), width=33, colour=None).splitlines()
    digits = [line.split()[1:] for line in lines if line.startswith(" 0 ")]
    assert len(digits) > 1
    assert sum(map(len, digits)) == 40


def test_not_run_is_grey_and_named():
    text = printed(TerminalMap(make_panel([[np.nan]], ("a",)), Scale(1.0)))
    assert "38;2;176;176;176" in text
    assert "not run" in text
    assert "not run" not in printed(TerminalMap(make_panel([[0.0]], ("a",)), Scale(1.0)))


def test_the_legend_can_be_left_to_the_last_map():
    assert "limit" not in printed(TerminalMap(make_panel([[0.0]], ("a",)), Scale(1.0), legend=False))


def test_markup_is_shown_as_it_is():
    text = printed(
        rich_table(
            ["[red]site"],
            [
                [
                    "[bold]x",
                ],
            ],
        ),
        colour=None,
    )
    assert "[red]site" in text
    assert "[bold]x" in text


def test_plain_digits_stand_above_their_labels():
    """Without colours, the last letter of a label is under the last digit of its column."""
    panel = Panel("heads", np.array([[0.0, 1.0, -0.5]]), np.zeros((1, 3)), np.zeros((1, 3)), ("0",), ("0", "1", "2"))
    console = Console(width=60, color_system=None, file=io.StringIO())
    console.print(TerminalMap(panel, Scale(1.0)))
    _, digits, labels, *_ = console.file.getvalue().splitlines()
    assert [digits.rindex("#"), digits.rindex("5")] == [labels.index("1"), labels.index("2")]


def test_a_narrow_table_folds_names_and_cuts_no_number():
    """In 50 columns a long name takes two lines, and every number is whole."""
    rows = [("attention end to S2, layers 10 to 17, two heads", "0.50 [0.46, 0.53]", "-5.648")]
    text = printed(rich_table(("site", "effect [95%]", "raw"), rows), width=50, colour=None)
    assert "0.50 [0.46, 0.53]" in text
    assert "-5.648" in text
    assert "…" not in text


@pytest.mark.parametrize("width", [34, 80])
def test_a_table_of_edges_fits_and_says_how_many_more(width):
    edges, scores = ranked(GPT2, 60)
    text = printed(edge_table(edges, scores, most=5, total=1060, title="eap"), width=width, colour=None)
    assert max(map(len, text.splitlines())) <= width
    for score in scores[:5]:
        assert f"{score:.3f}" in text
    assert f"{scores[5]:.3f}" not in text
    joined = re.sub(r"\s+", "", text)
    assert all(f"{edge.sender}→{edge.receiver}".replace(" ", "") in joined for edge in edges[:5]) or width < 80
    assert "1,055 more edges" in text
    assert "place" not in text


def test_a_table_of_edges_names_places_and_emptiness():
    edges, scores = ranked(PLACED, 3)
    text = printed(edge_table(edges, scores), width=80, colour=None)
    assert "place" in text
    assert all(edge.place in text for edge in edges)
    assert "more" not in text
    assert "no edges" in printed(edge_table((), np.zeros(0)), colour=None)


@pytest.mark.parametrize("width", [40, 80])
def test_a_table_of_scores_has_intervals_where_there_are_any(width):
    lines = [("faithfulness", 0.83, 0.79, 0.87), ("minimality", 0.02, np.nan, np.nan)]
    text = printed(score_table(lines, title="scores"), width=width, colour=None)
    assert "0.830 [0.790, 0.870]" in text
    assert "0.020\n" in text.replace(" \n", "\n")
    assert max(map(len, text.splitlines())) <= width


def test_long_texts_are_folded_not_cut():
    """A sentence in any column stands on several lines; a number beside it stays whole."""
    rows = [("x", "one two three four five six seven eight nine ten", "1.00 [0.97, 1.02]")]
    text = printed(rich_table(("site", "said", "effect"), rows), width=44, colour=None)
    assert all(word in text for word in rows[0][1].split())
    assert rows[0][2] in text
