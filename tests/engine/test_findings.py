from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from builders import make_effects, small_effects, with_holes
from crosspatch.engine.wording import pitfalls
from crosspatch.sites import Site


def test_top_lists_the_largest_effects_of_either_sign():
    sites = [Site("resid.pre", 0, None, place) for place in range(4)]
    effects = small_effects(sites, np.array([[0.2], [-1.5], [np.nan], [0.9]]) * np.ones(8))
    top = effects.top(3)
    assert [str(row.site) for row in top] == ["resid.pre[0]@1", "resid.pre[0]@3", "resid.pre[0]@0"]
    assert (top[0].effect, top[0].raw, top[0].n, len(top)) == (pytest.approx(-0.75), pytest.approx(-1.5), 8, 3)
    assert effects.top(1, kind="resid.pre")[0].index == 1


def test_top_shows_itself_as_text_and_html():
    top = make_effects(n=8, heads=2).top(4)
    lines = repr(top).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("resid.pre[17]@14 (end)")
    table = ElementTree.fromstring(top._repr_html_())
    assert len(list(table.iter("tr"))) == 5


def test_the_finding_names_site_number_interval_and_pairs():
    effects = make_effects()
    finding = effects.finding()
    assert finding.startswith("Restoring resid.pre[")
    assert "at position 10 (S2) alone recovers 0.99" in finding or "at position 10 (S2) alone recovers 1.00" in finding
    assert finding.endswith("of the logit difference (24 pairs, denoise).")


def test_in_the_noise_direction_the_finding_speaks_of_corrupting():
    finding = make_effects(direction="noise", kinds=("attn.out",)).finding()
    assert finding.startswith("Corrupting attn.out[10] at position 14 (end) alone removes 0.34 [")


@pytest.mark.parametrize(
    ("direction", "words"), [("denoise", "hurts it further: -0.50 ["), ("noise", "strengthens the behaviour: -0.50 [")]
)
def test_a_negative_finding_says_so(direction, words):
    sign = 1 if direction == "denoise" else -1
    ends = {"base": np.full(8, -1.0 * sign, np.float32), "source": np.full(8, 1.0 * sign, np.float32)}
    assert words in small_effects(raw=[[-sign] * 8, [0.0] * 8], direction=direction, **ends).finding()


def test_noise_is_no_finding():
    """With enough pairs for a test, effects that scatter around zero are not talked up."""
    raw = np.random.default_rng(1).normal(0, 0.1, (40, 30))
    finding = small_effects([Site("resid.pre", 0, None, place) for place in range(40)], raw, n=30).finding()
    assert finding.startswith(
        "No site moves the logit difference by more than chance would (30 pairs, denoise); the largest"
    )
    assert ", q = " in finding


def test_too_few_pairs_for_any_test_are_called_that():
    """Four pairs never reach p < 0.05; the number is told all the same."""
    finding = small_effects(raw=[[1.5, 1.4, 1.6, 1.5], [0.1, -0.1, 0.0, 0.2]], n=4).finding()
    assert finding.startswith("Restoring resid.pre[0] at position 10 (S2) alone recovers 0.75 [")
    assert finding.endswith("of the logit difference (4 pairs, denoise: too few for a test).")


def test_too_few_pairs_and_an_interval_around_zero_are_no_finding():
    finding = small_effects(raw=[[1.5, -1.4, 1.6, -1.3], [0.1, -0.1, 0.0, 0.1]], n=4).finding()
    assert finding.startswith("No site moves the logit difference by more than chance would (4 pairs, denoise: too few")


def many_sites(*, strong: float):
    """Eight pairs, 300 sites of noise, one of them stronger: corrected one by one, none could reach q < 0.05."""
    raw = np.random.default_rng(2).normal(0, 0.1, (300, 8))
    raw[7] += strong
    return small_effects([Site("resid.pre", 0, None, place) for place in range(300)], raw)


def test_one_strong_site_among_many_stands_by_the_test_of_all_together():
    effects = many_sites(strong=1.5)
    assert effects.q_values()[7] > 0.05
    assert effects.finding().startswith("Restoring resid.pre[0] at position 7 (the) alone recovers 0.7")
    assert "(8 pairs, denoise; family-wise p = 0.0" in effects.finding()


