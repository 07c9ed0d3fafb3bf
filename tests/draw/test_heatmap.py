import re
from xml.etree import ElementTree

import numpy as np
import pytest

from crosspatch.draw import Panel, Scale, colour_bar_svg, diverging, heatmap_svg
from crosspatch.draw.heatmap import class_paint
from crosspatch.draw.panel import lay_out

NS = "{http://www.w3.org/2000/svg}"


def make_panel(values, columns=None, **more):
    values = np.asarray(values, dtype=np.float32)
    rows, count = values.shape
    labels = columns or tuple(str(i) for i in range(count))
    more = {"title": "resid.pre", "rows": tuple(map(str, range(rows))), **more}
    return Panel(values=values, low=values - 0.1, high=values + 0.1, columns=labels, **more)


def parse(svg):
    return ElementTree.fromstring(svg)


def cells_of(svg):
    group = next(g for g in parse(svg).iter(f"{NS}g") if g.get("class") == "cells")
    return [path for path in group if path.get("class") != "off"]


def test_a_cell_has_its_place_its_colour_and_its_words():
    svg = heatmap_svg(make_panel([[0.0, 1.0], [-0.5, np.nan]]), Scale(1.0))
    cells = cells_of(svg)
    assert [c.get("fill") for c in cells[:3]] == [diverging(0), diverging(20), diverging(-10)]
    assert [c.find(f"{NS}title").text for c in cells] == [
        "layer 0, 0: 0.000 [-0.100, 0.100]",
        "layer 0, 1: 1.000 [0.900, 1.100]",
        "layer 1, 0: -0.500 [-0.600, -0.400]",
        "layer 1, 1: not run",
    ]
    corners = [tuple(map(int, re.match(r"M(\d+) (\d+)", c.get("d")).groups())) for c in cells]
    assert corners[0][1] > corners[2][1]  # layer 0 is at the bottom
    assert corners[0][0] < corners[1][0]


def test_what_was_not_run_is_hatched():
    root = parse(heatmap_svg(make_panel([[np.nan]]), Scale(1.0)))
    pattern = next(root.iter(f"{NS}pattern")).get("id")
    cell = cells_of(ElementTree.tostring(root, encoding="unicode"))[0]
    assert cell.get("fill") == f"url(#{pattern})"


def test_two_pictures_in_one_notebook_have_their_own_hatch():
    first, second = (heatmap_svg(make_panel([[value, np.nan]]), Scale(1.0)) for value in (1.0, 2.0))
    assert re.search(r'pattern id="(\w+)"', first)[1] != re.search(r'pattern id="(\w+)"', second)[1]


def test_values_beyond_the_scale_are_marked():
    svg = heatmap_svg(make_panel([[5.0, -5.0, 1.0]]), Scale(1.0))
    assert svg.count('class="off"') == 2


def test_classes_for_pages_and_no_titles():
    svg = heatmap_svg(make_panel([[1.0, -1.0]]), Scale(1.0), paint=class_paint, hover=False)
    assert [c.get("class") for c in cells_of(svg)] == ["p20", "n20"]
    assert "<title>" not in svg
    assert "style=" not in svg


def test_the_geometry_says_where_the_cells_are():
    panel = make_panel(np.zeros((3, 4)))
    root = parse(heatmap_svg(panel, Scale(1.0)))
    left, top, width, height, columns, rows = map(int, root.get("data-grid").split())
    assert (columns, rows) == (4, 3)
    first = cells_of(heatmap_svg(panel, Scale(1.0)))[0].get("d")
    assert first.startswith(f"M{left} {top + 2 * height}h{width - 1}v")


def test_markup_in_labels_is_escaped():
    evil = "</script><img src=x onerror=alert(1)>"
    svg = heatmap_svg(make_panel([[1.0]], columns=(evil,), title=evil, rows=(evil,)), Scale(1.0, evil, evil))
    assert "<img" not in svg
    assert parse(svg) is not None


