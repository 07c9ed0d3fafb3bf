"""The page of a circuit: every section says what the content holds, every text stays text, and the page stays small."""

import re
from base64 import b64encode
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest

from builders_pictures import GPT2, PLACED, facts_of, make_content, ranked, text_of
from crosspatch.circuits.graph import Graph
from crosspatch.core.errors import BadInput
from crosspatch.report import circuit_page, write_circuit
from crosspatch.report.circuit import stops

EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def content():
    return make_content(count=300, size=50)


@pytest.fixture(scope="module")
def html(content):
    return circuit_page(content)


def test_the_sections_stand_in_order(content, html):
    text = text_of(html)
    words = ("50 edges carry", "3 of 96 clean", "The circuit", "Is it faithful", "Scores", "Edges", "Provenance")
    places = [text.index(word, text.index("50 edges carry")) for word in words]
    assert places == sorted(places)
    assert f"<h1>{content.finding}</h1>" in html


def test_chips_count_edges_and_nodes_of_the_circuit(content, html):
    text = text_of(html)
    nodes = {str(edge.sender) for edge in content.edges[:50]}
    nodes |= {str(n) for edge in content.edges[:50] for n in GPT2.node_of(edge.receiver) or (edge.receiver,)}
    for words in ("model gpt2", "task ioi", "method eap-ig", "edges 50 of 32,491", f"nodes {len(nodes)} of 158"):
        assert words in text
    assert "examples 96" in text


def test_the_data_holds_every_edge_in_order(content, html):
    facts = facts_of(html)
    names = [(facts["nodes"][source][0], facts["receivers"][receiver]) for source, _, _, receiver, _ in facts["edges"]]
    assert names == [(str(edge.sender), str(edge.receiver)) for edge in content.edges]
    np.testing.assert_allclose([edge[-1] for edge in facts["edges"]], content.scores, rtol=1e-5)
    assert (facts["size"], facts["kept"]) == (50, 50)
    assert facts["curve"][2] == pytest.approx([50, *(1 - np.exp(-50 / 40) + d for d in (0, -0.05, 0.05))], rel=1e-5)


def test_without_script_the_circuit_alone_is_seen(html):
    picture = re.search(r'(?s)<g class="edges".*?</g>', html)[0]
    paths = re.findall(r"<path[^>]*>", picture)
    assert len(paths) == 300
    assert sum('display="none"' not in path for path in paths) == 50


def test_scores_stand_with_their_intervals(html):
    text = text_of(html)
    assert "faithfulness 0.830 [0.790, 0.870]" in text
    assert "minimality 0.020 smallest share" in text
    assert "40 examples, mean" in text
    assert len(re.findall('class="strip"', html)) == 1


def test_edges_are_listed_up_to_a_limit(content, html):
    rows = re.findall(r'<tr[^>]*><td class="number soft">.*?</tr>', html)
    assert len(rows) == 200
    assert all(
        f">{edge.sender}<" in row and f">{edge.receiver}<" in row
        for edge, row in zip(content.edges, rows, strict=False)
    )
    assert sum("not in the circuit" in row for row in rows) == 150
    text = text_of(html)
    assert "The first 200 of 300, by |score|." in text
    assert "100 more edges are not listed" in text
    short = text_of(circuit_page(make_content(count=20, size=20)))
    assert "All 20, by |score|." in short
    assert "more edge" not in short


def test_faithfulness_is_drawn_and_listed(content, html):
    part = html[html.index('id="faithful"') : html.index('id="scores"')]
    assert re.findall(r"<path class=\"curve\".*?<title>(.*?)</title>", part) == [
        "exact",
        "random edges",
        "eap-ig",
        "eap",
    ]
    assert len(re.findall('class="band"', part)) == 4
    assert len(re.findall(r"<tr><td>", part)) == 20
    assert 'id="faithful"' not in circuit_page(make_content(curves=()))
    assert 'id="scores"' not in circuit_page(make_content(lines=(), kl=None))


def test_provenance_has_the_command(html):
    assert '<pre id="command">crosspatch circuit find gpt2 --task ioi</pre>' in html
    assert "settings · by eap-ig" in text_of(html)
    assert "steps 5" in text_of(html)


