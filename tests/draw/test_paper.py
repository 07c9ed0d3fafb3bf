"""Figures for papers: text as text, the library's colours, one scale, the asked size, pyplot left alone."""

import struct
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from crosspatch.core.errors import BadInput, MissingExtra
from crosspatch.draw import MARK, Panel, Scale, diverging, maps_figure

NS = "{http://www.w3.org/2000/svg}"
ODD = ("$x_1$", "a_b%", "<script>", "\\alpha", "^~{}", "店", "🎉")


def make_panel(values, title="resid.post", **more):
    values = np.asarray(values, dtype=np.float32)
    rows, columns = values.shape
    settings = {"rows": tuple(map(str, range(rows))), "columns": tuple(map(str, range(columns))), **more}
    return Panel(title, values, values - 0.1, values + 0.1, **settings)


def svg_of(*panels, **more):
    return ElementTree.fromstring(maps_figure(panels, Scale(1.0, "hurts", "restores"), form="svg", **more))


def texts(svg):
    return ["".join(each.itertext()) for each in svg.iter(f"{NS}text")]


def fills(svg):
    """Give the fill of each path that is a cell of a map, the colour bar's cells among them."""
    styles = [path.get("style") or "" for path in svg.iter(f"{NS}path")]
    return [style.split("fill: ")[1][:7] for style in styles if "fill: #" in style]


def test_tokens_are_texts_as_they_are():
    """No mathematics, no markup, no letter lost: what a token is can be searched in the file."""
    said = texts(svg_of(make_panel([[0.5] * len(ODD)], columns=tuple(f"{i} ·{t}" for i, t in enumerate(ODD)))))
    for token in ODD:
        assert (token if token != "^~{}" else "^~") in said  # braces mark a name
    assert {"resid.post", "layer", "hurts", "restores", "-1.00", "1.00"} <= set(said)


def test_an_index_beside_tokens_is_no_token():
    said = texts(svg_of(make_panel([[0.5, 0.2]], columns=("7 ·8", "8"))))
    assert {"8", "@8"} <= set(said)
    assert "@8" not in texts(svg_of(make_panel([[0.5, 0.2]], columns=("7", "8"))))


def test_cells_have_the_colours_of_the_library_on_one_scale():
    """Two panels share the scale; beyond its end a cell is marked by a corner."""
    svg = svg_of(make_panel([[0.0, 1.0]]), make_panel([[-0.5, 3.0]], title="mlp.out"))
    found = fills(svg)
    # The colour bar has each colour once.
    assert found.count(diverging(20)) == 1 + 2
    assert found.count(diverging(-10)) == 1 + 1
    plain = svg_of(make_panel([[0.0, 1.0]]), make_panel([[-0.5, 1.0]], title="mlp.out"))
    assert len(list(svg.iter(f"{NS}path"))) == len(list(plain.iter(f"{NS}path"))) + 1
    assert texts(svg).count("restores") == 1


def test_what_was_not_run_is_hatched_and_explained():
    svg, full = svg_of(make_panel([[0.5, np.nan]])), svg_of(make_panel([[0.5, 0.2]]))
    assert "not run" in texts(svg)
    assert list(svg.iter(f"{NS}pattern"))
    assert "not run" not in texts(full)
    assert not list(full.iter(f"{NS}pattern"))


def test_columns_where_inputs_differ_are_marked():
    marked = (False, True)
    text = maps_figure([make_panel([[0.5, 0.2]], marked=marked)], Scale(1.0), form="svg").decode()
    assert MARK in text
    assert MARK not in maps_figure([make_panel([[0.5, 0.2]])], Scale(1.0), form="svg").decode()


@pytest.mark.parametrize("width", [3.3, 6.8])
def test_a_figure_is_as_wide_as_asked(width):
    panels = [make_panel(np.zeros((18, 15))), make_panel(np.zeros((18, 4)), title="attn.head @end")]
    svg = svg_of(*panels, width=width)
    assert float(svg.get("width").removesuffix("pt")) == pytest.approx(width * 72, abs=0.1)
    png = maps_figure(panels, Scale(1.0), form="png", width=width)
    assert struct.unpack(">I", png[16:20])[0] == round(width * 300)
    at = png.index(b"pHYs") + 4
    assert struct.unpack(">I", png[at : at + 4])[0] == round(300 / 0.0254)


def test_narrow_panels_stand_side_by_side():
    """Two of a few columns share a line; two of many do not."""
    few, many = [make_panel(np.zeros((9, 4))) for _ in "ab"], [make_panel(np.zeros((9, 20))) for _ in "ab"]
    low, high = (float(svg_of(*panels).get("height").removesuffix("pt")) for panels in (few, many))
    assert high > 1.6 * low


def test_pdf_holds_letters_not_drawings():
    """TrueType fonts (42), which journals ask for; type 3 they refuse."""
    found = maps_figure([make_panel([[0.5, 0.2]])], Scale(1.0), form="pdf")
    assert found.startswith(b"%PDF")
    assert b"/FontFile2" in found
    assert b"/Type3" not in found


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_the_same_panels_give_the_same_file(form):
    panels = [make_panel([[0.5, np.nan], [0.1, -2.0]])]
    assert maps_figure(panels, Scale(1.0), form=form) == maps_figure(panels, Scale(1.0), form=form)


def test_the_users_settings_stay_and_pyplot_is_not_opened():
    """A user's style is as it was, markup by TeX never meets a token, and no window system is asked for."""
    with mpl.rc_context({"text.usetex": True, "svg.fonttype": "path", "font.size": 20}):
        before = dict(mpl.rcParams)
        assert "$x$" in texts(svg_of(make_panel([[1.0]], columns=("0 ·$x$",))))
        assert dict(mpl.rcParams) == before
    code = (
        "import sys, numpy as np; from crosspatch.draw import Panel, Scale, maps_figure; v = np.zeros((1, 1));"
        "maps_figure([Panel('t', v, v, v, ('0',), ('0',))], Scale(1.0), form='png');"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("panels", "more", "said"),
    [
        (1, {"form": "gif"}, "svg, png, pdf"),
        (0, {"form": "svg"}, "nothing to draw"),
        (1, {"form": "svg", "width": 1.0}, "at least 2.6 inches"),
        (1, {"form": "svg", "width": float("nan")}, "at least 2.6 inches"),
    ],
)
def test_what_cannot_be_drawn_is_refused(panels, more, said):
    with pytest.raises(BadInput, match=said):
        maps_figure([make_panel([[1.0]])] * panels, Scale(1.0), **more)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"crosspatch\[figures\]"):
        maps_figure([make_panel([[1.0]])], Scale(1.0), form="svg")
