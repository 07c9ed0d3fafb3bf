"""The workbench as its user has it: in Chromium, against a running server."""

import threading
import time
from pathlib import Path

import pytest
from transformers import BloomConfig, BloomForCausalLM

from browsing import MARKS, open_page
from builders_gemma import gemma
from builders_tasks import word_tokenizer
from builders_workbench import PAIR, drag, place_of, run, served, tiny, type_pair
from crosspatch.engine.units import SweepJob
from crosspatch.models import open_model

pytestmark = MARKS
COLOURED = "#maps .cells path[class^='p'], #maps .cells path[class^='n']"


def test_from_typing_to_findings(visit, server, tmp_path):
    """Type, run, hover, click, look at a head, patch jointly, keep, export, reload."""
    page = visit(server)
    type_pair(page)
    assert page.locator("#sheet .tokens .differs").count() == 1
    page.check("#kinds input[value='attn.head']")
    run(page)
    assert page.locator(COLOURED).count() == 3 * 16 + 3 * 4
    assert "resid.post" in page.inner_text("#finding") or "attn.head" in page.inner_text("#finding")
    assert "16" in page.inner_text("#status") or "60 sites" in page.inner_text("#status")

    page.mouse.move(*place_of(page, "resid.post", 1, 15))
    assert "resid.post[1]@15" in page.inner_text("#tip")
    page.mouse.click(*place_of(page, "resid.post", 1, 15))
    page.wait_for_selector("#inside .beside")
    assert "resid.post[1]@15" in page.inner_text("#inside h3")
    lefts = "all => all.map((each) => Math.round(each.getBoundingClientRect().left))"
    heads = page.eval_on_selector_all("#inside .beside th", lefts)
    assert heads == page.eval_on_selector_all("#inside .beside tr:nth-child(1) td", lefts)
    page.wait_for_selector("#lens .here")
    assert "after layer 1" in page.inner_text("#lens .here")

    page.mouse.click(*place_of(page, "attn.head", 2, 1))
    page.wait_for_selector("#attention canvas")
    assert "layer 2, head 1" in page.inner_text("#attention h3")
    drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0)"
    assert [each.evaluate(drawn) for each in page.locator("#attention canvas").all()] == [True, True]
    plain = page.locator("#attention figure p").all_inner_texts()
    page.select_option("#attention select", "value")
    assert "full colour is" in page.inner_text("#attention")
    weighted = page.locator("#attention figure p").all_inner_texts()
    assert weighted != plain
    page.mouse.click(*place_of(page, "attn.head", 2, 0))
    page.wait_for_selector("#attention h3:has-text('head 0')")
    assert page.input_value("#attention select") == "value"
    page.select_option("#attention select", "pattern")
    page.mouse.click(*place_of(page, "attn.head", 2, 1))
    page.wait_for_selector("#attention h3:has-text('head 1')")
    assert page.locator("#attention figure p").all_inner_texts() == plain

    drag(page, place_of(page, "resid.post", 0, 12), place_of(page, "resid.post", 1, 14))
    assert page.inner_text("#chosen") == "6 sites selected"
    page.click("#together")
    page.wait_for_selector("#inside h3:has-text('6 sites together')")
    page.fill("#inside .note", "a joint <b>patch</b>")
    page.click("#inside button:has-text('Keep')")
    page.wait_for_selector("#findings li")
    page.click("#keep-map button")
    page.wait_for_selector("#findings li >> nth=1")
    assert page.inner_text("#findings .note") == "a joint <b>patch</b>"

    for name, mark in (("report", "Findings on"), ("Python", "xp.patched_logits")):
        with page.expect_download() as caught:
            page.click(f"#exports a:has-text('{name}')")
        caught.value.save_as(tmp_path / name)
        assert mark in (tmp_path / name).read_text("utf-8")

    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    page.wait_for_selector("#keep-map:not(.gone)")
    assert page.input_value("#clean") == PAIR["clean"]
    assert page.locator(COLOURED).count() == 3 * 16 + 3 * 4
    assert page.locator("#findings li").count() == 2


