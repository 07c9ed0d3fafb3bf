"""The form of the workbench, and what the page keeps: nothing is asked that was not meant, and nothing is lost."""

import json
import threading

import pytest

from browsing import MARKS, open_page
from builders_workbench import PAIR, place_of, run, type_pair
from crosspatch.engine.units import SweepJob
from crosspatch.workbench.pairs import read_pair

pytestmark = MARKS


@pytest.fixture
def slowly(monkeypatch):
    """Make each pack of a sweep wait a little."""
    run_unit, gate = SweepJob.run, threading.Event()

    def slow(job, unit):
        gate.wait(0.3)
        return run_unit(job, unit)

    monkeypatch.setattr(SweepJob, "run", slow)
    monkeypatch.setattr("crosspatch.workbench.sweeps.PACK", 2)
    yield
    gate.set()


def kept_with(server, right, wrong):
    """Keep a map of a pair with answers of its own, through the server; give its title."""
    asked = {"pair": PAIR | {"right": right, "wrong": wrong}, "sites": "resid.post@15", "direction": "denoise"}
    made = server.ask("POST", "sweeps", asked | {"metric": None})[1]
    result = server.events(made["sweep"])[-1][2]["result"]
    return server.ask("POST", "findings", {"result": result, "note": f"{right} {wrong}"})[1]["name"]


@pytest.mark.parametrize(("right", "wrong"), [([" Mary"], ["\n"]), (["|"], [" John"])])
def test_a_finding_is_asked_again_as_it_was(visit, server, right, wrong):
    """Also with answers that its boxes cannot write, where a bar parts answers and a line end is lost; reloaded too."""
    kept_with(server, right, wrong)
    page = visit(server)
    again = f"#findings li:has(.note:has-text({json.dumps(str(right))})) button:has-text('ask again')"
    for _ in range(2):
        with page.expect_request("**/api/sweeps") as asked:
            page.locator(again).first.click()
        pair = asked.value.post_data_json["pair"]
        assert (pair["right"], pair["wrong"]) == (right, wrong)
        page.wait_for_selector("#keep-map:not(.gone)")
        page.reload()
        page.wait_for_selector("#keep-map:not(.gone)")
        assert page.is_hidden("#stale")
    page.fill("#right", " the")  # now the boxes are meant
    page.wait_for_selector("#run:not([disabled])")
    with page.expect_request("**/api/sweeps") as asked:
        page.click("#run")
    assert asked.value.post_data_json["pair"]["right"] == [" the"]


def test_kinds_that_this_model_refuses_are_never_ticked(browser, server):
    """A window remembers what was ticked on another model."""
    page = browser.new_page()

    def refuse(route):
        answer = route.fetch()
        about = answer.json()
        for kind in about["kinds"]:
            kind["refused"] = "this model has none." if kind["kind"] == "resid.mid" else kind["refused"]
        route.fulfill(response=answer, json=about)

    page.goto(server.address)
    page.wait_for_selector("html[data-ready]", state="attached")
    type_pair(page)
    page.check("#kinds input[value='resid.mid']")
    page.route("**/api/model", refuse)
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.is_disabled("#kinds input[value='resid.mid']")
    assert not page.is_checked("#kinds input[value='resid.mid']")
    page.wait_for_selector("#run:not([disabled])")
    run(page)
    page.close()


@pytest.mark.usefixtures("slowly")
@pytest.mark.parametrize("reload", [False, True])
def test_a_window_out_of_another_leaves_its_sweep_alone(browser, server, reload):
    """It shows the same map, also after a reload, and does not end it with a question of its own."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.address)
    page.wait_for_selector("html[data-ready]", state="attached")
    type_pair(page)
    page.click("#run")
    page.wait_for_selector("#cancel:not([disabled])")
    with page.expect_popup() as opened:
        page.evaluate("open(location.href)")
    other = opened.value
    other.wait_for_selector("html[data-ready]", state="attached")
    if reload:
        other.reload()
        other.wait_for_selector("html[data-ready]", state="attached")
    other.wait_for_selector("#run:not([disabled])")
    other.fill("#sites", "resid.post[0]@15")
    other.click("#run")
    other.wait_for_selector("#finding:has-text('resid.post[0]')", timeout=60_000)
    page.wait_for_selector("#keep-map:not(.gone)", timeout=60_000)
    context.close()


def test_why_a_prompt_is_refused_outlives_the_answer_to_an_older_one(browser, server, monkeypatch):
    page = open_page(browser, server.address, [], own=(server.address, "data:"))
    begun, gate = threading.Event(), threading.Event()

    def slow(*words):
        begun.set()
        gate.wait(5)
        return read_pair(*words)

    monkeypatch.setattr("crosspatch.workbench.app.read_pair", slow)
    page.fill("#clean", PAIR["clean"])
    page.fill("#corrupt", PAIR["corrupt"])
    with page.expect_response(lambda each: each.url.endswith("api/pair") and each.ok):
        assert begun.wait(10)
        page.fill("#clean", "long " * 5000)
        page.wait_for_selector("#notice:has-text('20000 characters')")
        gate.set()
    page.wait_for_timeout(300)
    assert "20000 characters" in page.inner_text("#notice")
    page.close()


def test_a_prompt_that_is_emptied_leaves_no_pair(visit, server):
    """Neither the old one's tokens nor a button that does nothing; what is read of it comes too late."""
    page = visit(server)
    type_pair(page)
    page.fill("#corrupt", "")
    page.wait_for_selector("#sheet:has-text('Type two prompts')")
    assert page.is_disabled("#run")
    page.fill("#corrupt", PAIR["corrupt"])
    page.wait_for_selector("#run:not([disabled])")
    assert page.locator("#sheet .tokens .differs").count() == 1


