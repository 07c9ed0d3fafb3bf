"""The page in Chromium without a network: nothing is refused by its policy, and every control works."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from browsing import MARKS, open_page, spot
from builders import make_effects, small_effects, with_holes
from crosspatch.engine.effects import ExampleView
from crosspatch.sites import Site

EVIL = "</script><img src=x onerror=alert(1)>"
pytestmark = MARKS


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_effects(heads=4).report(tmp_path_factory.mktemp("page") / "ioi.html")


def pressed(page):
    return page.eval_on_selector_all("button[aria-pressed='true']", "all => all.map((each) => each.textContent)")


def classes(page, panel):
    return page.eval_on_selector_all(
        f"figure[data-panel='{panel}'] .cells > path", "all => all.map((each) => each.getAttribute('class'))"
    )


def test_it_draws_under_its_own_policy(visit, path):
    page = visit(path)
    assert [len(classes(page, panel)) for panel in range(4)] == [270, 270, 270, 72]
    assert page.locator("h1").inner_text().startswith("Restoring resid.pre")
    blue = page.eval_on_selector(".cells path.p17", "cell => getComputedStyle(cell).fill")
    assert blue not in ("rgb(0, 0, 0)", "rgb(255, 255, 255)")


def test_the_policy_refuses_another_script(browser, path, tmp_path):
    """The check of every other test here can fail: an injected script is refused and reported."""
    changed = tmp_path / "changed.html"
    changed.write_text(path.read_text().replace("<main>", "<main><script>document.title = 'owned'</script>"))
    complaints = []
    page = open_page(browser, changed, complaints)
    assert page.title() != "owned"
    page.close()
    assert "refused script-src-elem" in complaints


def test_pointing_at_a_cell_shows_its_numbers(visit, path):
    page = visit(path)
    assert page.locator("#tip").is_hidden()
    page.mouse.move(*spot(page, 0, 17, 14))
    text = page.locator("#tip").inner_text()
    effects = make_effects(heads=4)
    number = next(i for i, site in enumerate(effects.sites) if str(site) == "resid.pre[17]@14")
    low, high = (end[number] for end in effects.interval())
    assert "resid.pre[17]@14" in text
    assert f"{effects.mean()[number]:.3f} [{low:.3f}, {high:.3f}]" in text
    assert "24 pairs" in text
    assert page.locator("#tip svg.strip .dots").get_attribute("d").count("M") == 24
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()


def test_a_zero_by_construction_says_so(visit, path):
    page = visit(path)
    page.mouse.move(*spot(page, 0, 3, 2))
    assert "exactly 0: both runs agree here" in page.locator("#tip").inner_text()


def test_cells_that_were_not_run_say_so(visit, tmp_path):
    effects = with_holes(make_effects(layers=4, n=9), share=0.3)
    page = visit(effects.report(tmp_path / "p.html"))
    number = next(i for i, values in enumerate(effects.raw) if np.isnan(values).all())
    page.mouse.move(*spot(page, 0, effects.sites[number].layer, effects.sites[number].position))
    assert "not run" in page.locator("#tip").inner_text()


def test_raw_and_normalised(visit, path):
    page = visit(path)
    assert pressed(page) == ["normalised", "one scale"]
    before = classes(page, 0)
    page.click("button[data-view='raw']")
    assert pressed(page) == ["raw", "one scale"]
    assert classes(page, 0) == before  # the same colours: the gap is positive and both scales are one
    assert page.locator("svg.bar .word-high").text_content() == "raises"
    assert page.locator("svg.bar .unit").text_content() == "logits"
    page.mouse.move(*spot(page, 0, 17, 14))
    assert "logits" in page.locator("#tip").inner_text()
    page.click("button[data-view='normalised']")
    assert page.locator("svg.bar .word-high").text_content() == "restores"


def test_raw_colours_turn_over_where_the_gap_is_negative(visit, tmp_path):
    page = visit(make_effects(direction="noise", kinds=("attn.out",), n=9).report(tmp_path / "p.html"))
    before = classes(page, 0)
    page.click("button[data-view='raw']")
    turned = [name.replace("p", "?").replace("n", "p").replace("?", "n") for name in before]
    assert [name for name in classes(page, 0) if name != "p0"] == [name for name in turned if name not in ("n0", "p0")]


def test_each_map_can_have_its_own_scale(visit, path):
    page = visit(path)
    assert not {"p20", "n20"} & set(classes(page, 2))
    page.click("button[data-own='yes']")
    assert {"p20", "n20"} & set(classes(page, 2))
    assert "± 0." in page.locator("figure[data-panel='2'] .limit").text_content()
    page.click("button[data-own='no']")
    assert not {"p20", "n20"} & set(classes(page, 2))


def test_clicked_cells_are_kept_until_removed(visit, path):
    page = visit(path)
    page.mouse.click(*spot(page, 0, 17, 14))
    page.mouse.click(*spot(page, 3, 11, 2))
    rows = page.locator("#pinned tbody tr")
    assert rows.count() == 2
    assert "resid.pre[17]@14" in rows.nth(0).inner_text()
    assert "attn.head[11, 2]@end" in rows.nth(1).inner_text()
    assert "pair" in rows.nth(1).inner_text()
    rows.nth(0).get_by_role("button", name="remove resid.pre[17]@14").click()
    assert rows.count() == 1
    page.mouse.click(*spot(page, 3, 11, 2))
    assert rows.count() == 0
    assert "Cells that you click stay here." in page.locator("#pinned").inner_text()


def test_the_keyboard_reaches_every_cell(visit, path):
    page = visit(path)
    page.focus("button[data-own='yes']")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.panel") == "0"
    assert "resid.pre[17]@0" in page.locator("#tip").inner_text()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert "resid.pre[16]@1" in page.locator("#tip").inner_text()
    assert "resid.pre[16]@1" in page.locator("#live").text_content()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert "resid.pre[16]@14" in page.locator("#pinned tbody").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_downloads_hold_everything_shown(visit, path):
    page = visit(path)
    effects = make_effects(heads=4)
    with page.expect_download() as waiting:
        page.click("button[data-save='csv']")
    assert waiting.value.suggested_filename == "ioi-gemma-3-270m.csv"
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text())))
    assert [row["site"] for row in rows] == [str(site) for site in effects.sites]
    np.testing.assert_allclose([float(row["mean"]) for row in rows], effects.mean(), rtol=1e-6)
    np.testing.assert_allclose([float(row["raw_pair_23"]) for row in rows], effects.raw[:, 23], rtol=1e-6)
    with page.expect_download() as waiting:
        page.click("button[data-save='json']")
    whole = json.loads(Path(waiting.value.path()).read_text())
    assert whole["about"]["model"] == "gemma-3-270m"
    assert len(whole["sites"]) == 882
    np.testing.assert_allclose(whole["sites"][0]["raw"], effects.raw[0], rtol=1e-6)


def test_the_command_can_be_copied(visit, path):
    page = visit(path)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("button[data-copy]")
    page.get_by_text("copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("crosspatch patch gemma-3-270m")


def test_dark_mode_is_dark(visit, path):
    page = visit(path, scheme="dark")
    sums = page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector(".cells path.p0")).fill].map(
            (colour) => colour.match(/[0-9]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b))"""
    )
    page_colour, ink, zero = sums
    assert page_colour < 150 < zero + 60 < ink
    page.mouse.move(*spot(page, 0, 17, 14))
    assert page.locator("#tip").is_visible()