def test_the_largest_of_many_chances_is_no_finding():
    """The interval of the largest of 300 often leaves zero out; it was picked for that."""
    effects = many_sites(strong=0.0)
    assert effects.claim().row.low > 0 or effects.claim().row.high < 0
    assert effects.finding().startswith(
        "No site moves the logit difference by more than chance would (8 pairs, denoise)"
    )


def test_a_site_that_is_the_whole_input_is_not_the_finding():
    """Restoring the only token that differs gives the clean run by construction; something else says more."""
    gap = np.random.default_rng(3).normal(2, 0.2, 8).astype(np.float32)
    ends = {"base": np.zeros(8, np.float32), "source": gap}
    effects = small_effects(raw=[gap, 0.7 * gap + 0.1], **ends)
    assert effects.finding().startswith("Restoring resid.pre[1]")
    alone = small_effects(raw=[gap, 0 * gap], **ends).finding()
    assert (
        "resid.pre[0] at position 10 (S2) alone gives the logit difference of the whole clean run: 1.00 [1.00" in alone
    )


def test_among_near_ties_the_middle_of_the_model_is_named():
    sites = [Site("resid.pre", layer, None, "S2") for layer in range(9)]
    raw = np.array([1.02, 1.01, 1, 1, 0.99, 0.5, 0, 0, 0])[:, None] * np.full(8, 1.5) + np.linspace(0, 0.1, 8)
    assert small_effects(sites, raw, layers=9).finding().startswith("Restoring resid.pre[4] at S2 alone")


def test_nothing_run_is_said():
    assert "No site was run" in small_effects(raw=np.full((2, 8), np.nan)).finding()


def check(**given):
    values = {"base": np.full(20, -2.0), "source": np.linspace(1.5, 2.5, 20), "raw": np.ones((3, 20))} | given
    values = {name: np.asarray(v, np.float32) if name in ("base", "source", "raw") else v for name, v in values.items()}
    return pitfalls(**{"direction": "denoise", "metric": "logit_diff", **values})


def test_a_sound_sweep_has_no_pitfalls():
    assert check() == ()
    assert make_effects().cautions() == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"source": [-1.0] * 3 + [2.0] * 17}, "prefers the wrong answer in 3 of 20 clean prompts"),
        ({"source": np.linspace(-8, 8, 20), "base": np.full(20, 0.5)}, "is smaller than its spread over the pairs"),
        ({"source": np.full(20, -2.0)}, "the same mean logit difference: effects cannot be normalised"),
        (
            {"metric": "prob", "base": np.full(20, 0.01), "source": np.full(20, 0.8)},
            "no effect can fall below -P(base) = -0.010",
        ),
        ({"raw": [[np.nan] * 20, [1.0] * 20]}, "1 of 2 sites were not run"),
        ({"raw": [[np.nan] + [1.0] * 19, [1.0] * 20]}, "1 of 2 sites lack some pairs"),
        ({"source": np.full(20, np.nan)}, "No pair has both"),
    ],
)
def test_each_pitfall_is_told(given, words):
    assert any(words in text for text in check(**given)), check(**given)


def test_few_pairs_are_told():
    few = {"base": [-1.0] * 3, "source": [1.0, 1.1, 1.2], "raw": np.ones((1, 3))}
    assert check(**few) == ("Only 3 pairs: intervals from fewer than 8 pairs are too narrow.",)
    assert "no interval" in check(base=[-1.0], source=[1.0], raw=np.ones((1, 1)))[0]


def test_in_the_noise_direction_the_clean_run_is_the_base():
    assert check(direction="noise", base=np.linspace(1, 2, 20), source=np.full(20, -2.0)) == ()
    assert "wrong answer in 20 of 20" in check(direction="noise")[0]


def test_the_sweeps_own_warnings_come_first_and_once():
    effects = replace(with_holes(make_effects(n=4)), warnings=("Stopped early.", "Stopped early."))
    cautions = effects.cautions()
    assert cautions[0] == "Stopped early."
    assert len(cautions) == len(set(cautions)) == 4
