"""Several runs on one page: one scale, sites that both have, differences with their intervals, refusals in words."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from browsing import in_browser, spot
from builders import make_effects, make_examples, small_effects
from crosspatch.core.errors import BadInput
from crosspatch.core.stats import bootstrap_difference, bootstrap_mean, spearman
from crosspatch.engine.effects import Effects
from crosspatch.report import compare_page
from crosspatch.report.compare import compare_html
from crosspatch.report.contrast import contrast
from crosspatch.sites import Site

EVIL = "<script>alert(1)</script>"
FIRST = make_effects(heads=4)
SECOND = replace(make_effects(heads=4, seed=3), model="other-model")
SITES = [Site("resid.pre", layer, None, 10) for layer in range(4)]


def run(means, *, seed=1, gap=2.0, n=8, **changes):
    """Make effects with these means as shares of a gap that is the same in all pairs."""
    values = np.asarray(means)[:, None] + 0.1 * np.random.default_rng(seed).standard_normal((len(means), n))
    ends = {"base": np.zeros(n, np.float32), "source": np.full(n, gap, np.float32)}
    return small_effects(SITES[: len(means)], gap * values, n=n, layers=4, **ends, **changes)


def facts_of(html):
    return json.loads(re.search(r'id="facts">(.*?)</script>', html, re.S)[1])


def test_all_maps_are_on_one_scale_that_holds_every_value():
    strong = replace(SECOND, raw=SECOND.raw * np.float32(1.6))
    html = compare_html([("a", FIRST), ("b", strong)])
    top = max(float(np.abs(each.mean()).max()) for each in (FIRST, strong))
    facts = facts_of(html)
    assert 1.5 < top <= facts["limits"]["normalised"] * 1.03
    assert f"All maps are on one scale, ± {facts['limits']['normalised']:.3g} (share of the gap)" in html
    found = set(re.findall(r'aria-label="Heat map of [^"]*colours from (-\S+ hurts to \S+ restores)', html))
    assert len(found) == 1


def test_each_kind_stands_side_by_side_and_the_script_knows_each_cell():
    html = compare_html([("a", FIRST), ("b", SECOND)])
    labels = re.findall(r'<figure data-panel="(\d)" tabindex="0" aria-label="(.*?):', html)
    kinds = ["resid.pre", "attn.out", "mlp.out", "attn.head @end"]
    assert labels == [
        (str(2 * i + k), f"{name}, {kind}") for i, kind in enumerate(kinds) for k, name in enumerate("ab")
    ]
    facts = facts_of(html)
    assert facts["sites"] == 2 * 882
    cells = [site for panel in facts["panels"] for row in panel["index"] for site in row]
    assert sorted(cells) == list(range(2 * 882))


def test_findings_and_the_chips_that_differ_stand_with_each_run():
    html = compare_html([("a", FIRST), ("b", SECOND)])
    common, rest = html.split('<section aria-labelledby="runs">')
    assert "<span>task</span> ioi" in common
    assert "<span>task</span>" not in rest
    assert "<span>model</span> other-model" in rest
    assert "<span>model</span>" not in common
    assert rest.count("Restoring") >= 2


def test_differences_of_the_same_pairs_are_paired():
    """What pairs share drops out: the interval is that of the mean of differences."""
    first, second = run([0.5, 0.2]), run([0.4, 0.2], gap=4.0)
    found = contrast(("a", first), ("b", second))
    low, high = bootstrap_mean(first.values.astype(float) - second.values.astype(float))
    difference = float(first.mean()[0] - second.mean()[0])
    assert found.lines[0].difference == f"{difference:.2f} [{low[0]:.2f}, {high[0]:.2f}]"
    assert "same pairs" in found.how


def test_differences_of_other_pairs_are_not():
    first, second = run([0.5, 0.2]), run([0.4, 0.2], seed=5, n=6)
    assert second.examples != first.examples
    found = contrast(("a", first), ("b", second))
    low, high = bootstrap_difference(first.values, second.values)
    assert found.lines[0].difference.endswith(f"[{low[0]:.2f}, {high[0]:.2f}]")
    assert "different pairs" in found.how
    assert "The runs have different pairs." in compare_html([("a", first), ("b", second)])


def test_correlations_are_over_sites_that_do_something():
    """Thousands of zeros by construction would make any two runs agree."""
    first, second = run([0.5, 0.1, 0.3, 0.0]), run([0.2, 0.4, 0.3, 0.0])
    still = np.ones((4, 1), np.float32)
    still[3] = 0
    first, second = replace(first, raw=first.raw * still), replace(second, raw=second.raw * still)
    found = contrast(("a", first), ("b", second))
    assert (
        f"Spearman {spearman(first.mean()[:3], second.mean()[:3]):.2f} over the mean effects of 3 sites" in found.text
    )
    assert "1 more have no effect by construction in both" in found.text
    assert found.svg.count("<circle") == 3 + 1  # the legend's


def test_runs_that_share_no_site_say_so():
    other = small_effects([Site("mlp.out", 0, None, 10)], np.ones((1, 8)))
    assert "The runs share no site." in compare_html([("a", run([0.5])), ("b", other)])


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([("a", FIRST)], "two runs or more"),
        ([("a", FIRST), ("a", SECOND)], "a name of its own"),
        ([("a", FIRST), ("b", replace(SECOND, metric="prob", metric_unit="probability"))], "different units"),
        ([("a", FIRST), ("b", replace(SECOND, source=SECOND.base))], "b has no gap"),
    ],
)
def test_what_cannot_share_a_scale_is_refused(results, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        compare_page(results, tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()


def test_raw_effects_share_the_metrics_unit():
    flat = [(name, replace(each, source=each.base)) for name, each in (("a", FIRST), ("b", SECOND))]
    html = compare_html(flat)
    assert "(logits)" in html
    assert not facts_of(html)["normalised"]


def test_what_differs_in_kind_is_told():
    noise = make_effects(direction="noise", heads=4)
    html = compare_html([("a", FIRST), ("b", noise)])
    assert "differ in direction" in html
    assert "hurts / strengthens" in html
    html = compare_html([("a", FIRST), ("b", replace(SECOND, metric="right_logit", layers=20))])
    assert "different metrics of one unit (logit_diff, right_logit)" in html
    assert "differ in depth" in html
    one = make_effects(kinds=("resid.pre",))
    assert "Not drawn, since only one run has them or they are too many: attn.out, mlp.out" in compare_html(
        [("a", make_effects()), ("b", one)]
    )


def test_three_runs_are_each_compared_with_the_first():
    html = compare_html([("a", FIRST), ("b", SECOND), ("c", make_effects(seed=8))])
    assert re.findall(r"<bdi>(\w)</bdi> against <bdi>(\w)</bdi>", html) == [("a", "b"), ("a", "c")]


def test_two_real_shapes_stay_small():
    html = compare_html([("a", make_effects(heads=4, n=64)), ("b", make_effects(heads=4, n=64, seed=1))])
    assert len(html.encode()) <= 600 * 1024


def evil() -> Effects:
    view = replace(make_examples(1)[0], clean_tokens=(EVIL,) * 12, corrupt_tokens=(EVIL,) * 12, names={EVIL: 10})
    about = {"command": EVIL, "time": EVIL}
    return replace(run([0.5, 0.2]), examples=(view,) * 8, model=EVIL, task=EVIL, provenance=about)


def test_what_is_left_out_for_size_is_said(monkeypatch):
    results = [("one", make_effects(layers=3, n=8)), ("two", make_effects(layers=3, n=8, seed=1))]
    assert "left out here" not in compare_html(results)
    monkeypatch.setattr("crosspatch.report.payload.MOST_LETTERS", 100)
    html = compare_html(results)
    assert "Values of single pairs are left out here" in html
    assert "rounded to 15 significant bits" in html


def test_evil_texts_stay_texts():
    html = compare_html([(EVIL, evil()), ("b", run([0.4, 0.1]))])
    assert EVIL not in html
    assert html.count("<script") == 4


# ---- in a browser ---------------------------------------------------------------------------------------------------


@in_browser
def test_it_works_under_its_policy_and_asks_for_nothing(visit, tmp_path):
    page = visit(compare_page([("a", FIRST), ("b", SECOND)], tmp_path / "p.html"))
    page.mouse.move(*spot(page, 1, 17, 14))
    text = page.locator("#tip").inner_text()
    number = next(i for i, site in enumerate(SECOND.sites) if str(site) == "resid.pre[17]@14")
    low, high = (end[number] for end in SECOND.interval())
    assert "b · resid.pre[17]@14" in text
    assert f"{SECOND.mean()[number]:.3f} [{low:.3f}, {high:.3f}]" in text
    assert page.locator("#tip svg.strip .dots").get_attribute("d").count("M") == 24
    page.focus("figure[data-panel='0']")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert "a · resid.pre[17]@14" in page.locator("#pinned tbody").inner_text()


@in_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(visit, tmp_path, width):
    names = ("a_long_name_of_a_run_" * 3 + "1", "a_long_name_of_a_run_" * 3 + "2")
    page = visit(compare_page(list(zip(names, (FIRST, SECOND), strict=True)), tmp_path / "p.html"), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg.map text").first.text_content() == "a_long_name_of_a…ame_of_a_run_1"


@in_browser
def test_evil_texts_do_nothing(visit, tmp_path):
    page = visit(compare_page([(EVIL, evil()), ("b", run([0.4, 0.1]))], tmp_path / "p.html"))
    page.mouse.click(*spot(page, 0, 0, 0))
    assert EVIL in page.locator("#tip").inner_text()
    assert EVIL in page.locator("#pinned").inner_text()
    assert EVIL in page.locator("h1").inner_text()


@in_browser
def test_without_script_maps_and_tables_are_there(browser, tmp_path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(compare_page([("a", FIRST), ("b", SECOND)], tmp_path / "p.html").as_uri())
    assert page.locator("svg.map").count() == 8
    assert page.locator("table tbody tr").count() >= 22
    context.close()
