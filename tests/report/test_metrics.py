"""Metrics of one sweep on a page: their rank correlations, and the sites on which they disagree."""

from dataclasses import replace

import numpy as np
import pytest

from browsing import in_browser
from builders import make_effects, small_effects
from crosspatch.core.errors import BadInput
from crosspatch.core.stats import spearman
from crosspatch.report.metrics import compare_metrics
from crosspatch.report.page import page_html
from crosspatch.sites import Site

SITES = [Site("resid.pre", layer, None, 10) for layer in range(60)]


def by(metric, means, spread=0.01):
    """Make effects with these normalised means: a gap of 2 in each of eight pairs."""
    noise = spread * np.random.default_rng(1).standard_normal((len(means), 8))
    return small_effects(SITES[: len(means)], 2 * (np.asarray(means)[:, None] + noise), layers=60, metric=metric)


def test_a_site_whose_sign_differs_is_told_with_both_values():
    first, second = by("logit_diff", [0.5, 0.3, 0.01]), by("kl", [0.4, -0.2, -0.015])
    found = compare_metrics(first, [second])
    assert found.names == ("logit_diff", "kl")
    assert [(line.site, line.why) for line in found.lines] == [
        ("resid.pre[1]@10", "sign: + by logit_diff, − by kl")
    ]  # the third is too small
    low, high = (float(end[1]) for end in second.interval())
    assert found.lines[0].values[1] == f"{second.mean()[1]:.2f} [{low:.2f}, {high:.2f}]"


def test_a_sign_within_its_interval_is_none():
    assert not compare_metrics(by("a", [0.3, 0.05], 0.4), [by("b", [0.3, -0.05], 0.4)]).lines


def test_a_site_ranked_high_by_one_and_low_by_another_is_told():
    means = np.linspace(0.9, 0.3, 60)
    other = means.copy()
    other[[4, 55]] = other[[55, 4]]
    found = compare_metrics(by("a", means, 0), [by("b", other, 0)])
    assert [(line.site, line.why) for line in found.lines] == [
        ("resid.pre[4]@10", "rank 5 by a, 56 by b"),
        ("resid.pre[55]@10", "rank 5 by b, 56 by a"),
    ]


def test_the_matrix_holds_spearmans_numbers():
    means, other = np.linspace(0.9, 0.3, 20), np.roll(np.linspace(0.9, 0.3, 20), 7)
    found = compare_metrics(by("a", means, 0), [by("b", other, 0), by("c", means * 0.5, 0)])
    value = spearman(means, other)
    assert f"<title>a and b: {value:.2f}</title>" in found.svg
    assert "<title>a and c: 1.00</title>" in found.svg


def test_long_lists_are_cut_and_counted():
    found = compare_metrics(by("a", np.full(30, 0.3)), [by("b", np.full(30, -0.3))])
    assert (len(found.lines), found.more) == (20, 10)
    assert "10 more sites with smaller effects" in page_html(
        by("a", np.full(30, 0.3)), others=[by("b", np.full(30, -0.3))]
    )


def test_other_sweeps_are_refused():
    effects = by("a", [0.3, 0.2])
    for other in (
        by("a", [0.3, 0.2]),
        by("b", [0.3]),
        replace(by("b", [0.3, 0.2]), direction="noise"),
        replace(by("b", [0.3, 0.2]), model="z"),
    ):
        with pytest.raises(BadInput, match="one sweep"):
            page_html(effects, others=[other])


def test_one_metric_has_no_section_and_agreeing_ones_say_so():
    effects = make_effects(n=8)
    assert "Metrics compared" not in page_html(effects)
    html = page_html(effects, others=[replace(effects, metric="prob", raw=effects.raw * np.float32(0.9))])
    assert "On no site do they disagree" in html


@in_browser
def test_the_scale_of_the_maps_does_not_touch_that_of_the_matrix(visit, tmp_path):
    effects = make_effects(n=8)
    other = replace(effects, metric="<b>kl</b>", raw=-effects.raw)
    page = visit(effects.report(tmp_path / "p.html", others=[other]))
    page.click("button[data-view='raw']")
    assert page.locator("svg.bar .word-low").all_text_contents() == ["lowers", "opposite order"]
    assert "+ by logit_diff, − by <b>kl</b>" in page.locator("[aria-labelledby='metrics'] table").inner_text()
