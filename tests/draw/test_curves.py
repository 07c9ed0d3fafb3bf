"""Curves with bands on a linear axis; logarithmic ones are tested with the recall that they were made for."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from crosspatch.core.errors import BadInput
from crosspatch.draw import Curve, curves_svg

X = np.array([1.0, 10.0, 100.0])


def drawn(*curves):
    return ElementTree.fromstring(curves_svg(curves, title="t", x_label="edges", y_label="share", linear_y=True))


def points(path):
    return [tuple(map(float, pair.split())) for pair in path.get("d")[1:].rstrip("z").split("L")]


def named(root, name):
    return [element for element in root.iter() if element.get("class") == name]


def test_zero_and_one_are_on_a_linear_axis_and_equal_steps_are_equal():
    root = drawn(Curve("a", X, np.array([0.0, 0.5, 1.0])))
    (line,) = named(root, "curve")
    (x0, y0), (x1, y1), (x2, y2) = points(line)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"0", "0.5", "1", "10", "100"} <= set(texts)


def test_values_below_zero_and_above_one_lie_inside():
    root = drawn(Curve("a", X, np.array([-0.4, 0.5, 1.7])))
    places = [y for _, y in points(named(root, "curve")[0])]
    assert 30 <= min(places) < max(places) <= 260


def test_a_band_surrounds_its_curve():
    y = np.array([0.2, 0.5, 0.8])
    root = drawn(Curve("a", X, y, y - 0.1, y + 0.1), Curve("b", X, y))
    (band,) = named(root, "band")
    ring, line = points(band), points(named(root, "curve")[0])
    upper, lower = ring[:3], ring[3:][::-1]
    assert all(up[1] < at[1] < down[1] for up, at, down in zip(upper, line, lower, strict=True))
    assert len(ring) == 6


def test_bounds_that_are_missing_leave_a_gap():
    y = np.array([0.2, 0.5, 0.8])
    root = drawn(Curve("a", X, y, np.array([0.1, np.nan, 0.7]), y + 0.1))
    assert len(points(named(root, "band")[0])) == 4
    assert not named(drawn(Curve("a", X, y, y * np.nan, y)), "band")


def test_references_take_the_texts_colour_and_leave_the_palette_to_methods():
    y = np.array([0.2, 0.5, 0.8])
    lone, after = (
        {e.find("{http://www.w3.org/2000/svg}title").text: e.get("stroke") for e in named(drawn(*curves), "curve")}
        for curves in ([Curve("a", X, y)], [Curve("exact", X, y, reference=True), Curve("a", X, y)])
    )
    assert after == {"exact": "currentColor", "a": lone["a"]}
    order = [
        e.find("{http://www.w3.org/2000/svg}title").text
        for e in named(drawn(Curve("a", X, y), Curve("r", X, y, reference=True)), "curve")
    ]
    assert order == ["r", "a"]


def test_points_are_marked_since_few_were_measured():
    svg = curves_svg([Curve("a", X, np.ones(3))], title="t", x_label="x", y_label="y", linear_y=True)
    assert len(re.findall(r"h0", svg)) == 3


def test_a_logarithmic_axis_refuses_zero():
    zero = Curve("a", X, np.array([0.0, 0.5, 1.0]))
    with pytest.raises(BadInput, match="linear_y=True"):
        curves_svg([zero], title="t", x_label="x", y_label="y")
    with pytest.raises(BadInput, match="above zero"):
        drawn(Curve("a", X - 1, X))


def over_layers(*curves):
    return ElementTree.fromstring(curves_svg(curves, title="t", x_label="layer", y_label="s", linear_x=True))


def ticks(root):
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_layers_are_evenly_spaced_from_zero_with_whole_ticks():
    layers = np.arange(6.0)
    root = over_layers(Curve("a", layers, layers * 0.01))
    across = [x for x, _ in points(named(root, "curve")[0])]
    np.testing.assert_allclose(np.diff(across), across[1] - across[0], atol=0.15)
    assert 58 <= across[0] < across[-1] <= 418
    assert ticks(root)[1:7] == ["0", "1", "2", "3", "4", "5"]
    many = ticks(over_layers(Curve("a", np.arange(32.0), np.ones(32))))
    assert many[1:8] == ["0", "5", "10", "15", "20", "25", "30"]
    assert "0.5" in ticks(over_layers(Curve("a", np.array([0.0, 0.5, 1.0]), np.ones(3))))


def test_small_values_over_layers_fill_the_height_from_zero():
    root = over_layers(Curve("a", np.arange(3.0), np.array([0.01, 0.02, 0.05])))
    heights = [y for _, y in points(named(root, "curve")[0])]
    assert min(heights) < 45
    assert heights[0] - heights[1] == pytest.approx((heights[1] - heights[2]) / 3, abs=0.2)
    assert "0" in ticks(root)
    assert "1" not in ticks(root)[4:]


def test_one_layer_no_number_and_many_points_can_be_drawn_over_layers():
    assert points(named(over_layers(Curve("a", np.zeros(1), np.ones(1))), "curve")[0])[0][0] == pytest.approx(238)
    nothing = named(over_layers(Curve("a", np.arange(2.0), np.full(2, np.nan))), "curve")[0]
    assert nothing.get("d") is None
    long = points(named(over_layers(Curve("a", np.arange(5000.0), np.ones(5000))), "curve")[0])
    assert len(long) == 400
    assert np.ptp(np.diff([x for x, _ in long])) < 0.4