@pytest.mark.parametrize(("total", "size"), [(1, 1), (5, 0), (200, 50), (1000, 517), (30, 30)])
def test_the_slider_stops_at_small_numbers_at_the_circuit_and_at_what_was_measured(total, size):
    found = stops(total, size, [10.0, 47.0, 33.5, 1e6])
    assert found == sorted(set(found))
    assert {size, total, *range(1, min(30, total) + 1)} <= set(found)
    assert (47 in found) == (total >= 47)
    assert found[-1] == total
    assert found[0] == min(size, 1)
    assert len(found) < 120
    assert all(b - a <= max(2, 0.06 * b) for a, b in pairwise(found))


def test_an_empty_circuit_says_so():
    nothing = text_of(circuit_page(make_content(edges=(), scores=np.zeros(0), size=0)))
    assert "The circuit is empty: no edge was kept." in nothing
    assert "slider" not in nothing
    html = circuit_page(make_content(count=30, size=0))
    assert "The circuit is empty" in html
    assert facts_of(html)["stops"][:2] == [0, 1]
    assert "edges 0 of 32,491" in text_of(html)


def test_a_large_circuit_is_drawn_in_part():
    html = circuit_page(make_content(count=1500, size=1200))
    assert "The picture holds the first 1,000 edges by |score| of 1,500." in text_of(html)
    assert (facts_of(html)["size"], facts_of(html)["kept"], len(facts_of(html)["edges"])) == (1000, 1200, 1000)
    assert "1,300 more edges are not listed" in text_of(html)


def test_the_page_of_a_thousand_edges_is_small():
    """300 KB with all that a page can hold, of which the edges' curves and data are two thirds."""
    size = len(circuit_page(make_content(count=1000, size=100)).encode())
    assert size < 300_000
    assert len(circuit_page(make_content(count=10, size=10)).encode()) < 75_000


@pytest.mark.parametrize("name", ["finding", "model", "task", "method", "order"])
def test_hostile_texts_stay_text(name):
    html = circuit_page(make_content(count=5, size=5, **{name: EVIL}))
    assert "<img" not in html
    assert html.count("</script>") == 2


def test_hostile_names_of_places_and_curves_stay_text():
    graph = Graph(2, 2, 2, places=(EVIL, "<script>"))
    base = make_content()
    curve = base.curves[0].__class__(EVIL, *(getattr(base.curves[0], n) for n in ("edges", "mean", "low", "high")))
    edges, scores = ranked(graph, 20)
    about = {"graph": graph, "edges": edges, "scores": scores, "size": 10, "curves": (curve,), "method": EVIL}
    more = {"warnings": (EVIL,), "chips": ((EVIL, EVIL),), "provenance": {"command": EVIL, EVIL: EVIL}}
    html = circuit_page(make_content(**about, **more))
    assert "<img" not in html
    assert html.count("<script") == 2
    assert facts_of(html)["nodes"][0][1] == EVIL


def test_its_policy_admits_its_own_style_and_script_alone(html):
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', html)[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        inner = re.findall(rf"(?s)<{tag}>(.*?)</{tag}>", html)
        assert len(inner) == 1
        assert f"'sha256-{b64encode(sha256(inner[0].encode()).digest()).decode()}'" in policy
    assert not re.search(r'(?:src|href)="', html)


def test_numbers_that_are_missing_are_dashes():
    scores = np.full(200, np.nan)
    html = circuit_page(make_content(graph=PLACED, edges=ranked(PLACED, 200)[0], scores=scores, signed=False))
    assert facts_of(html)["edges"][0][-1] is None
    assert '<td class="number">–</td>' in html
    assert "NaN" not in re.sub(r"(?s)<script>.*?</script>", "", html)


def test_it_is_written_as_one_file(tmp_path, content, html):
    path = write_circuit(content, tmp_path / "circuit.html")
    assert path.read_text(encoding="utf-8") == html
    with pytest.raises(BadInput):
        write_circuit(content, tmp_path)


def test_contents_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="50 edges have 49 scores"):
        make_content(edges=ranked(GPT2, 50)[0], scores=np.zeros(49))
    with pytest.raises(BadInput, match="51 edges cannot be the first of 50"):
        make_content(count=50, size=51)
