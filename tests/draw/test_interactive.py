"""Plotly figures: one zero-centred scale, the library's colours, every text escaped."""

import sys

import numpy as np
import pytest

from crosspatch.core.errors import BadInput, MissingExtra
from crosspatch.draw import Panel, Scale, diverging, maps_plotly

EVIL = "<script>alert(1)</script> $x$"


def make_panel(values, title="resid.post", columns=None):
    values = np.asarray(values, dtype=np.float32)
    rows = tuple(map(str, range(values.shape[0])))
    return Panel(title, values, values - 0.1, values + 0.1, rows, columns or tuple("abcdefgh"[: values.shape[1]]))


def test_all_maps_share_one_scale_with_zero_white():
    figure = maps_plotly([make_panel([[0.5, -1.0]]), make_panel([[3.0, np.nan]], "mlp.out")], Scale(1.0, "low", "high"))
    axis = figure.layout.coloraxis
    assert axis.cmin == -axis.cmax
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    stops = axis.colorscale
    assert (stops[0][1], stops[-1][1]) == (diverging(-20), diverging(20))
    assert next(colour for share, colour in stops if share >= 0.5) == diverging(0)
    assert axis.colorbar.ticktext == ("-1.00 low", "0", "1.00 high")
    assert figure.data[1].z[0][1] is None


def test_pointing_tells_site_value_and_interval():
    figure = maps_plotly([make_panel([[0.5, np.nan]])], Scale(1.0))
    assert list(figure.data[0].hovertext[0]) == [
        "resid.post · layer 0, a: 0.500 [0.400, 0.600]",
        "resid.post · layer 0, b: not run",
    ]


def test_hostile_tokens_are_text():
    text = maps_plotly([make_panel([[1.0]], EVIL, (EVIL,))], Scale(1.0)).to_json()
    assert "<script" not in text
    assert "\\u003cscript" not in text
    assert "&lt;script" in text or "\\u0026lt;script" in text
    assert "$x$" not in text


def test_quotes_stay_as_they_are():
    """Plotly reads no entity for them."""
    title = maps_plotly([make_panel([[1.0]], 'it\'s "a"')], Scale(1.0)).layout.annotations[0].text
    assert title == 'it\'s "a"'


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_many_maps_fit_one_figure(count):
    """Below each other, each as tall as its rows ask for."""
    layout = maps_plotly([make_panel(np.zeros((10, 2)))] * count, Scale(1.0)).layout
    axes = [layout["yaxis" if place == 0 else f"yaxis{place + 1}"].domain for place in range(count)]
    assert all((top - bottom) * (layout.height - 180) == pytest.approx(140) for bottom, top in axes)


def test_refusals(monkeypatch):
    with pytest.raises(BadInput, match="nothing to draw"):
        maps_plotly([], Scale(1.0))
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(MissingExtra, match=r"crosspatch\[plotly\]"):
        maps_plotly([make_panel([[1.0]])], Scale(1.0))
