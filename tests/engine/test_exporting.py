"""Effects for other programs: tables, tensors in TransformerLens's shapes, figures by the ending of their name."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import make_effects, small_effects
from crosspatch.core.errors import BadInput, MissingExtra, UnknownName
from crosspatch.engine.effects import ExampleView
from crosspatch.sites import Group, Site


def test_both_tables_hold_the_same():
    """Polars and pandas agree column by column; the numbers are those of the effects."""
    effects = make_effects(layers=2, positions=3, heads=2, n=8)
    pandas, polars = effects.to_frame(), effects.to_polars()
    assert list(pandas.columns) == polars.columns
    assert polars["site"].to_list() == list(map(str, effects.sites)) == list(pandas.site)
    for name in ("effect", "low", "high", "raw", "p", "q", "n"):
        np.testing.assert_array_equal(polars[name].to_numpy(), pandas[name].to_numpy())
    np.testing.assert_array_equal(polars["effect"].to_numpy(), effects.mean())
    assert polars["unit"].to_list() == [site.unit for site in effects.sites]
    assert set(polars["position"]) == {"0", "1", "2", "end"}


@pytest.mark.parametrize(("module", "method"), [("polars", "to_polars"), ("pandas", "to_frame")])
def test_without_the_package_the_extra_is_named(monkeypatch, module, method):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"crosspatch\[{module}\]"):
        getattr(small_effects(), method)()


def at(kind, *, layers=2, units=(None,), places=(None,)):
    return [Site(kind, layer, unit, place) for layer in range(layers) for unit in units for place in places]


def numbered(sites, **more):
    """Give effects whose mean is the number of the site (the gap is 2)."""
    raw = np.arange(len(sites), dtype=float)[:, None].repeat(2, axis=1) * 2
    return small_effects(sites, raw, n=2, **more)


LENGTH = len(small_effects().examples[0].clean_tokens)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("resid.pre", "resid_pre"),
        ("resid.mid", "resid_mid"),
        ("resid.post", "resid_post"),
        ("attn.out", "attn_out"),
        ("mlp.out", "mlp_out"),
    ],
)
def test_streams_and_outputs_are_layer_by_pos(kind, key):
    found = numbered(at(kind, places=(0, 2, -1))).to_tensors()
    assert list(found) == [key]
    assert found[key].dtype == torch.float32
    assert found[key].shape == (2, LENGTH)
    assert found[key][:, [0, 2, LENGTH - 1]].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert int(found[key].isnan().sum()) == 2 * (LENGTH - 3)


@pytest.mark.parametrize(
    ("kind", "key"), [("attn.head", "z"), ("attn.q", "q"), ("attn.k", "k"), ("attn.v", "v"), ("mlp.hidden", "post")]
)
def test_units_are_the_last_axis(kind, key):
    """By position [layer, pos, head]; at all positions together [layer, head]."""
    by_pos = numbered(at(kind, units=(0, 1, 2), places=(1, 3))).to_tensors()[key]
    assert by_pos.shape == (2, LENGTH, 3)
    assert by_pos[1, 1].tolist() == [6, 8, 10]
    assert by_pos[1, 3].tolist() == [7, 9, 11]
    together = numbered(at(kind, units=(0, 1, 2), places=("all",))).to_tensors()
    assert list(together) == [f"{key}_all_pos"]
    assert together[f"{key}_all_pos"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_patterns_have_the_query_last():
    """TransformerLens gives them as [layer, head, dest_pos]."""
    found = numbered(at("attn.pattern", units=(0, 1), places=(1, 3))).to_tensors()["pattern"]
    assert found.shape == (2, 2, LENGTH)
    assert found[1, :, 3].tolist() == [5, 7]


def test_several_kinds_one_kind_and_the_raw_scale():
    effects = numbered(
        [*at("resid.pre", places=(0,)), *at("attn.head", units=(0, 1), places=("all",)), Site("embed", position=0)]
    )
    assert set(effects.to_tensors()) == {"resid_pre", "z_all_pos", "embed"}
    assert effects.to_tensors()["embed"].shape == (LENGTH,)
    assert set(effects.to_tensors("attn.head")) == {"z_all_pos"}
    assert effects.to_tensors("attn.head", "raw")["z_all_pos"].tolist() == [[4, 6], [8, 10]]
    with pytest.raises(UnknownName, match=r"Known: resid\.pre"):
        effects.to_tensors("mlp.out")


def test_a_name_is_its_token_where_all_pairs_agree():
    """Else there is no such index, and it is said."""
    names = [{"S2": 2}, {"S2": 2}]
    pairs = [ExampleView(("a",) * 4, ("a",) * 4, "x", "y", each) for each in names]
    effects = numbered(at("resid.pre", places=("S2",)), examples=tuple(pairs))
    assert effects.to_tensors()["resid_pre"][:, 2].tolist() == [0, 1]
    other = replace(effects, examples=(pairs[0], replace(pairs[1], names={"S2": 3})))
    with pytest.raises(BadInput, match="S2 is not the same token in all pairs"):
        other.to_tensors()


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (Site("attn.in", 0, None, 1), "attn.in has no name in TransformerLens"),
        (Site("attn.head", 0, None, 1), "all units together"),
        (Group("window", (Site("mlp.out", 0, None, 1),)), "is a group"),
    ],
)
def test_what_has_no_place_there_is_refused(site, said):
    with pytest.raises(BadInput, match=said):
        numbered([site]).to_tensors()


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_a_figure_is_written_by_its_ending(form, tmp_path):
    """All kinds, or one; the words of the colour bar are those of the page."""
    effects = make_effects(layers=4, positions=12, heads=2, n=8)
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[form]
    path = effects.figure(tmp_path / "new" / f"a.{form.upper()}", width=6.8)
    assert path.read_bytes().startswith(start)
    if form == "svg":
        one = effects.figure(tmp_path / "one.svg", kind="attn.head").read_text()
        assert "attn.head @end" in one
        assert "resid.pre" not in one
        assert {"resid.pre", "hurts", "restores"} <= set(path.read_text().replace("<", ">").split(">"))


def test_figures_that_cannot_be(tmp_path):
    effects = make_effects(layers=2, positions=2, n=4)
    for call, error in (
        (lambda: effects.figure(tmp_path / "a.jpg"), BadInput),
        (lambda: effects.figure(tmp_path / "a.svg", kind="attn.head"), UnknownName),
        (lambda: effects.to_plotly("attn.head"), UnknownName),
    ):
        with pytest.raises(error):
            call()
    assert not list(tmp_path.iterdir())


def test_plotly_draws_one_map_a_kind():
    effects = make_effects(layers=3, positions=4, heads=2, n=4)
    assert len(effects.to_plotly().data) == len(effects.kinds)
    assert effects.to_plotly("attn.head").data[0].z[0][0] == pytest.approx(
        float(effects.grid("attn.head").values[0, 0])
    )


def test_latex_lists_the_strongest_sites():
    """Names of positions and tokens beside them are escaped; numbers are those of `top`."""
    pairs = tuple(ExampleView(("$a_%&#",) * 4, ("b",) * 4, "x", "y", {}) for _ in range(8))
    effects = small_effects([Site("resid.pre", layer, None, 1) for layer in range(2)], examples=pairs)
    text = effects.to_latex(1)
    assert r"resid.pre[0]@1 (\$a\_\%\&\#) & " in text
    assert len(text.splitlines()) == 8
    assert effects.top(1)[0].cells()[1] in text
