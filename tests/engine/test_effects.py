import io
import sys
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from builders import make_effects, small_effects
from crosspatch.core.errors import BadInput
from crosspatch.engine.effects import ExampleView
from crosspatch.sites import Site
from naive.stats import naive_benjamini_hochberg, naive_bootstrap_ratio, naive_sign_flip_p

EVIL = "</script><img src=x onerror=alert(1)>"


def test_an_effect_equal_to_the_gap_is_one():
    effects = small_effects(raw=[[2.0] * 8, [-1.0] * 8])
    np.testing.assert_allclose(effects.values, [[1.0] * 8, [-0.5] * 8])
    np.testing.assert_allclose(effects.mean(), [1.0, -0.5])
    np.testing.assert_allclose(effects.mean("raw"), [2.0, -1.0])


def test_each_effect_is_divided_by_the_average_gap():
    """Not by its own: a pair with a tiny gap would drown the others."""
    source = np.array([1.0, 3.0], np.float32)
    effects = small_effects(raw=[[1.0, 1.0], [0.0, 3.0]], n=2, base=np.zeros(2, np.float32), source=source)
    np.testing.assert_allclose(effects.values, [[0.5, 0.5], [0.0, 1.5]])


def test_in_the_noise_direction_one_is_the_corrupted_run():
    """The gap is negative there, so an effect that destroys the behaviour is positive."""
    effects = small_effects(
        raw=[[-2.0] * 8, [1.0] * 8], direction="noise", base=np.ones(8, np.float32), source=-np.ones(8, np.float32)
    )
    np.testing.assert_allclose(effects.mean(), [1.0, -0.5])


def test_intervals_and_p_values_equal_the_naive_twins():
    rng = np.random.default_rng(0)
    raw = rng.normal(1, 1, (3, 8))
    raw[1, :3] = np.nan
    sites = [Site("resid.pre", 0, None, place) for place in (1, 2, 3)]
    source = rng.normal(1, 0.3, 8).astype(np.float32)
    effects = small_effects(sites, raw, source=source)
    naive = naive_bootstrap_ratio(effects.raw, effects.gap, 0.9, 2000, 0)
    np.testing.assert_allclose(effects.interval(0.9), naive, rtol=2e-5)
    naive_raw = naive_bootstrap_ratio(effects.raw, np.ones(8), 0.95, 2000, 0)
    np.testing.assert_allclose(effects.interval(scale="raw"), naive_raw, rtol=2e-5, atol=1e-6)
    p = naive_sign_flip_p(effects.raw)
    np.testing.assert_allclose(effects.p_values(), p)
    np.testing.assert_allclose(effects.q_values(), naive_benjamini_hochberg(p))


def test_zeros_by_construction_are_no_tests():
    """Sites that cannot act do not weaken the correction for those that can."""
    raw = np.concatenate([np.ones((1, 8)), np.zeros((50, 8))])
    effects = small_effects([Site("resid.pre", 0, None, place) for place in range(51)], raw)
    q = effects.q_values()
    assert q[0] == effects.p_values()[0] < 0.01
    assert (q[1:] == 1).all()


def test_a_site_never_run_has_no_number():
    effects = small_effects(raw=[[np.nan] * 8, [1.0] * 8])
    for values in (effects.mean(), *effects.interval(), effects.p_values(), effects.q_values()):
        assert np.isnan(values).tolist() == [True, False]


def test_without_a_gap_effects_stay_raw():
    effects = small_effects(source=np.full(8, -1.0, np.float32))
    assert effects.scale == "raw"
    np.testing.assert_allclose(effects.mean(), 1.0)
    assert np.isnan(effects.values).all()
    assert np.isnan(effects.mean("normalised")).all()
    assert np.isnan(effects.interval(scale="normalised")[0]).all()
    assert "raises the logit difference by 1.00 [1.00, 1.00] logits" in effects.finding()


def test_one_pair_has_no_interval():
    effects = make_effects(n=1, kinds=("resid.pre",))
    assert np.isnan(effects.interval()[0]).all()
    assert "no interval" in effects.finding()
    assert "[" not in effects.finding().replace("resid.pre[", "")


