"""Heads in Chromium: a click or Enter opens what a head attends to, in both runs; Escape closes it."""

import re
from dataclasses import replace

import numpy as np
import pytest

from browsing import MARKS, spot
from builders import make_effects, make_patterns, small_effects
from crosspatch.report import write_page
from crosspatch.sites import Site

EVIL = "<script>alert(1)</script>"
pytestmark = MARKS
EFFECTS = make_effects(heads=4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return EFFECTS.report(tmp_path_factory.mktemp("page") / "ioi.html", attention=make_patterns(EFFECTS))


def inks(page):
    """Count the different colours in each canvas."""
    return page.eval_on_selector_all(
        "#attention-view canvas",
        """all => all.map((canvas) => {
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(data.buffer)).size;
        })""",
    )


def chosen(page, part):
    return page.eval_on_selector(f"#choose-{part}", "each => each.selectedOptions[0].textContent")


def opened(page, row=11, column=2, panel=3):
    page.mouse.click(*spot(page, panel, row, column))
    page.wait_for_selector("#attention-view:not(.gone)")
    return page


def pixel(page, run, row, column):
    """Give the place in the window of a cell of a board, measured as the page lays it out."""
    board = page.locator(f"#attention-view figure[data-run='{run}']")
    board.focus()
    page.keyboard.press("Home")
    for _ in range(15):
        page.keyboard.press("ArrowUp")
    for key, times in (("ArrowDown", row), ("ArrowRight", column)):
        for _ in range(times):
            page.keyboard.press(key)
    box = board.locator(".spot").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_click_opens_both_runs_and_escape_closes_them(visit, path):
    page = visit(path)
    assert page.locator("#attention-view").is_hidden()
    opened(page)
    assert chosen(page, "head") == "attn.head[11, 2]"
    assert page.locator("#attention-view canvas").count() == 2
    assert min(inks(page)) > 20
    assert page.locator("#attention-view h4").all_inner_texts() == ["clean run", "corrupted run"]
    assert page.locator(".most").first.inner_text().startswith("end “to” → S1 “John” 0.98")
    page.keyboard.press("Escape")
    assert page.locator("#attention-view").is_hidden()


def test_enter_opens_it_too_and_the_same_cell_again_closes_it(visit, path):
    page = visit(path)
    page.focus("figure[data-panel='3']")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_selector("#attention-view:not(.gone)")
    assert chosen(page, "head") == "attn.head[17, 3]"
    page.keyboard.press("Enter")
    assert page.locator("#attention-view").is_hidden()


def test_cells_of_other_maps_open_nothing(visit, path):
    page = visit(path)
    page.mouse.click(*spot(page, 0, 17, 14))
    assert page.locator("#pinned tbody tr").count() == 1
    assert page.locator("#attention-view").is_hidden()


def test_pair_and_head_can_be_chosen(visit, path):
    page = opened(visit(path))
    before = page.locator(".most").first.inner_text()
    page.select_option("#choose-pair", label="pair 7")
    example = EFFECTS.examples[7]
    told = page.locator(".most").first.inner_text()
    assert told != before
    assert f"S1 “{example.clean_tokens[4].strip()}”" in told
    page.select_option("#choose-head", label="attn.head[0, 1]")
    assert (
        page.locator("canvas").first.get_attribute("aria-label").startswith("Attention of attn.head[0, 1], clean run")
    )
    assert page.locator("#choose-pair option").count() == 8


def test_pointer_and_keyboard_tell_every_weight(visit, path):
    """The value in the tip is the byte of that run, head, query and key."""
    page = opened(visit(path))
    patterns = make_patterns(EFFECTS)
    weight = patterns.patterns[0][1, 46, 10, 4] / 255
    where = pixel(page, 1, 10, 4)
    tip = page.locator("#tip").inner_text()
    assert "S2 “Lucy” → S1 “John”" in tip
    assert f"{weight:.2f} corrupted run" in tip
    assert "S2 “Lucy” → S1 “John”" in page.locator("#live").text_content()
    page.mouse.move(5, 5)
    page.mouse.move(*where)
    assert page.locator("#tip").inner_text() == tip


def test_attention_is_weighted_by_what_is_written(visit, path):
    """The tip is the byte times the size that was kept; both boards share a scale, which the words name."""
    page = opened(visit(path))
    plain = page.locator("#attention-view .most").all_inner_texts()
    page.select_option("#choose-weighting", "value")
    kept = make_patterns(EFFECTS)
    weights = kept.patterns[0][:, 46] / 255 * kept.sizes[0][:, 46, None]
    most = re.search(r"\(at most (.+)\)", page.locator("#attention-about").inner_text())
    assert float(most[1]) == pytest.approx(float(weights.max()), abs=0.02)
    pixel(page, 1, 10, 4)
    told = page.locator("#tip .value").inner_text()
    assert float(told) == pytest.approx(float(weights[1, 10, 4]), abs=0.03)
    assert weights[0, 14].argmax() == 4
    assert page.locator(".most").first.inner_text().startswith("end “to” → S1 “John” ")
    assert page.locator("#attention-view .most").all_inner_texts() != plain
    page.select_option("#choose-weighting", "pattern")
    assert page.locator("#attention-view .most").all_inner_texts() == plain


def test_focus_goes_back_to_the_map(visit, path):
    page = opened(visit(path))
    page.click("#attention-close")
    assert page.locator("#attention-view").is_hidden()
    assert page.evaluate("document.activeElement.dataset.panel") == "3"


def test_a_shared_key_names_the_heads_that_read_it(visit, tmp_path):
    """One key and value for four heads, as in Gemma: the first is shown, all can be chosen."""
    sites = [Site("attn.k", layer, 0, "S1") for layer in range(2)]
    effects = small_effects(sites, np.ones((2, 8)))
    page = opened(visit(write_page(effects, tmp_path / "p.html", attention=make_patterns(effects))), 1, 0, 0)
    assert chosen(page, "head") == "attn.head[1, 0]"
    assert "attn.k[1, 0]@S1 is read by heads 0 to 3" in page.locator("#attention-about").inner_text()
    for each in page.locator(".most").first.inner_text().split(" · "):
        assert "→ S1 “" in each


def test_evil_tokens_are_shown_as_text(visit, tmp_path):
    evil = (EVIL,) * 15
    examples = tuple(replace(e, clean_tokens=evil, corrupt_tokens=evil, names={EVIL: 14}) for e in EFFECTS.examples)
    effects = replace(EFFECTS, examples=examples)
    page = opened(visit(effects.report(tmp_path / "p.html", attention=make_patterns(effects))))
    assert EVIL in page.locator(".most").first.inner_text()
    assert EVIL in page.locator("#attention table").inner_text()
    pixel(page, 0, 3, 1)
    assert EVIL in page.locator("#tip").inner_text()


def test_dark_boards_are_dark_and_follow_a_change(visit, path):
    page = opened(visit(path, scheme="dark"))
    corner = """() => { const c = document.querySelector("#attention-view canvas");
        const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        copy.drawImage(c, c.width - 10, 8, 1, 1, 0, 0, 1, 1);
        return Array.from(copy.getImageData(0, 0, 1, 1).data).slice(0, 3); }"""
    assert sum(page.evaluate(corner)) < 150
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"() => ({corner})().reduce((a, b) => a + b) > 600")


