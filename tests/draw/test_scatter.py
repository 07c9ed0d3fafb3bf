"""The scatter of two numbers: where points stand, what is left out, what is escaped."""

import re
from xml.etree import ElementTree

from crosspatch.draw import Point, scatter_svg

POINTS = [Point(0.0, 0.0, "a", "top"), Point(1.0, 0.5, "<script>", "top"), Point(-0.5, 1.0, "c", "drawn")]


def test_points_stand_where_their_numbers_say():
    """On one scale for both axes: further right is more, higher up is more; the diagonal ends in the corners."""
    svg = scatter_svg(POINTS, x="estimated", y="exact", title="both")
    ElementTree.fromstring(svg)
    circles = [
        (float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4" fill="[^"]+" f', svg)
    ]
    assert len(circles) == 3
    (ax, ay), (bx, by), (cx, cy) = circles
    assert cx < ax < bx
    assert cy < by < ay
    assert abs((bx - ax) - 2 * (ay - by)) < 0.2  # 1.0 to the right, 0.5 up


def test_hostile_names_are_text_and_missing_numbers_are_left_out():
    """A name is never markup; what is no number has no place."""
    svg = scatter_svg([*POINTS, Point(float("nan"), 1.0, "d", "top")], x="<b>", y="y", title="<i>")
    assert "<script>" not in svg
    assert "&lt;script&gt;" in svg
    assert "<b>" not in svg
    assert svg.count("<title>") == 3


def test_nothing_to_draw_is_an_empty_frame():
    """Without points there are axes and no legend."""
    ElementTree.fromstring(scatter_svg([], x="x", y="y", title="none"))
    assert "<circle" not in scatter_svg([], x="x", y="y", title="none")
