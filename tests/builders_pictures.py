"""Circuits with drawn scores for tests of pictures and pages, and who leads to whom in them, from the definition."""

import json
import re

import numpy as np

from crosspatch.circuits.circuit import top_edges
from crosspatch.circuits.graph import CircuitEdge, Graph
from crosspatch.report import CircuitContent, CircuitCurve, ScoreLine

GPT2 = Graph(12, 12, 12)
GEMMA = Graph(18, 4, 1)
PLACED = Graph(6, 4, 4, places=("IO", "S1", "S2", "end"))
PARALLEL = Graph(4, 6, 2, sequential=False)
WIDE = Graph(3, 32, 8)
BARE = Graph(2, 3, 3, mlps=False)
GRAPHS = {"gpt2": GPT2, "gemma": GEMMA, "placed": PLACED, "parallel": PARALLEL, "wide": WIDE, "bare": BARE}


def ranked(graph: Graph, count: int, seed: int = 0) -> tuple[tuple[CircuitEdge, ...], np.ndarray]:
    """Draw scores with heavy tails, and give the strongest edges and their scores, strongest first."""
    scores = np.random.default_rng(seed).standard_t(2, size=graph.shape)
    included = top_edges(graph, scores, count, absolute=True)
    order = np.argsort(-np.abs(scores[included]), kind="stable")
    found = np.argwhere(included)[order]
    return tuple(graph.edge(tuple(index.tolist())) for index in found), scores[included][order]


def make_content(graph: Graph = GPT2, count: int = 200, size: int = 50, **changes) -> CircuitContent:
    """Make the page's content of the strongest edges of drawn scores."""
    edges, scores = ranked(graph, count)
    x = np.array([10.0, 20, 50, 100, 1000])

    def curve(name: str, tau: float, reference: bool = False) -> CircuitCurve:
        mean = 1 - np.exp(-x / tau)
        return CircuitCurve(name, x, mean, mean - 0.05, mean + 0.05, reference)

    whole = {
        "finding": f"{size} edges carry 0.83 [0.79, 0.87] of the behaviour.",
        "graph": graph,
        "edges": edges,
        "scores": scores,
        "size": size,
        "signed": True,
        "method": "eap-ig",
        "model": "gpt2",
        "task": "ioi",
        "chips": (("examples", "96"),),
        "curves": (curve("eap-ig", 40), curve("eap", 90), curve("exact", 30, True), curve("random edges", 4000, True)),
        "lines": (ScoreLine("faithfulness", 0.83, 0.79, 0.87), ScoreLine("minimality", 0.02, note="smallest share")),
        "kl": np.random.default_rng(1).standard_gamma(1.0, size=40),
        "warnings": ("3 of 96 clean prompts are answered wrong.",),
        "provenance": {"command": "crosspatch circuit find gpt2 --task ioi", "settings": {"by": "eap-ig", "steps": 5}},
    }
    return CircuitContent(**(whole | changes))


def led_to(graph: Graph, edges: tuple[CircuitEdge, ...], start: str, *, forward: bool) -> set[str]:
    """Name what a node leads to (or what leads to it): what a key or a value feeds writes at any place."""
    names = {f"{edge.sender}{_at(edge.place)}" for edge in edges}
    steps = set()
    for edge in edges:
        for node in graph.node_of(edge.receiver) or (edge.receiver,):
            places = graph.places or ("",)
            here = places if edge.receiver.kind in ("attn.k", "attn.v") else (edge.place,)
            steps |= {(f"{edge.sender}{_at(edge.place)}", f"{node}{_at(place)}") for place in here}
        own = edge.receiver.kind not in ("attn.k", "attn.v") or not (graph.places or graph.heads != graph.kv_heads)
        # Where several heads read one key, a head is there if it writes or if its query reads.
        names |= {f"{node}{_at(edge.place)}" for node in graph.node_of(edge.receiver) or (edge.receiver,) if own}
    found, new = {start}, {start}
    while new:
        new = {(b if forward else a) for a, b in steps if (a if forward else b) in new} & names - found
        found |= new
    return found


def _at(place: str) -> str:
    return f" @{place}" if place else ""


def text_of(html):
    """Give what a reader sees."""
    body = re.sub(r"(?s)<(style|script)\b.*?</\1>", "", html)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def facts_of(html):
    """Give what the script of a circuit reads."""
    return json.loads(re.search(r'<script type="application/json" id="circuit-facts">(.*?)</script>', html)[1])