def test_the_exported_report_opens_by_itself(browser, visit, server, tmp_path):
    """Without the server: no request, no complaint."""
    page = visit(server)
    type_pair(page)
    run(page)
    page.click("#keep-map button")
    page.wait_for_selector("#findings li")
    with page.expect_download() as caught:
        page.click("#exports a:has-text('report')")
    path, complaints = tmp_path / "report.html", []
    caught.value.save_as(path)
    report = open_page(browser, path, complaints)
    assert report.locator("svg.map").count() >= 1
    assert "xp.patch(" in report.inner_text("#command")
    report.close()
    assert complaints == []


def test_cells_arrive_one_by_one_and_a_sweep_is_cancelled(visit, server, monkeypatch):
    """Some are there while others are not; after the button no more come, and the next sweep runs."""
    run_unit = SweepJob.run

    def slow(job, unit):
        time.sleep(0.15)
        return run_unit(job, unit)

    monkeypatch.setattr("crosspatch.workbench.sweeps.PACK", 4)
    page = visit(server)
    type_pair(page)
    with monkeypatch.context() as slowly:
        slowly.setattr(SweepJob, "run", slow)
        page.click("#run")
        until = time.monotonic() + 20
        while page.evaluate("document.querySelector('#progress').value") < 0.75 and time.monotonic() < until:
            page.wait_for_timeout(30)
        assert page.locator("#maps .cells path.x").count() > 0
        assert page.locator(COLOURED).count() > 0
        page.click("#cancel")
        page.wait_for_selector("#status:has-text('cancelled')")
    assert page.is_disabled("#cancel")
    assert page.locator("#maps .cells path.x").count() > 0
    run(page)
    assert page.locator("#maps .cells path.x").count() == 0


def test_a_hostile_prompt_is_text(visit, server, tmp_path):
    """Tokens, answers, maps, attention, findings: nothing that was typed becomes markup."""
    clean = 'When Mary <script>alert(1)</script> and <img src=x onerror="alert(2)"> went'
    page = visit(server)
    type_pair(page, clean, clean.replace("Mary", "John"))
    page.check("#kinds input[value='attn.head']")
    run(page)
    page.mouse.click(*place_of(page, "attn.head", 1, 1))
    page.wait_for_selector("#attention canvas")
    page.wait_for_selector("#lens table")
    page.click("#keep-map button")
    page.wait_for_selector("#findings li")
    assert page.locator("main script, main img").count() == 0
    typed = "".join(page.locator("#sheet .tokens bdi:nth-of-type(1)").all_inner_texts())
    assert "<script>alert(1)</script>" in typed


def test_prompts_that_do_not_align_cannot_be_run(visit, server):
    """The reason stands beside the tokens; putting it right lets the sweep begin."""
    page = visit(server)
    page.fill("#clean", PAIR["clean"])
    page.fill("#corrupt", PAIR["corrupt"] + " the")
    page.wait_for_selector("#sheet .warnings")
    assert "17" in page.inner_text("#sheet .warnings")
    assert page.is_disabled("#run")
    type_pair(page)
    assert page.is_enabled("#run")


def test_an_old_map_is_looked_at_under_its_own_question(visit, server):
    """What was typed since is not what its cells tell of, and the page says that the two differ."""
    page = visit(server)
    type_pair(page)
    run(page)
    assert page.is_hidden("#stale")
    page.check("input[name=direction][value=noise]")
    type_pair(page, PAIR["clean"].replace("store", "school"), PAIR["corrupt"].replace("store", "school"))
    assert page.is_visible("#stale")
    page.mouse.click(*place_of(page, "resid.post", 1, 15))
    page.wait_for_selector("#inside .beside")
    assert "base (corrupted)" in page.inner_text("#inside thead")
    page.click("#inside button:has-text('Keep')")
    page.wait_for_selector("#findings li:has-text('resid.post[1]@15, denoise')")
    page.click("#run")
    page.wait_for_selector("#stale", state="hidden")


def test_the_keyboard_is_enough(visit, server):
    """Arrows move over a map, Space selects, Enter looks inside, Escape lets go."""
    page = visit(server)
    type_pair(page)
    page.focus("#run")
    page.keyboard.press("Enter")
    page.wait_for_selector("#keep-map:not(.gone)")
    figure = page.locator("#maps figure").first
    figure.focus()
    for key in ("ArrowDown", "ArrowUp", "ArrowRight", " "):
        page.keyboard.press(key)
    assert page.inner_text("#chosen") == "1 site selected"
    assert "resid.post[2]@1" in page.inner_text("#live")
    page.keyboard.press("Enter")
    page.wait_for_selector("#inside .beside")
    page.keyboard.press("Escape")
    assert page.locator("#joint.gone").count() == 1


