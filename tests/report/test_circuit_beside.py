"""A circuit on the page of its effects: its sections in order, what is refused, and what works beside the maps."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from browsing import in_browser, spot
from builders import make_effects, make_patterns
from builders_pictures import GEMMA, facts_of, make_content, text_of
from crosspatch.core.errors import BadInput
from crosspatch.report import circuit_page, write_page
from crosspatch.report.circuit_beside import MOST_DRAWN, MOST_LISTED
from crosspatch.report.page import page_html

EVIL = "</script><img src=x onerror=alert(1)>"
EFFECTS = make_effects(heads=4)


def content_of(count=200, size=50, **changes):
    """A circuit of the same model and task as the effects."""
    about = {"model": EFFECTS.model, "task": EFFECTS.task} | changes
    return make_content(GEMMA, count, size, **about)


def weights(fingerprint):
    return {"provenance": {"settings": {"model_hash": fingerprint}}}


def test_the_sections_stand_between_truth_and_metrics():
    text = text_of(page_html(EFFECTS, circuit=content_of()))
    words = ("The circuit", "50 edges carry 0.83", "Is it faithful", "Scores of the circuit")
    words += ("Edges of the circuit", "Strongest sites", "Provenance", "Where the circuit comes from")
    places = [text.rindex(word) for word in words]
    assert places == sorted(places)


def test_the_circuit_says_what_its_own_page_says():
    """Finding, chips, warnings, scores, curves and provenance; the model stands once, above."""
    text = text_of(page_html(EFFECTS, circuit=content_of()))
    for words in (
        "edges 50 of",
        "examples 96",
        "3 of 96 clean",
        "faithfulness 0.830 [0.790, 0.870]",
        "settings · steps 5",
    ):
        assert words in text
    assert "found on the task" not in text
    chips = text[text.index("The circuit") : text.index("Is it faithful")]
    assert f"model {EFFECTS.model}" not in chips


def test_provenance_that_both_share_stands_once():
    both, own = {"settings": {"model_hash": "aa"}}, {"settings": {"model_hash": "aa", "by": "eap-ig"}}
    text = text_of(page_html(replace(EFFECTS, provenance=both), circuit=content_of(provenance=own)))
    assert text.count("model hash") == 1
    assert "settings · by eap-ig" in text[text.index("Where the circuit comes from") :]


def test_without_a_circuit_nothing_of_it_is_on_the_page():
    html = page_html(EFFECTS)
    for trace in ("circuit", "network", 'id="edges"', 'id="slider"'):
        assert trace not in html


@pytest.mark.parametrize(
    ("mine", "theirs", "told"),
    [
        ({}, {"model": "gpt2"}, "the circuit is of gpt2, and these effects are of"),
        (
            {"provenance": {"settings": {"model_hash": "aa"}}},
            {"provenance": {"settings": {"model_hash": "bb"}}},
            r"\(bb\)",
        ),
    ],
    ids=["name", "weights"],
)
def test_a_circuit_of_another_model_is_refused(mine, theirs, told):
    with pytest.raises(BadInput, match=told):
        page_html(replace(EFFECTS, **mine), circuit=content_of(**theirs))


def test_a_copy_of_the_model_under_another_name_is_the_same_model():
    same = replace(EFFECTS, **weights("aa"))
    assert "The circuit" in page_html(same, circuit=content_of(model="copy", **weights("aa")))


def test_a_circuit_that_names_no_model_is_shown():
    assert "The circuit" in page_html(EFFECTS, circuit=content_of(model="", task="", provenance={}))


def test_another_task_is_said():
    text = text_of(page_html(EFFECTS, circuit=content_of(task="capitals")))
    assert f"The circuit was found on the task capitals, and the effects above are of {EFFECTS.task}." in text


def test_a_large_circuit_leaves_the_page_small():
    """The page of 18 × 15 × 3 sites × 64 pairs with the picture of a circuit of thousands of edges: 300 KB."""
    effects = make_effects(heads=4, n=64)
    html = page_html(effects, circuit=content_of(1500, 1200))
    assert len(facts_of(html)["edges"]) == MOST_DRAWN
    assert f"The first {MOST_LISTED} of 1,500" in text_of(html)
    assert f"The picture holds the first {MOST_DRAWN} edges" in text_of(html)
    assert len(html.encode()) <= 300 * 1024


def test_the_nodes_of_a_circuit_that_is_drawn_in_part_are_counted_whole():
    """As its own page counts them; the picture, its button and the download say that they hold a part."""
    content = content_of(600, 400)
    html, own = page_html(EFFECTS, circuit=content), circuit_page(content)
    nodes = re.search(r"nodes [0-9]+ of [0-9]+", text_of(own))[0]
    assert nodes in text_of(html)
    assert f"the first {MOST_DRAWN} of the circuit" in text_of(html)
    assert f"Download the first {MOST_DRAWN} edges as CSV" in text_of(html)
    assert "Download edges as CSV" in text_of(own)
    assert "of the circuit</button>" not in own


@pytest.mark.parametrize(
    "beside", [{"score": "no score"}, {"circuit": "circuit.json"}, {"circuit": "no circuit", "score": None}]
)
def test_what_is_no_circuit_is_refused(beside, tmp_path):
    with pytest.raises(BadInput, match=r"give a circuits\.Circuit"):
        EFFECTS.report(tmp_path / "p.html", **beside)
    assert not (tmp_path / "p.html").exists()


@pytest.mark.parametrize("name", ["finding", "method", "task", "order"])
def test_texts_of_a_circuit_stay_texts(name):
    html = page_html(EFFECTS, circuit=content_of(**{name: EVIL}))
    assert EVIL not in html


@in_browser
def test_maps_attention_and_circuit_work_on_one_page(visit, tmp_path):
    content = content_of()
    page = visit(write_page(EFFECTS, tmp_path / "p.html", attention=make_patterns(EFFECTS), circuit=content))
    page.mouse.move(*spot(page, 0, 17, 14))
    assert "resid.pre[17]@14" in page.locator("#tip").inner_text()
    page.mouse.click(*spot(page, 3, 11, 2))
    page.locator("#attention-view").wait_for()
    assert page.locator("svg.network .edges > path:not([display])").count() == 50
    page.locator("#slider").focus()
    page.keyboard.press("Home")
    assert page.locator("#count").inner_text().startswith("1 edge") or page.locator("#count").inner_text().startswith(
        "0"
    )
    page.click("button[data-count='50']")
    node = page.locator("svg.network .node:not([display])[aria-label^='mlp']").first
    node.locator("rect").click()
    assert page.locator("#picked h3").inner_text() == node.get_attribute("aria-label")
    page.mouse.move(*spot(page, 0, 17, 13))
    assert "resid.pre[17]@13" in page.locator("#tip").inner_text()
    page.keyboard.press("Escape")
    assert "Click a node" in page.locator("#picked").inner_text()


@in_browser
def test_sites_and_edges_are_downloaded_apart(visit, tmp_path):
    content = content_of()
    page = visit(write_page(EFFECTS, tmp_path / "p.html", circuit=content))
    found = {}
    for what in ("csv", "edges"):
        with page.expect_download() as info:
            page.click(f"button[data-save='{what}']")
        found[what] = list(csv.reader(io.StringIO(Path(info.value.path()).read_text(encoding="utf-8"))))
    assert len(found["csv"]) == 1 + len(EFFECTS.sites)
    assert found["edges"][0] == ["rank", "sender", "receiver", "place", "score", "in_circuit"]
    assert [row[1] for row in found["edges"][1:]] == [str(edge.sender) for edge in content.edges]
    assert sum(int(row[5]) for row in found["edges"][1:]) == 50


@in_browser
def test_copying_is_wired_once(visit, tmp_path):
    """Two scripts stand on the page, and the button is told of by one: its words come back after a click."""
    effects = replace(EFFECTS, provenance={"command": "crosspatch patch gemma-3-270m --task ioi"})
    page = visit(write_page(effects, tmp_path / "p.html", circuit=content_of()))
    page.click("button[data-copy]")
    for words in ("copied|selected", "^copy$"):
        page.locator("button[data-copy]", has_text=re.compile(words)).wait_for()