@pytest.mark.parametrize("width", [700, 1280])
def test_nothing_is_wider_than_the_window_and_no_two_maps_meet(visit, path, width):
    page = visit(path, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.eval_on_selector_all(
        "svg.map", "all => all.map((e) => e.getBoundingClientRect()).map((b) => [b.left, b.top, b.right, b.bottom])"
    )
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other_left, other_top, other_right, other_bottom in boxes[:i]:
            apart = left >= other_right or other_left >= right or top >= other_bottom or other_top >= bottom
            assert apart
    assert cut_labels(page) == []


def cut_labels(page):
    """List the labels of maps that reach out of their picture."""
    return page.eval_on_selector_all(
        "svg.map text",
        """all => all.filter((text) => {
            const box = text.getBoundingClientRect(), svg = text.closest("svg").getBoundingClientRect();
            return box.left < svg.left - 1 || box.right > svg.right + 1 || box.bottom > svg.bottom + 1;
        }).map((text) => text.textContent)""",
    )


@pytest.mark.parametrize("token", ["WWWWWWWWWWWWWWWW", "\N{CJK UNIFIED IDEOGRAPH-6F22}" * 20, "i", "\N{FIRE}"])
@pytest.mark.parametrize("length", [1, 3, 60])
def test_labels_of_any_letters_stay_inside(visit, tmp_path, token, length):
    view = ExampleView((token,) * length, (*(token,) * (length - 1), "x"), "a", "b", {"a-long-name": 0})
    sites = [Site("resid.pre", layer, None, place) for layer in range(40) for place in range(length)]
    sites += [Site("attn.v", 0, head, place) for head in range(3) for place in ("end", 0)]
    effects = small_effects(sites, np.ones((len(sites), 8)), examples=(view,) * 8, layers=40)
    assert cut_labels(visit(effects.report(tmp_path / "p.html"))) == []


def test_three_maps_stand_side_by_side_on_a_desktop(visit, path):
    page = visit(path)
    tops = page.eval_on_selector_all("svg.map", "all => all.slice(0, 3).map((e) => e.getBoundingClientRect().top)")
    assert len(set(tops)) == 1


def test_evil_tokens_do_nothing(visit, tmp_path):
    """Neither in the body, nor in the data, nor in what the script builds from it."""
    view = ExampleView((EVIL, " a"), ("b", EVIL), EVIL, EVIL, {EVIL: 1})
    sites = [Site("resid.pre", layer, None, place) for layer in range(2) for place in (0, 1)]
    texts = {"model": EVIL, "task": EVIL, "metric_unit": EVIL, "provenance": {"command": EVIL}}
    effects = small_effects(sites, np.ones((4, 8)), examples=(view,) * 8, **texts)
    page = visit(effects.report(tmp_path / "p.html"))
    page.click("button[data-view='raw']")
    page.mouse.click(*spot(page, 0, 0, 0))
    assert EVIL in page.locator("#tip").inner_text()
    assert EVIL in page.locator("#pinned").inner_text()
    assert page.locator("img").count() == 0


def test_a_page_of_neurons_works_without_a_map(visit, tmp_path):
    sites = [Site("mlp.hidden", layer, unit, "end") for layer in range(3) for unit in range(2048)]
    effects = small_effects(sites, np.random.default_rng(0).normal(0, 1, (len(sites), 8)), layers=3)
    page = visit(effects.report(tmp_path / "p.html"))
    with page.expect_download() as waiting:
        page.click("button[data-save='csv']")
    assert len(Path(waiting.value.path()).read_text().splitlines()) == 21


def test_without_script_the_picture_and_the_tables_are_there(browser, path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("svg.map").count() == 4
    assert page.locator("table").count() >= 3
    context.close()


def test_it_prints_without_its_controls(visit, path):
    page = visit(path)
    page.emulate_media(media="print")
    assert page.locator("button[data-view='raw']").is_hidden()
    assert page.locator("svg.map").first.is_visible()
