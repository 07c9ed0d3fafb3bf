import numpy as np
import pytest

from builders import make_effects, small_effects
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.engine.effects import ExampleView, Grid
from crosspatch.sites import Site


def test_a_grid_holds_each_site_in_its_layer_and_column():
    effects = make_effects(layers=5, n=6)
    grid = effects.grid("mlp.out")
    assert isinstance(grid, Grid)
    assert grid.values.shape == (5, 15)
    for site, mean, low in zip(effects.sites, effects.mean(), effects.interval()[0], strict=True):
        if site.kind == "mlp.out":
            assert grid.values[site.layer, site.position] == pytest.approx(mean, abs=1e-6)
            assert grid.low[site.layer, site.position] == pytest.approx(low, abs=1e-6)
            assert effects.sites[grid.index[site.layer, site.position]] == site


def test_cells_never_run_are_nan_and_known_zeros_are_zero():
    effects = small_effects([Site("resid.pre", 1, None, 3), Site("resid.pre", 0, None, 4)], raw=[[0.0] * 8, [1.0] * 8])
    np.testing.assert_array_equal(effects.grid("resid.pre").values, [[np.nan, 0.5], [0.0, np.nan]])


def test_columns_are_indices_then_names_by_where_they_stand():
    places = ("end", 14, "S2+1", 3, "S1", -1, "S2", "all")
    grid = small_effects([Site("resid.pre", 0, None, place) for place in places]).grid("resid.pre")
    assert [label.split(" ·")[0] for label in grid.columns] == ["3", "14", "-1", "S1", "S2", "S2+1", "end", "all"]


def test_a_token_is_named_only_where_all_examples_have_it():
    """Index 1 is `When` in every prompt; index 8 is a place that varies; index 10 varies but is always S2."""
    places = (1, 8, 10, "S2", "end")
    grid = small_effects([Site("resid.pre", 0, None, place) for place in places]).grid("resid.pre")
    assert grid.columns == ("1 ·When", "8", "10 ·{S2}", "S2", "end ·to")


def test_one_prompt_names_all_its_tokens():
    grid = make_effects(n=1, layers=2, kinds=("resid.pre",)).grid("resid.pre")
    assert grid.columns[8:11] == ("8 ·store", "9 ·,", "10 ·John")


def test_prompts_of_unequal_lengths_name_no_token():
    short = ExampleView(("a", "b"), ("a", "c"), "x", "y", {"end": 1})
    longer = ExampleView(("a", "b", "d"), ("a", "c", "d"), "x", "y", {"end": 2})
    sites = [Site("resid.pre", 0, None, place) for place in (0, 2, "end")]
    grid = small_effects(sites, np.ones((3, 2)), n=2, examples=(short, longer)).grid("resid.pre")
    assert grid.columns == ("0", "2", "end")
    assert grid.marked == (False, False, True)


def test_positions_where_the_prompts_differ_are_marked():
    grid = make_effects(layers=2, n=3, kinds=("resid.pre",)).grid("resid.pre")
    assert [place for place, marked in enumerate(grid.marked) if marked] == [10]


def test_heads_patched_at_one_position_are_columns():
    sites = [Site("attn.head", layer, head, "end") for layer in range(2) for head in range(3)]
    grid = small_effects(sites, np.arange(48).reshape(6, 8)).grid("attn.head")
    assert (grid.columns, grid.title) == (("0", "1", "2"), "attn.head @end")
    np.testing.assert_allclose(grid.values, small_effects(sites, np.arange(48).reshape(6, 8)).mean().reshape(2, 3))


@pytest.mark.parametrize(("place", "title"), [("all", "attn.v @all"), (None, "attn.v")])
def test_heads_at_all_positions_together(place, title):
    grid = small_effects([Site("attn.v", 0, head, place) for head in (1, 0)]).grid("attn.v")
    assert (grid.columns, grid.title) == (("0", "1"), title)


def test_heads_by_positions_are_columns_of_both():
    sites = [Site("attn.head", 0, head, place) for head in (0, 1) for place in ("end", 3)]
    assert small_effects(sites).grid("attn.head").columns == ("0@3", "0@end", "1@3", "1@end")


def test_a_kind_without_layers_has_one_row():
    grid = small_effects([Site("embed", None, None, 1), Site("embed", None, None, 2)]).grid("embed")
    assert (grid.values.shape, grid.rows) == ((1, 2), ("",))


def test_a_kind_that_was_not_swept():
    with pytest.raises(UnknownName, match=r"'mlp\.out'.*Known: resid\.pre"):
        small_effects().grid("mlp.out")


def test_a_layer_beyond_the_model():
    with pytest.raises(BadInput, match=r"resid\.pre\[1\] .* 1 layers"):
        small_effects(layers=1).grid("resid.pre")
