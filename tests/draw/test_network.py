"""A circuit's picture: the same every time, nothing on top of another, every edge and no other."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from builders_pictures import BARE, GEMMA, GPT2, GRAPHS, PLACED, ranked
from crosspatch.circuits.graph import Graph
from crosspatch.core.errors import BadInput
from crosspatch.draw import NetworkLook, lay_out_network, network_html, network_svg
from crosspatch.draw.network import NODE_HEIGHT, PORTS, WIDTHS

EVIL = "<script>alert('x')</script>"
SVG = "{http://www.w3.org/2000/svg}"


def picture(graph, count, **look):
    network = lay_out_network(graph, *ranked(graph, count))
    return network, ElementTree.fromstring(network_svg(network, NetworkLook(**look)))


def inside(root, name):
    return next(group for group in root.iter(f"{SVG}g") if group.get("class") == name)


@pytest.fixture(params=GRAPHS)
def graph(request):
    return GRAPHS[request.param]


def test_the_layout_is_the_same_every_time(graph):
    edges, scores = ranked(graph, 60)
    first = lay_out_network(graph, edges, scores)
    assert first == lay_out_network(graph, edges, scores)
    turned = lay_out_network(graph, edges[::-1], scores[::-1])
    assert first.nodes == turned.nodes


@pytest.mark.parametrize("count", [1, 7, 80, 3_000])
def test_no_two_nodes_meet_and_all_lie_inside(graph, count):
    network = lay_out_network(graph, *ranked(graph, count))
    boxes = [(node.x, node.y, WIDTHS[node.kind]) for node in network.nodes]
    for number, (x, y, wide) in enumerate(boxes):
        assert wide / 2 <= x <= network.width - wide / 2
        assert NODE_HEIGHT <= y <= network.height - NODE_HEIGHT / 2
        for other_x, other_y, other_wide in boxes[:number]:
            assert abs(x - other_x) >= (wide + other_wide) / 2 + 2 or abs(y - other_y) >= NODE_HEIGHT


def test_layers_rise_and_heads_stand_by_number():
    network = lay_out_network(GPT2, *ranked(GPT2, 5000))
    heads = {node.name: node for node in network.nodes if node.kind == "head"}
    mlps = [node for node in network.nodes if node.kind == "mlp"]
    assert len(heads) == 144
    for layer in range(12):
        row = [heads[f"attn.head[{layer}, {head}]"] for head in range(12)]
        assert len({node.y for node in row}) == 1
        assert [node.x for node in row] == [heads[f"attn.head[0, {head}]"].x for head in range(12)]
        assert all(left.x < right.x for left, right in pairwise(row))
        if layer:
            below = heads[f"attn.head[{layer - 1}, 0]"].y
            assert row[0].y < mlps[layer - 1].y < below
    ends = {node.kind: node for node in network.nodes if node.kind in ("embed", "logits")}
    every = [node.y for node in network.nodes]
    assert (ends["logits"].y, ends["embed"].y) == (min(every), max(every))


def test_every_edge_goes_up(graph):
    for edge in (network := lay_out_network(graph, *ranked(graph, 200))).edges:
        start, end = (network.nodes[number] for number in (edge.source, edge.target))
        assert start.y > end.y
        numbers = [float(text) for text in re.findall(r"-?[\d.]+", edge.path)]
        assert numbers[:2] == pytest.approx([start.x, start.y - NODE_HEIGHT / 2], abs=0.5)
        assert numbers[-1] == pytest.approx(end.y + NODE_HEIGHT / 2, abs=0.5)
        port = PORTS.get(edge.port, 0)
        assert np.sign(round(numbers[-2] - end.x)) == np.sign(port)


def test_places_are_bands_from_left_to_right():
    network = lay_out_network(PLACED, *ranked(PLACED, 150))
    assert [band.name for band in network.places] == list(PLACED.places)
    bands = {band.name: band for band in network.places}
    assert all(left.stop < right.start for left, right in pairwise(network.places))
    for node in network.nodes:
        assert bands[node.place].start < node.x - WIDTHS[node.kind] / 2
        assert node.x + WIDTHS[node.kind] / 2 < bands[node.place].stop
    assert all(network.nodes[e.source].place == network.nodes[e.target].place for e in network.edges)


@pytest.mark.parametrize("graph", [GEMMA, PLACED], ids=["gemma", "placed"])
def test_attention_carries_keys_to_every_head_that_reads_them(graph):
    network = lay_out_network(graph, *ranked(graph, 400))
    group = graph.heads // graph.kv_heads
    read = {"kv": r"\[(\d+), (\d+)\]", "head": r"\[(\d+), (\d+)\]"}
    where = [
        tuple(map(int, re.search(read[n.kind], n.name).groups())) if n.kind in read else None for n in network.nodes
    ]
    expected = {
        (i, j)
        for i, one in enumerate(network.nodes)
        for j, two in enumerate(network.nodes)
        if one.kind == "kv" and two.kind == "head" and (where[j][0], where[j][1] // group) == where[i]
    }
    assert expected
    assert set(network.carries) == expected


def test_edges_drawn_are_the_edges(graph):
    edges, scores = ranked(graph, 90)
    network, root = picture(graph, 90, signed=True)
    paths = list(inside(root, "edges"))
    titles = [path.find(f"{SVG}title").text for path in paths][::-1]
    at = [f" @{edge.place}" if edge.place else "" for edge in edges]
    assert titles == [f"{e.sender} → {e.receiver}{a}: {s:.3f}" for e, a, s in zip(edges, at, scores, strict=True)]
    blue, red = (
        {path.get("stroke") for path, s in zip(paths[::-1], scores, strict=True) if bool(s > 0) == yes}
        for yes in (True, False)
    )
    assert len(blue) == len(red) == 1
    assert blue != red
    widths = [float(path.get("stroke-width")) for path in paths]
    assert widths == sorted(widths)
    assert len(network.edges) == len(edges)


def test_only_nodes_of_edges_are_there(graph):
    edges, _ = ranked(graph, 12)
    network = lay_out_network(graph, *ranked(graph, 12))
    senders = {f"{edge.sender}" for edge in edges}
    heads = {str(n) for e in edges for n in graph.node_of(e.receiver) if e.receiver.kind in ("attn.q", "mlp.in")}
    names = {node.name for node in network.nodes if node.kind != "kv"}
    assert senders | heads <= names
    if graph.heads == graph.kv_heads and not graph.places:
        every = {str(node) for edge in edges for node in graph.node_of(edge.receiver) or (edge.receiver,)}
        assert names == senders | every
        assert network.count(12) == len(names)


@pytest.mark.parametrize("shown", [0, 1, 30])
def test_what_lies_beyond_the_shown_edges_is_hidden(graph, shown):
    network, root = picture(graph, 30, shown=shown)
    hidden = [path.get("display") == "none" for path in inside(root, "edges")][::-1]
    assert hidden == [rank >= shown for rank in range(len(network.edges))]
    touched = {end for edge in network.edges[:shown] for end in (edge.source, edge.target)}
    nodes = list(inside(root, "nodes"))
    assert [node.get("display") != "none" for node in nodes] == [i in touched for i in range(len(nodes))]
    ports = {(edge.target, edge.port) for edge in network.edges[:shown]}
    for number, node in enumerate(nodes):
        for dot in node.findall(f"{SVG}path"):
            assert (dot.get("display") != "none") == ((number, dot.get("class")) in ports)


def test_it_describes_itself():
    edges, scores = ranked(GPT2, 40)
    _, root = picture(GPT2, 40, title="ioi")
    assert root.find(f"{SVG}title").text == "ioi"
    words = root.find(f"{SVG}desc").text
    assert words == root.get("aria-label")
    assert words.startswith("ioi: 40 edges between ")
    assert f"Strongest: {edges[0].sender} → {edges[0].receiver}: {scores[0]:.3f}." in words


def test_a_hostile_place_stays_text():
    graph = Graph(2, 2, 2, places=(EVIL, "end"))
    network = lay_out_network(graph, *ranked(graph, 30))
    html = network_html(network, NetworkLook(title=EVIL))
    assert "<script" not in html
    root = ElementTree.fromstring(html)
    assert any(EVIL in (title.text or "") for title in root.iter(f"{SVG}title"))


def test_no_edges_say_so():
    network = lay_out_network(GPT2, (), np.zeros(0))
    svg = network_svg(network)
    assert "no edges" in "".join(ElementTree.fromstring(svg).itertext())
    assert (network.nodes, network.count(5), network.limit) == ((), 0, 1.0)


def test_edges_without_scores_are_thin_and_named():
    edges, scores = ranked(BARE, 5)
    network = lay_out_network(BARE, edges, np.full(5, np.nan))
    root = ElementTree.fromstring(network_svg(network, NetworkLook(signed=True)))
    assert {path.get("stroke-width") for path in inside(root, "edges")} == {"0.8"}
    assert "nan" not in network_svg(network).lower()
    with pytest.raises(BadInput, match="5 edges have 4 scores"):
        lay_out_network(BARE, edges, scores[:4])


def test_the_table_behind_holds_every_edge():
    edges, scores = ranked(PLACED, 20)
    root = ElementTree.fromstring(network_html(lay_out_network(PLACED, edges, scores)))
    rows = [[cell.text or "" for cell in row] for row in root.iter("tr")][1:]
    assert rows == [[str(e.sender), str(e.receiver), e.place, f"{s:.3f}"] for e, s in zip(edges, scores, strict=True)]
