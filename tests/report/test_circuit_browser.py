"""The page of a circuit in Chromium without a network: the slider, a node's ancestors and descendants, the keyboard."""

import csv
import io
from itertools import count
from pathlib import Path

import pytest

from browsing import MARKS
from builders_pictures import GEMMA, GPT2, PLACED, led_to, make_content
from crosspatch.circuits.graph import Graph
from crosspatch.report import write_circuit
from crosspatch.report.circuit import stops

EVIL = "</script><img src=x onerror=alert(1)>"
pytestmark = MARKS


@pytest.fixture
def visit(visit, tmp_path):
    """Open the page of a content."""
    names = (tmp_path / f"{number}.html" for number in count())
    return lambda content, **settings: visit(write_circuit(content, next(names)), **settings)


def seen(page, what):
    return page.locator(f"svg.network .{what}:not([display])").count()


def slide(page, edges):
    """Move the slider to the stop of a number of edges."""
    page.evaluate(
        """(edges) => {
            const stops = JSON.parse(document.getElementById("circuit-facts").textContent).stops;
            const slider = document.getElementById("slider");
            slider.value = stops.indexOf(edges);
            slider.dispatchEvent(new Event("input"));
        }""",
        edges,
    )


def names(page, selector):
    """Name the nodes that a selector finds, without key-value heads."""
    found = page.eval_on_selector_all(
        f"svg.network .node{selector}", "all => all.map((each) => each.getAttribute('aria-label'))"
    )
    return {name for name in found if not name.startswith("key-value")}


def click(page, name):
    page.locator(f'svg.network .node[aria-label="{name}"] rect').click()


@pytest.mark.parametrize("graph", [GPT2, GEMMA, PLACED], ids=["gpt2", "gemma", "placed"])
def test_the_slider_shows_the_first_edges_and_their_nodes(visit, graph):
    content = make_content(graph, 120, 50)
    page = visit(content)
    for edges in (50, 7, 120, 1):
        slide(page, edges)
        assert seen(page, "edges > path") == edges
        used = {f"{edge.sender}" + (f" @{edge.place}" if edge.place else "") for edge in content.edges[:edges]}
        assert used <= names(page, ":not([display])")
        count = len({name.partition(" @")[0] for name in names(page, ":not([display])")})
        words = page.locator("#count").inner_text()
        assert words.startswith(f"{edges} edge{'' if edges == 1 else 's'}, {count} node")
        assert page.locator("#slider").get_attribute("aria-valuetext") == words


def test_faithfulness_is_said_where_it_was_measured(visit):
    page = visit(make_content(GPT2, 200, 50))
    assert "faithfulness 0.71 [0.66, 0.76]" in page.locator("#count").inner_text()
    slide(page, 12)
    assert "measured nearby: 0.22 at 10, 0.39 at 20" in page.locator("#count").inner_text()
    slide(page, 5)
    assert page.locator("#count").inner_text().endswith("measured nearby: 0.22 at 10")


def test_buttons_return_to_the_circuit(visit):
    page = visit(make_content(GPT2, 200, 50))
    page.click("button[data-count='200']")
    assert seen(page, "edges > path") == 200
    page.click("button[data-count='50']")
    assert seen(page, "edges > path") == 50
    assert page.locator("button[data-count='50']").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("graph", [GPT2, GEMMA, PLACED], ids=["gpt2", "gemma", "placed"])
@pytest.mark.parametrize("shown", [50, 150])
def test_a_click_marks_exactly_ancestors_and_descendants(visit, graph, shown):
    content = make_content(graph, 150, 50)
    edges = content.edges[:shown]
    page = visit(content)
    slide(page, shown)
    for name in sorted(names(page, ":not([display])"))[::6]:
        click(page, name)
        up, down = (led_to(graph, edges, name, forward=forward) for forward in (False, True))
        assert names(page, ".lit") == up | down
        assert names(page, ".picked") == {name}
        told = page.locator("#picked").inner_text()
        assert f"{len(up) - 1} ancestor" in told
        assert f"{len(down) - 1} descendant" in told
        if graph is GPT2:
            ends = [(str(e.sender), str((graph.node_of(e.receiver) or (e.receiver,))[0])) for e in edges]
            assert page.locator(".edges > path.lit").count() == sum({*pair} <= up or {*pair} <= down for pair in ends)
    page.keyboard.press("Escape")
    assert page.locator("svg.network .lit").count() == 0
    assert "Click a node" in page.locator("#picked").inner_text()


def test_a_picked_node_follows_the_slider(visit):
    content = make_content(GPT2, 200, 50)
    page = visit(content)
    name = str(content.edges[0].sender)
    click(page, name)
    slide(page, 200)
    expected = led_to(GPT2, content.edges, name, forward=True) | led_to(GPT2, content.edges, name, forward=False)
    assert names(page, ".lit") == expected
    late = sorted(names(page, ":not([display])") - {str(e.sender) for e in content.edges[:1]})[0]
    click(page, late)
    slide(page, 1)
    if late not in names(page, ":not([display])"):
        assert page.locator("svg.network .picked").count() == 0