@pytest.mark.parametrize("length", [15, 120])
def test_nothing_is_wider_than_a_telephone(visit, tmp_path, length):
    tokens = tuple(f"word{i}" for i in range(length))
    examples = tuple(replace(e, clean_tokens=tokens, corrupt_tokens=tokens) for e in EFFECTS.examples[:8])
    effects = small_effects([Site("attn.head", 1, 0, "end")], np.ones((1, 8)), examples=examples)
    page = opened(visit(write_page(effects, tmp_path / "p.html", attention=make_patterns(effects)), width=390), 1, 0, 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    inner = page.eval_on_selector_all("#attention-view figure", "all => all.map((e) => [e.scrollWidth, e.clientWidth])")
    assert all(content <= room for content, room in inner)
    assert min(inks(page)) > 10


def test_without_script_the_maps_and_the_table_are_there(browser, path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("svg.map").count() == 4
    assert page.locator("#attention noscript p").is_visible()
    assert page.locator(".needs-script").is_hidden()
    assert "S1 “John” 0.98" in page.locator("#attention table").inner_text()
    context.close()


def test_it_prints_what_is_open_without_its_controls(visit, path):
    page = opened(visit(path))
    page.emulate_media(media="print")
    assert page.locator("#attention canvas").first.is_visible()
    assert page.locator("#choose-head").is_visible()  # or nobody knew which head it is
    assert page.locator("#attention-close").is_hidden()
    page.set_viewport_size({"width": 715, "height": 980})  # a sheet of A4 without its margins
    assert page.evaluate(
        """() => [...document.querySelectorAll("table, canvas")].filter((each) => each.offsetParent)
            .every((each) => each.getBoundingClientRect().right <= innerWidth + 1)"""
    )


def test_neurons_are_no_heads(visit, tmp_path):
    """Their maps stand beside those of heads, and their sites are written alike."""
    sites = [
        Site(kind, layer, unit, "end") for kind in ("attn.head", "mlp.hidden") for layer in (0, 1) for unit in (0, 1)
    ]
    effects = small_effects(sites, np.ones((8, 8)))
    page = visit(write_page(effects, tmp_path / "p.html", attention=make_patterns(effects)))
    page.mouse.click(*spot(page, 1, 1, 1))
    assert "mlp.hidden[1, 1]@end" in page.locator("#pinned tbody").inner_text()
    page.wait_for_timeout(200)
    assert page.locator("#attention-view").is_hidden()
