"""Draw a laid-out circuit as static SVG: signed edges by colour and width, inputs of heads by place and colour."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

from crosspatch.core.names import counted
from crosspatch.draw.colour import OKABE_ITO
from crosspatch.draw.html import table_html
from crosspatch.draw.label import clip, number
from crosspatch.draw.network import NODE_HEIGHT, PORTS, WIDTHS, Network, NetworkEdge, Node
from crosspatch.draw.panel import text_width

Stroke = Callable[[str], str]
_FONT = 'font-family="ui-sans-serif,system-ui,sans-serif" font-size="10" fill="currentColor"'
_PORT_COLOURS = {"q": OKABE_ITO[1], "k": OKABE_ITO[2], "v": OKABE_ITO[4]}
_PORT_NAMES = {"q": "query", "k": "key", "v": "value"}
# Between the light and the dark page's: a picture that stands alone does not know what it lies on.
_STROKES = {"pos": "#3f8fd6", "neg": "#d6604d", "none": "#808a94"}
_LEGEND, _LEGEND_LINE, _LEGEND_WIDTH = 40, 18, 362


def fixed_stroke(sign: str) -> str:
    """Colour edges of a sign (pos, neg, none) by a presentation attribute: for pictures that stand alone."""
    return f'stroke="{_STROKES[sign]}"'


def class_stroke(sign: str) -> str:
    """Colour edges of a sign by its style class: for pages whose style sheet has it."""
    return f'class="{sign}"'


@dataclass(frozen=True)
class NetworkLook:
    """How a circuit is drawn.

    Only the first `shown` edges (None: all) and the nodes that they touch can be seen; the rest is there for scripts.
    `signed` colours edges by sign, with `words` for (negative, positive). `hover` names what is pointed at.
    """

    title: str = "Circuit"
    shown: int | None = None
    signed: bool = False
    words: tuple[str, str] = ("hurts", "helps")
    stroke: Stroke = fixed_stroke
    hover: bool = True

    def sign(self, score: float) -> str:
        """Name the colour of a score: pos, neg, or none where there is no sign to show."""
        return "none" if not self.signed or not isfinite(score) or score == 0 else "pos" if score > 0 else "neg"


def network_svg(network: Network, look: NetworkLook | None = None) -> str:
    """Draw a circuit as one SVG element: strong edges over weak ones, nodes over edges, a legend at the foot.

    Edges stand in reverse order of the network's, nodes in its order. A circuit without edges says so.
    """
    look = look or NetworkLook()
    shown = len(network.edges) if look.shown is None else min(look.shown, len(network.edges))
    width = max(network.width, _LEGEND_WIDTH + 68 * _has_kv(network), round(7.4 * len(look.title)) + 8)
    height = network.height + _LEGEND + _LEGEND_LINE * _has_kv(network)
    words = escape(describe_network(network, shown, look))
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="network" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{words}">',
            f"<title>{escape(look.title)}</title><desc>{words}</desc>" if look.hover else "",
            f'<g {_FONT}><text x="2" y="13" font-size="12" font-weight="600">{escape(look.title)}</text>',
            *_bands(network, width),
            "</g>",
            *_edges(network, look, shown),
            f'<g class="nodes" font-family="ui-sans-serif,system-ui,sans-serif" font-size="10" text-anchor="middle" '
            f'stroke-width="5" stroke-linecap="round">{"".join(_nodes(network, look, shown))}</g>',
            _legend(network, look, network.height + 8),
            "</svg>",
        ]
    )


def network_html(network: Network, look: NetworkLook | None = None) -> str:
    """Draw a circuit with the table of its edges behind it: for notebooks, without script."""
    rows = [
        (network.nodes[edge.source].name, edge.receiver, network.nodes[edge.source].place, number(edge.score, 3))
        for edge in network.edges
    ]
    table = table_html(("sender", "receiver", "place", "score"), rows)
    count = f"{counted(len(rows), 'edge')} as a table"
    return f"<figure>{network_svg(network, look)}<details><summary>{count}</summary>{table}</details></figure>"


def describe_network(network: Network, shown: int, look: NetworkLook) -> str:
    """Describe a circuit for readers who cannot see it: its size, its strongest edge, how it is laid out."""
    if not shown:
        return f"{look.title}: no edges."
    seen = network.edges[:shown]
    count = f"{counted(len(seen), 'edge')} between {network.count(shown):,} nodes"
    start = f"{look.title}: {count}, layers from the bottom to the top"
    start += f", {len(network.places)} places from left to right" if network.places else ""
    scored = [edge for edge in seen if isfinite(edge.score)]
    if not scored:
        return f"{start}."
    first = max(scored, key=lambda edge: abs(edge.score))
    return f"{start}. Strongest: {edge_words(network, first)}."


def edge_words(network: Network, edge: NetworkEdge) -> str:
    """Say in one line which edge this is and what its score is."""
    node = network.nodes[edge.source]
    place = f" @{node.place}" if node.place else ""
    score = f": {number(edge.score, 3)}" if isfinite(edge.score) else ""
    return f"{node.name} → {edge.receiver}{place}{score}"


def _bands(network: Network, width: int) -> list[str]:
    """Tint every other layer, name layers at the left and places on top."""
    if not network.edges:
        return [f'<text x="{width / 2:g}" y="40" text-anchor="middle" opacity="0.65">no edges</text>']
    parts = []
    for place, band in enumerate(network.layers):
        if place % 2 == 0:
            tall = band.stop - band.start
            parts.append(f'<path class="tint" fill-opacity="0.05" d="M0 {band.start:g}h{width}v{tall:g}h-{width}z"/>')
        parts.append(f'<text x="24" y="{band.middle + 3.5:g}" text-anchor="end" opacity="0.65">{band.name}</text>')
    top = network.layers[-1].start
    parts.append(f'<text x="2" y="{top - 6:g}" font-size="9" opacity="0.65">layer</text>')
    for band in network.places:
        wide = band.stop - band.start
        name = clip(band.name, max(3, int(wide / 6.3)))
        parts.append(
            f'<path class="place" fill="none" stroke="currentColor" stroke-opacity="0.22" '
            f'd="M{band.start:g} 34V{network.height - 4}h{wide:g}V34"/>'
            f'<text x="{band.middle:g}" y="30" text-anchor="middle" font-weight="600">{escape(name)}</text>'
        )
    return parts


def _edges(network: Network, look: NetworkLook, shown: int) -> list[str]:
    touched = network.touched(shown)
    parts = ['<g class="carries" fill="none" stroke="currentColor" stroke-dasharray="1 3" stroke-linecap="round">']
    for one, two in network.carries:
        seen = "" if one in touched and two in touched else ' display="none"'
        parts.append(f'<path stroke-opacity="0.55"{seen} d="{_carry(network.nodes[one], network.nodes[two])}"/>')
    parts.append('</g><g class="edges" fill="none">')
    for rank in range(len(network.edges) - 1, -1, -1):
        edge = network.edges[rank]
        share = min(1.0, abs(edge.score) / network.limit) if isfinite(edge.score) else 0.0
        seen = "" if rank < shown else ' display="none"'
        title = f"><title>{escape(edge_words(network, edge))}</title></path>" if look.hover else "/>"
        parts.append(
            f'<path {look.stroke(look.sign(edge.score))} stroke-width="{0.8 + 4.2 * share:.2g}" '
            f'stroke-opacity="{0.3 + 0.65 * share**0.5:.2g}"{seen} d="{edge.path}"{title}'
        )
    return [*parts, "</g>"]


def _carry(one: Node, two: Node) -> str:
    start, end = one.y - NODE_HEIGHT / 2, two.y + NODE_HEIGHT / 2
    middle = (start + end) / 2
    return f"M{one.x:g} {start:g}C{one.x:g} {middle:g} {two.x:g} {middle:g} {two.x:g} {end:g}"


def _nodes(network: Network, look: NetworkLook, shown: int) -> list[str]:
    touched = network.touched(shown)
    every, seen = (_ports(network.edges[:count]) for count in (len(network.edges), shown))
    parts = []
    for place, node in enumerate(network.nodes):
        gone = "" if place in touched else ' display="none"'
        named = f"{node.name} @{node.place}" if node.place else node.name
        title = f"<title>{escape(named)}</title>" if look.hover else ""
        dots = "".join(_port(node, port, (place, port) in seen) for port in PORTS if (place, port) in every)
        parts.append(
            f'<g class="node {node.kind}"{gone} transform="translate({node.x:g} {node.y:g})">{title}{_box(node)}'
            f'<text y="3.5" fill="#14171c">{escape(node.label)}</text>{dots}</g>'
        )
    return parts


def _ports(edges: Sequence[NetworkEdge]) -> set[tuple[int, str]]:
    return {(edge.target, edge.port) for edge in edges}


def _box(node: Node) -> str:
    # A box has a colour of its own, not the page's, since its picture may lie on anything.
    fill = {"head": "#ffffff", "kv": "#ffffff", "mlp": "#e3ebf3"}.get(node.kind, "#d5d9de")
    wide, corner = WIDTHS[node.kind], {"mlp": 3, "kv": 3}.get(node.kind, 9)
    return (
        f'<rect x="{-wide / 2:g}" y="-9" width="{wide}" height="{NODE_HEIGHT}" rx="{corner}" fill="{fill}" '
        'stroke="#6b7580" stroke-width="1"/>'
    )


def _port(node: Node, port: str, seen: bool) -> str:
    place = PORTS[port] * (1 if node.kind == "head" else 0.6)
    gone = "" if seen else ' display="none"'
    return f'<path class="{port}" stroke="{_PORT_COLOURS[port]}"{gone} d="M{place:g} 9h0"/>'


def _legend(network: Network, look: NetworkLook, top: int) -> str:
    """Explain colours and widths, then the inputs of heads, then key-value heads where there are any."""
    signs = [("pos", look.words[1]), ("neg", look.words[0])] if look.signed else [("none", "edge")]
    parts, left = [], 4.0
    for sign, word in signs:
        parts.append(f'<path {look.stroke(sign)} stroke-width="3" fill="none" d="M{left:g} {top}h22"/>')
        parts.append(_words(word, left + 28, top))
        left += 44 + text_width(word)
    parts.append(_words("wider: larger |score|", left, top, soft=True))
    left, top = 4.0, top + _LEGEND_LINE
    for port, word in _PORT_NAMES.items():
        colour = f'stroke="{_PORT_COLOURS[port]}" stroke-width="6" stroke-linecap="round"'
        parts += [f'<path class="{port}" {colour} d="M{left + 4:g} {top}h0"/>', _words(word, left + 12, top)]
        left += 26 + text_width(word)
    parts.append(_words("inputs of a head; 9.6: layer 9, head 6", left, top, soft=True))
    if _has_kv(network):
        words = "kv: keys and values that several heads or places read; dots: what attention carries"
        parts.append(_words(words, 4, top + _LEGEND_LINE, soft=True))
    return f'<g class="legend" {_FONT}>{"".join(parts)}</g>'


def _has_kv(network: Network) -> bool:
    return any(node.kind == "kv" for node in network.nodes)


def _words(text: str, x: float | int, y: float | int, *, soft: bool = False) -> str:
    faint = ' opacity="0.65"' if soft else ""
    return f'<text x="{x:g}" y="{y + 3.5:g}"{faint}>{escape(text)}</text>'
