import numpy as np
import pytest

from crosspatch.draw import OKABE_ITO, Scale, diverging, level_class, level_css, nice_limit


def channels(colour):
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def test_zero_is_white():
    assert diverging(0) == "#ffffff"
    assert Scale(2.0).level(0.0) == 0


def test_positive_is_blue_and_negative_is_red():
    for level in (4, 10, 20):
        red, _, blue = channels(diverging(level))
        assert blue > red
        red, _, blue = channels(diverging(-level))
        assert red > blue


@pytest.mark.parametrize("sign", [1, -1])
def test_stronger_effects_are_darker_on_a_light_page_and_lighter_on_a_dark_one(sign):
    light = [sum(channels(diverging(sign * level))) for level in range(21)]
    dark = [sum(channels(diverging(sign * level, dark=True))) for level in range(21)]
    assert light == sorted(light, reverse=True)
    assert dark == sorted(dark)


def test_levels_are_symmetric_and_end_at_the_limit():
    scale = Scale(0.5)
    assert [scale.level(v) for v in (-9, -0.5, -0.25, 0.25, 0.5, 9)] == [-20, -20, -10, 10, 20, 20]


def test_values_beyond_the_scale_are_told_apart_from_rounding():
    scale = Scale(1.0)
    assert not scale.misses(1.02)
    assert not scale.misses(float("nan"))
    assert scale.misses(-1.1)


@pytest.mark.parametrize(
    ("top", "limit"), [(0.0, 1.0), (1.0, 1.0), (1.02, 1.0), (1.04, 1.2), (0.034, 0.04), (730.0, 800.0), (9.9, 10.0)]
)
def test_the_limit_is_round_and_holds_the_values(top, limit):
    assert nice_limit(np.array([0.1 * top, -top, np.nan])) == pytest.approx(limit)


def test_the_limit_of_nothing_and_its_cap():
    assert nice_limit(np.array([np.nan])) == 1.0
    assert nice_limit(np.zeros((0, 3))) == 1.0
    assert nice_limit(np.array([40.0]), cap=2.0) == 2.0


def test_every_level_has_a_rule_in_both_styles():
    for dark in (False, True):
        lines = level_css(dark=dark).splitlines()
        assert len(lines) == len(set(lines)) == 41
        assert f".n7{{fill:{diverging(-7, dark=dark)}}}" in lines
    assert (level_class(0), level_class(3), level_class(-20)) == ("p0", "p3", "n20")


def test_categories_are_okabe_and_ito():
    assert OKABE_ITO[:4] == ("#0072b2", "#e69f00", "#009e73", "#d55e00")
    assert len(set(OKABE_ITO)) == 8