def test_pointing_at_an_edge_names_it(visit):
    content = make_content(GPT2, 60, 3)
    page = visit(content)
    for rank in range(3):
        x, y = page.evaluate(
            """(rank) => {
                const path = [...document.querySelectorAll(".edges > path")].reverse()[rank];
                path.ownerSVGElement.scrollIntoView({ block: "center" });
                const at = path.getPointAtLength(0.3 * path.getTotalLength()).matrixTransform(path.getScreenCTM());
                return [at.x, at.y];
            }""",
            rank,
        )
        page.mouse.move(x, y)
        edge = content.edges[rank]
        text = page.locator("#tip").inner_text()
        assert f"{edge.sender} → {edge.receiver}" in text
        assert f"{content.scores[rank]:.3f}" in text
        assert f"number {rank + 1} by |score|" in text
        assert page.locator(".edges > path.hot").count() == 1
    page.mouse.move(2, 2)
    assert page.locator("#tip").is_hidden()
    assert page.locator(".edges > path.hot").count() == 0


def test_the_keyboard_reaches_nodes_picks_and_clears(visit):
    content = make_content(GPT2, 200, 50)
    page = visit(content)
    page.focus("button[data-count='200']")
    page.keyboard.press("Tab")
    focused = "document.activeElement.getAttribute('aria-label')"
    start = page.evaluate(focused)
    assert start in names(page, ":not([display])")
    assert start in page.locator("#tip").inner_text()
    reached = {start}
    for key in ("ArrowUp", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown") * 6:
        page.keyboard.press(key)
        reached.add(page.evaluate(focused))
    assert len(reached) > 6
    assert reached <= names(page, ":not([display])")
    name = page.evaluate(focused)
    page.keyboard.press("Enter")
    assert names(page, ".lit") == led_to(GPT2, content.edges[:50], name, forward=True) | led_to(
        GPT2, content.edges[:50], name, forward=False
    )
    assert name in page.locator("#live").text_content()
    page.keyboard.press("Escape")
    assert page.locator("svg.network .lit").count() == 0
    page.focus("#slider")
    page.keyboard.press("ArrowLeft")
    assert seen(page, "edges > path") == max(stop for stop in stops(200, 50, [10.0, 20.0]) if stop < 50)


def test_a_hostile_place_does_nothing(visit):
    page = visit(make_content(Graph(2, 2, 2, places=(EVIL, "end")), 20, 10, finding=EVIL, task=EVIL, order=EVIL))
    page.click("svg.network .node:not([display]) >> nth=0")
    page.mouse.move(300, 300)
    assert page.locator("img").count() == 0
    assert EVIL in page.locator("h1").inner_text()


def test_the_edges_can_be_downloaded(visit):
    content = make_content(PLACED, 40, 10)
    page = visit(content)
    with page.expect_download() as waiting:
        page.click("button[data-save='edges']")
    assert waiting.value.suggested_filename == "circuit-ioi-gpt2.csv"
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text())))
    found = [(row["sender"], row["receiver"], row["place"], row["in_circuit"]) for row in rows]
    expected = [(str(e.sender), str(e.receiver), e.place, str(int(i < 10))) for i, e in enumerate(content.edges)]
    assert found == expected
    assert [float(row["score"]) for row in rows] == pytest.approx(content.scores.tolist(), rel=1e-5)


@pytest.mark.parametrize("width", [390, 700, 1280])
@pytest.mark.parametrize("graph", [GPT2, PLACED], ids=["gpt2", "placed"])
def test_nothing_is_wider_than_the_window_or_cut(visit, width, graph):
    page = visit(make_content(graph, 120, 50), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.eval_on_selector_all(
        "svg.network text, svg.curves text",
        """all => all.filter((text) => {
            const box = text.getBoundingClientRect(), svg = text.closest("svg").getBoundingClientRect();
            return box.width && (box.left < svg.left - 1 || box.right > svg.right + 1 || box.bottom > svg.bottom + 1);
        }).map((text) => text.textContent)""",
    )
    assert cut == []
    outside = page.eval_on_selector_all(
        "svg.network .node:not([display])",
        """all => all.filter((node) => {
            const text = node.querySelector("text").getBoundingClientRect();
            const box = node.querySelector("rect").getBoundingClientRect();
            return text.left < box.left || text.right > box.right;
        }).map((node) => node.textContent)""",
    )
    assert outside == []


def test_an_empty_circuit_works(visit):
    page = visit(make_content(GPT2, 30, 0))
    assert seen(page, "edges > path") == 0
    assert page.locator("#count").inner_text().startswith("0 edges, 0 nodes")
    slide(page, 3)
    assert seen(page, "edges > path") == 3


def test_dark_mode_keeps_nodes_and_edges_apart_from_the_page(visit):
    page = visit(make_content(GPT2, 60, 50), scheme="dark")
    brightness = """(pair) => getComputedStyle(document.querySelector(pair[0]))[pair[1]]
        .match(/[0-9]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)"""
    back, fill, ink, blue, red = (
        page.evaluate(brightness, list(pair))
        for pair in (
            ("body", "backgroundColor"),
            (".network .head rect", "fill"),
            (".network .head text", "fill"),
            (".network .edges .pos", "stroke"),
            (".network .edges .neg", "stroke"),
        )
    )
    assert back < 150
    assert fill < 150
    assert ink > 600
    assert min(blue, red) > back + 200


def test_it_prints_without_its_controls(visit):
    page = visit(make_content(GEMMA, 120, 100))
    page.emulate_media(media="print")
    assert page.locator("#slider").is_hidden()
    assert page.locator("svg.network").is_visible()
    page.set_viewport_size({"width": 715, "height": 980})  # a circuit stays on one sheet
    assert page.locator("svg.network").bounding_box()["height"] < 980
