import re
from xml.etree import ElementTree

import numpy as np

from crosspatch.draw import strip_svg, table_html


def dots(svg):
    """Follow the pen: absolute for the first dot, relative from then on."""
    pen, found = (0.0, 0.0), []
    for command, x, y in re.findall(r"([Mm])(-?[\d.]+) (-?\d+)h0", svg):
        pen = (float(x), int(y)) if command == "M" else (pen[0] + float(x), pen[1] + int(y))
        found.append((round(pen[0], 6), pen[1]))
    return found


def test_every_value_is_a_dot_in_its_place():
    svg = strip_svg(np.array([0.0, 0.5, 1.0]), mean=0.5, low=0.2, high=0.8, domain=(0.0, 1.0), width=110)
    assert dots(svg) == [(5.0, 7), (55.0, 11), (105.0, 15)]
    assert "M25 11H85M55 5v12" in svg
    ElementTree.fromstring(svg)


def test_missing_values_are_left_out_and_far_ones_stand_at_the_edge():
    svg = strip_svg(np.array([np.nan, 9.0, -9.0]), mean=0.0, low=np.nan, high=np.nan, domain=(-1.0, 1.0), width=110)
    assert [x for x, _ in dots(svg)] == [5.0, 105.0]
    assert "H" not in re.search(r'class="mean" d="([^"]*)"', svg)[1]


def test_no_value_at_all():
    svg = strip_svg(np.array([np.nan]), mean=np.nan, low=np.nan, high=np.nan, domain=(0.0, 1.0))
    assert dots(svg) == []
    assert 'aria-label="0 examples, mean –"' in svg


def test_equal_values_stay_countable():
    """Three equal values stand in three lanes."""
    svg = strip_svg(np.full(3, 0.5), mean=0.5, low=0.5, high=0.5, domain=(0.0, 1.0))
    assert {y for _, y in dots(svg)} == {7, 11, 15}


def test_tables_escape_every_text():
    html = table_html(["<i>"], [["<b>&"]], caption="<u>")
    assert "<i>" not in html
    assert "&lt;b&gt;&amp;" in html
    assert "<caption>&lt;u&gt;</caption>" in html
    assert "<caption>" not in table_html(["a"], [])


def test_many_dots_do_not_drift():
    """Places are rounded before the steps between them, so the last of 500 dots stands where it should."""
    values = np.random.default_rng(0).random(500)
    svg = strip_svg(values, mean=0.5, low=0.4, high=0.6, domain=(0.0, 1.0), width=110)
    expected = [round(round(5 + 100 * value, 1)) for value in np.sort(values)]
    np.testing.assert_allclose([x for x, _ in dots(svg)], expected, atol=1e-6)