def test_two_tabs_have_their_own_maps(browser, server):
    """One model, two pairs at once."""
    complaints, pages = [], []
    for _ in range(2):
        pages.append(open_page(browser, server.address, complaints, own=(server.address, "data:")))
    type_pair(pages[0])
    type_pair(pages[1], PAIR["clean"].replace("store", "school"), PAIR["corrupt"].replace("store", "school"))
    for page in pages:
        page.click("#run")
    for page, word in zip(pages, ("store", "school"), strict=True):
        page.wait_for_selector("#keep-map:not(.gone)")
        assert word in page.inner_text("#maps")
        page.close()
    assert complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (390, "light"), (900, "light"), (1500, "dark")])
def test_nothing_is_wider_than_the_window(visit, server, width, scheme):
    """A telephone, a small window, a wide one; both schemes."""
    page = visit(server, width=width, scheme=scheme)
    type_pair(page)
    page.check("#kinds input[value='attn.head']")
    run(page)
    page.locator("#maps figure").nth(0).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#inside .beside")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_server_that_has_ended_is_told(browser, tmp_path):
    """What the page says when nobody answers."""
    complaints = []
    with served(tiny(), Path(tmp_path)) as server:
        page = open_page(browser, server.address, complaints, own=(server.address, "data:"))
        type_pair(page)
    page.click("#run")
    page.wait_for_selector("#notice:has-text('does not answer')")
    page.close()


@pytest.mark.gemma
def test_the_real_model_names_its_own_answers(browser, tmp_path):
    """Gemma-3-270M, answers left empty: it says Mary and John, and the map finds the name and the end."""
    complaints = []
    with served(gemma(), tmp_path) as server:
        page = open_page(browser, server.address, complaints, own=(server.address, "data:"))
        page.fill("#clean", PAIR["clean"])
        page.fill("#corrupt", PAIR["corrupt"])
        page.wait_for_selector("#run:not([disabled])")
        assert page.locator("#sheet td bdi").all_inner_texts()[:2] == ["·Mary", "·John"]
        run(page)
        assert "at position 10 (John)" in page.inner_text("#finding")
        page.click("#strongest button >> nth=0")
        page.wait_for_selector("#inside .beside")
        assert page.locator("#inside .beside td bdi").first.inner_text() == "·Mary"
        page.close()
    assert complaints == []


def test_an_edit_that_is_undone_can_be_run(visit, server):
    """The pair that stands there was read already; an example chosen again too."""
    page = visit(server)
    type_pair(page)
    page.type("#clean", "x")
    assert page.is_disabled("#run")
    page.press("#clean", "Backspace")
    page.wait_for_selector("#run:not([disabled])")
    run(page)


def test_what_is_inside_belongs_to_the_map(visit, server):
    """A new map empties what an old one's cell told; a finding asked again brings its own."""
    page = visit(server)
    type_pair(page)
    page.check("#kinds input[value='attn.head']")
    run(page)
    page.mouse.click(*place_of(page, "attn.head", 2, 1))
    page.wait_for_selector("#attention canvas")
    page.click("#inside button:has-text('Keep')")
    page.wait_for_selector("#findings li:has(b:has-text('attn.head[2, 1]'))")
    type_pair(page, PAIR["clean"].replace("store", "school"), PAIR["corrupt"].replace("store", "school"))
    page.click("#run")
    page.wait_for_selector("#stale", state="hidden")
    assert page.locator("#inside table, #attention canvas, #lens table").count() == 0
    page.click("#findings li:has(b:has-text('attn.head[2, 1]')) button:has-text('ask again')")
    page.wait_for_selector("#inside h3:has-text('attn.head[2, 1]')")
    assert "store" in page.input_value("#clean")
    assert page.is_visible("#stale")
    assert page.locator("#attention canvas").count() == 0