def test_a_note_stays_with_its_map(visit, server):
    page = visit(server)
    type_pair(page)
    run(page)
    page.fill("#keep-map input", "about the first map")
    page.fill("#sites", "mlp.out")
    run(page)
    assert page.input_value("#keep-map input") == ""


def test_the_legend_of_a_map_without_a_gap_speaks_of_the_metric(visit, server):
    """Where both runs measure alike there is nothing to restore."""
    page = visit(server)
    type_pair(page)
    run(page)
    assert (page.inner_text("#low"), page.inner_text("#high")) == ("hurts", "restores")
    page.fill("#wrong", "")
    page.select_option("#metric", "accuracy")
    page.wait_for_selector("#run:not([disabled])")
    run(page)
    assert "raises" in page.inner_text("#high")
    assert "lowers" in page.inner_text("#low")


def test_enter_asks_though_the_pair_is_still_to_be_read(visit, server):
    """Once, whatever is pressed meanwhile."""
    page, asked = visit(server), []
    type_pair(page)
    page.on("request", lambda each: asked.append(each) if each.url.endswith("api/sweeps") else None)
    page.fill("#wrong", " the")
    page.press("#wrong", "Enter")
    page.press("#wrong", "Enter")
    page.wait_for_selector("#keep-map:not(.gone)")
    assert [each.post_data_json["pair"]["wrong"] for each in asked] == [[" the"]]
    page.evaluate("for (let i = 0; i < 2; i++) document.getElementById('question').requestSubmit()")
    page.wait_for_selector("#keep-map:not(.gone)")
    page.wait_for_timeout(300)
    assert len(asked) == 2


def test_only_the_first_button_of_a_mouse_looks_into_a_cell(visit, server):
    page = visit(server)
    type_pair(page)
    run(page)
    page.mouse.click(*place_of(page, "resid.post", 1, 15), button="right")
    page.wait_for_timeout(300)
    assert page.locator("#inside .beside").count() == 0
    page.mouse.click(*place_of(page, "resid.post", 1, 15))
    page.wait_for_selector("#inside .beside")


def test_a_memory_of_another_shape_is_no_memory(visit, server):
    page = visit(server)
    page.evaluate("sessionStorage.question = JSON.stringify({ question: { clean: 'a', corrupt: 'b' } })")
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    type_pair(page)


@pytest.mark.parametrize(("width", "times"), [(390, 2), (1500, 25)])
def test_the_pointer_tells_the_cell_of_attention_that_it_is_on(browser, server, width, times):
    """Boards keep their shape: in a narrow window and for long prompts they are scrolled, not squeezed."""
    page = open_page(browser, server.address, [], own=(server.address, "data:"), width=width)
    long = " ".join([PAIR["clean"][:-7]] * times)[:1800]
    type_pair(page, long + " a", long.replace("John gave", "Mary gave", 1) + " a")
    page.fill("#sites", "attn.head[2, 1]@end")
    run(page)
    page.locator("#strongest button").first.click()
    page.wait_for_selector("#attention canvas")
    shown = page.evaluate(
        """() => {
            const canvas = document.querySelector("#attention canvas");
            const box = canvas.getBoundingClientRect();
            return [box.width, box.height, parseFloat(canvas.style.width), parseFloat(canvas.style.height)];
        }"""
    )
    assert shown[:2] == pytest.approx(shown[2:])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()