def test_any_selection_keeps_its_numbers():
    """The bootstrap draws the same pairs for every selection of sites."""
    effects = make_effects(layers=4, n=10)
    chosen = [17, 3, 90]
    np.testing.assert_array_equal(effects.only(chosen).interval()[0], effects.interval()[0][chosen])


@pytest.mark.parametrize(
    "change", [{"raw": np.zeros((2, 3), np.float32)}, {"base": np.zeros(3, np.float32)}, {"sites": ()}]
)
def test_shapes_that_disagree_are_refused(change):
    with pytest.raises((BadInput, TypeError)) as caught:
        replace(small_effects(), **change)
    if isinstance(caught.value, BadInput):
        assert "effects of" in str(caught.value)


def test_an_unknown_direction_is_refused():
    with pytest.raises(BadInput, match="'denoise' or 'noise'"):
        small_effects(direction="both")


def test_in_a_shell_two_lines():
    lines = repr(make_effects(layers=4, n=8, heads=2)).splitlines()
    assert lines[0].startswith(
        "Effects of 188 sites (resid.pre, attn.out, mlp.out, attn.head) on 8 pairs: gemma-3-270m, ioi"
    )
    assert lines[1].startswith("Restoring ")
    assert len(lines) == 2


def test_in_a_notebook_a_static_picture():
    html = make_effects(n=8, heads=4)._repr_html_()
    root = ElementTree.fromstring(html)
    assert len([svg for svg in root.iter("{http://www.w3.org/2000/svg}svg") if svg.get("class") == "map"]) == 4
    assert "<script" not in html
    assert " style=" not in html
    assert "hurts" in html


def test_evil_tokens_are_only_text_in_a_notebook():
    view = ExampleView((EVIL, EVIL), (EVIL, "b"), EVIL, EVIL, {"end": 1})
    effects = small_effects([Site("resid.pre", 0, None, 0)], np.ones((1, 8)), examples=(view,) * 8)
    html = effects._repr_html_()
    assert "<img" not in html
    assert "&lt;img" in html
    assert "<img" not in effects.grid("resid.pre")._repr_html_()


def rendered(effects, width=80):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(effects)
    return out.getvalue()


def test_in_a_terminal_maps_table_finding_and_warnings():
    text = rendered(make_effects(layers=4, n=4))
    for part in ("resid.pre\n", "attn.out\n", "effect [95%]", "Restoring ", "! Only 4 pairs", "tenths of"):
        assert part in text
    assert text.count("tenths of") == 1
    assert max(map(len, text.splitlines())) <= 80


def test_kinds_with_too_many_sites_are_left_to_the_table():
    """Six thousand neurons are no picture; their strongest still show."""
    sites = [Site("mlp.hidden", layer, unit, "all") for layer in range(2) for unit in range(3000)]
    effects = small_effects(sites, np.random.default_rng(0).normal(0, 1, (6000, 8)))
    assert effects.drawable() == []
    assert "mlp.hidden[" in rendered(effects)
    assert "mlp.hidden[" in effects._repr_html_()


def test_all_pictures_share_one_scale():
    """Its limit holds the strongest mean effect, twice the gap at most; raw colours are the same colours."""
    effects = make_effects(n=8)
    assert effects.colours().limit == pytest.approx(1.2)
    assert effects.colours("raw").limit == pytest.approx(1.2 * abs(effects.mean_gap))
    assert (effects.colours().negative, effects.colours().positive) == ("hurts", "restores")
    assert small_effects(raw=np.full((2, 8), 90.0)).colours().limit == 2.0


def test_engine_results_need_no_torch():
    """The class is asked for in a fresh interpreter, in which nothing else has imported torch."""
    import subprocess

    code = (
        "import sys; import crosspatch.engine.grids, crosspatch.engine.wording, crosspatch.engine.effects;"
        "import crosspatch.draw, crosspatch.report; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_rows_follow_each_other_by_size():
    sizes = [abs(row.effect) for row in make_effects(n=8).top(30)]
    assert all(a >= b for a, b in pairwise(sizes))