def test_answers_that_were_cleared_make_the_map_an_old_one(visit, server):
    """The answers that are guessed then are others than the map's."""
    page = visit(server)
    type_pair(page)
    run(page)
    page.fill("#right", "")
    page.fill("#wrong", "")
    page.wait_for_selector("#sheet p:has-text('is what its run says next')")
    assert page.is_visible("#stale")


def test_seven_tabs_can_all_be_cancelled(browser, server, monkeypatch):
    """Browsers have six connections to a host: no tab's stream may hold one for long."""
    run_unit, gate = SweepJob.run, threading.Event()

    def slow(job, unit):
        gate.wait(0.6)
        return run_unit(job, unit)

    monkeypatch.setattr(SweepJob, "run", slow)
    monkeypatch.setattr("crosspatch.workbench.sweeps.PACK", 4)
    context = browser.new_context()
    pages = [context.new_page() for _ in range(7)]
    for page in pages:
        page.goto(server.address)
        page.wait_for_selector("html[data-ready]", state="attached")
        type_pair(page)
    for page in pages:
        page.click("#run")
        page.wait_for_selector("#cancel:not([disabled])")
    for page in pages:
        page.click("#cancel")
    for page in pages:
        page.wait_for_selector("#status:has-text('cancelled')", timeout=20_000)
    gate.set()
    context.close()


def test_a_server_that_dies_in_a_sweep_is_told(browser, tmp_path, monkeypatch):
    """Within seconds, where the numbers stood."""
    run_unit = SweepJob.run

    def slow(job, unit):
        time.sleep(0.2)
        return run_unit(job, unit)

    monkeypatch.setattr(SweepJob, "run", slow)
    monkeypatch.setattr("crosspatch.workbench.sweeps.PACK", 4)
    with served(tiny(), Path(tmp_path)) as server:
        page = open_page(browser, server.address, [], own=(server.address, "data:"))
        type_pair(page)
        page.click("#run")
        page.wait_for_selector(COLOURED)
    page.wait_for_selector("#status:has-text('the connection was lost')", timeout=10_000)
    page.close()


def test_without_storage_it_works(browser, server):
    """A browser that allows none: a reload begins anew, and nothing else is lost."""
    page = browser.new_page()
    page.add_init_script("Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('denied') } })")
    page.goto(server.address)
    page.wait_for_selector("html[data-ready]", state="attached")
    type_pair(page)
    run(page)
    page.close()


def test_a_broken_memory_and_a_pair_that_does_not_align_lose_no_map(visit, server):
    """What was kept over a reload may be anything; a map stands though the form has another pair."""
    page = visit(server)
    type_pair(page)
    run(page)
    page.fill("#corrupt", PAIR["corrupt"] + " the")
    page.wait_for_selector("#sheet .warnings")
    page.reload()
    page.wait_for_selector("#keep-map:not(.gone)")
    assert page.is_visible("#stale")
    page.evaluate("sessionStorage.question = '{'")
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")


def test_holes_of_a_map_cannot_be_selected(visit, server):
    """A selection of two sites has a map of many cells."""
    page = visit(server)
    type_pair(page)
    page.fill("#sites", "resid.post[0]@12, resid.post[2]@15")
    run(page)
    page.keyboard.down("Shift")
    for row, column in ((1, 0), (0, 0)):  # a hole and a site
        page.mouse.click(*place_of(page, "resid.post", row, column))
    page.keyboard.up("Shift")
    assert page.inner_text("#chosen") == "1 site selected"
    page.click("#together")
    page.wait_for_selector("#inside h3:has-text('resid.post[0]@12')")


def test_why_there_is_no_attention_stands_in_its_place(browser, tmp_path):
    """And is not wiped by what is asked next."""
    tokenizer = word_tokenizer()
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4)
    with served(open_model(BloomForCausalLM(config).eval(), tokenizer=tokenizer), tmp_path) as server:
        page = open_page(browser, server.address, [], own=(server.address, "data:"))
        page.fill("#clean", "When Mary went to the")
        page.fill("#corrupt", "When John went to the")
        page.fill("#sites", "attn.head")
        page.wait_for_selector("#run:not([disabled])")
        run(page)
        page.mouse.click(*place_of(page, "attn.head", 1, 1))
        page.wait_for_selector("#lens table")
        assert "attn.pattern cannot be used" in page.inner_text("#attention")
        page.close()