def test_it_describes_itself():
    panel = make_panel([[0.0, 0.2], [-0.7, np.nan]])
    label = parse(heatmap_svg(panel, Scale(1.0, "hurts", "restores"))).get("aria-label")
    assert label == (
        "Heat map of resid.pre: 2 rows (layer) by 2 columns, colours from -1.00 hurts to 1.00 restores. "
        "Strongest: layer 1, 0: -0.700 [-0.800, -0.600]."
    )
    assert "none of them run" in heatmap_svg(make_panel([[np.nan]]), Scale(1.0))


def test_the_outlined_cell_is_framed():
    svg = heatmap_svg(make_panel(np.zeros((2, 2)), outlined=((1, 0),)), Scale(1.0))
    assert svg.count("<rect") == 2
    assert "<rect" not in heatmap_svg(make_panel(np.zeros((2, 2))), Scale(1.0))


def texts_of(panel):
    return [t for t in parse(heatmap_svg(panel, Scale(1.0))).iter(f"{NS}text")]


def test_short_heads_lie_flat_and_tokens_hang_below():
    labels = tuple(f"{i} ·token{i}" for i in range(12))
    texts = texts_of(make_panel(np.zeros((2, 12)), columns=labels))
    assert sum(t.text == "7" and t.get("text-anchor") == "middle" for t in texts) == 1
    assert next(t for t in texts if t.text == "token7").get("transform").endswith("rotate(-45)")


@pytest.mark.parametrize("columns", [1, 5, 15, 40, 90, 300])
def test_labels_keep_their_distance(columns):
    """Slanted labels need about their height between them, whatever the number of columns."""
    labels = tuple(f"S{i}+1 ·word" for i in range(columns))
    panel = make_panel(np.zeros((30, columns)), columns=labels)
    layout = lay_out(panel)
    assert layout.column_step * layout.cell_width >= 11
    assert layout.row_step * layout.cell_height >= 10
    texts = [t for t in texts_of(panel) if t.text.startswith("S")]
    assert len(texts) == -(-columns // layout.column_step)


def test_marked_columns_keep_their_label_when_others_are_thinned_out():
    marked = tuple(i == 41 for i in range(120))
    panel = make_panel(np.zeros((2, 120)), columns=tuple(f"w{i}" for i in range(120)), marked=marked)
    texts = texts_of(panel)
    assert next(t for t in texts if t.text == "w41").get("font-weight") == "700"
    assert not any(t.text in ("w40", "w42") for t in texts)
    assert heatmap_svg(panel, Scale(1.0)).count('class="differs"') == 1


def test_the_picture_is_wide_enough_for_its_title_and_its_labels():
    """Neighbouring pictures cannot collide: nothing is drawn left of 0 or past the width."""
    panel = make_panel(
        np.zeros((1, 2)), columns=("0 ·a-rather-long-token", "1 ·b"), title="attn.pattern @S1+1 and more"
    )
    layout = lay_out(panel)
    assert layout.width >= 7 * len(panel.title)
    assert layout.left >= 14 * 6.1 * 0.7 - layout.cell_width


def test_the_colour_bar_has_words_limits_and_the_sign_for_not_run():
    root = parse(colour_bar_svg(Scale(1.2, "hurts", "restores"), unit="share", hatched=True))
    assert [t.text for t in root.iter(f"{NS}text")] == ["hurts", "restores", "-1.20", "0", "1.20", "share", "not run"]
    assert len([p for p in root.iter(f"{NS}path") if p.get("fill", "").startswith("#")]) == 41
    assert root.get("aria-label") == "Colour scale: -1.20 hurts, 0 white, 1.20 restores"
    assert "not run" not in colour_bar_svg(Scale(1.0))


def test_a_whole_sweep_is_small():
    """18 × 15 cells with their titles, for a notebook."""
    assert len(heatmap_svg(make_panel(np.random.default_rng(0).normal(size=(18, 15))), Scale(3.0))) < 40_000
