"""Assemble the page of a circuit: finding, picture with a slider, faithfulness, scores, edges, provenance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crosspatch.core.store import write_whole
from crosspatch.draw import (
    Curve,
    Network,
    NetworkLook,
    curves_svg,
    lay_out_network,
    network_svg,
    number,
    strip_svg,
    with_interval,
)
from crosspatch.draw.network_svg import class_stroke
from crosspatch.report import sections
from crosspatch.report.circuit_content import CircuitContent
from crosspatch.report.frame import clean_text, page_script, page_style, policy, read_asset, template
from crosspatch.report.payload import to_script_json

MOST_DRAWN = 1000  # edges of the picture; more are hair, and a page of megabytes
MOST_LISTED = 200  # edges of the table
_WIDE = 860  # pixels of a picture that leaves no room beside it
_SINGLY = 30  # the slider goes edge by edge up to so many, then in steps of a twentieth


def write_circuit(content: CircuitContent, path: str | Path) -> Path:
    """Write the page of a circuit as one HTML file without any reference to the network; give its path.

    Raises BadInput if the file cannot be written.
    """
    path = Path(path)
    write_whole(path, circuit_page(content).encode("utf-8", errors="replace"))
    return path


def circuit_page(content: CircuitContent) -> str:
    """Give the page as text."""
    style, script = page_style() + read_asset("network.css"), page_script("network.js")
    html = template("circuit.html").render(
        content=content,
        circuit=show_circuit(content),
        style=style,
        script=script,
        policy=policy(style, script),
        command=str(content.provenance.get("command") or ""),
    )
    return clean_text(html)


def show_circuit(content: CircuitContent, *, drawn: int = MOST_DRAWN, listed: int = MOST_LISTED) -> dict[str, Any]:
    """Put together what the sections of a circuit show: at most `drawn` edges in the picture, `listed` in the table."""
    return {
        "content": content,
        "warnings": content.warnings,
        "curves": _curves(content),
        "kl": _kl(content),
        "lines": [(line, with_interval(line.value, line.low, line.high, digits=3)) for line in content.lines],
        "provenance": sections.flat({name: value for name, value in content.provenance.items() if name != "command"}),
        **_picture(content, drawn),
        **_edges(content, listed),
    }


def chips(content: CircuitContent, network: Network) -> list[tuple[str, str]]:
    """List what a reader must know beside the finding, as (name, value); the picture may hold a part of the circuit."""
    count = ""
    if content.size <= MOST_DRAWN:  # more are not laid out only to be counted
        whole = network if content.size <= len(network.edges) else _laid_out(content, content.size)
        count = f"{whole.count(content.size):,} of {content.graph.nodes:,}"
    found = [
        ("model", content.model),
        ("task", content.task),
        ("method", content.method),
        ("edges", f"{content.size:,} of {content.graph.size:,}"),
        ("nodes", count),
        *content.chips,
    ]
    return [(name, value) for name, value in found if value]


def stops(total: int, size: int, measured: Sequence[float]) -> list[int]:
    """Choose the numbers of edges that the slider stops at: small ones singly, all that were measured, the circuit."""
    found = {size, total, *range(1, min(_SINGLY, total) + 1)}
    found |= {int(count) for count in measured if 1 <= count <= total and float(count).is_integer()}
    count = _SINGLY
    while count < total:
        found.add(count)
        count = max(count + 1, round(count * 1.05))
    return sorted(found)


def _laid_out(content: CircuitContent, count: int) -> Network:
    return lay_out_network(content.graph, content.edges[:count], content.scores[:count])


def _picture(content: CircuitContent, most: int) -> dict[str, Any]:
    drawn = min(len(content.edges), most)
    network = _laid_out(content, drawn)
    size = min(content.size, drawn)
    title = f"{content.model} · {content.task}".strip(" ·") or "Circuit"
    look = NetworkLook(title, size, content.signed, stroke=class_stroke, hover=False)
    curve = content.curve
    at = stops(drawn, size, [] if curve is None else curve.edges.tolist())
    return {
        "chips": chips(content, network),
        "svg": network_svg(network, look) if drawn else "",
        "size": size,
        "drawn": drawn,
        "wide": network.width > _WIDE,
        "stops": at,
        "facts": to_script_json({**_facts(content, network), "stops": at, "size": size}),
    }


def _facts(content: CircuitContent, network: Network) -> dict[str, Any]:
    receivers = {name: place for place, name in enumerate(dict.fromkeys(edge.receiver for edge in network.edges))}
    name, curve = f"circuit-{content.task}-{content.model}", content.curve
    points = [] if curve is None else zip(curve.edges, curve.mean, curve.low, curve.high, strict=True)
    return {
        "name": "".join(letter if letter.isalnum() else "-" for letter in name)[:60],
        "nodes": [(node.name, node.place, node.kind) for node in network.nodes],
        "receivers": list(receivers),
        "edges": [
            (edge.source, edge.target, edge.port, receivers[edge.receiver], _short(edge.score))
            for edge in network.edges
        ],
        "carries": network.carries,
        "curve": sorted([round(float(edges)), *map(_short, rest)] for edges, *rest in points if np.isfinite(rest[0])),
        "order": content.order,
        "kept": content.size,
    }


def _short(value: float) -> float:
    """Round to six digits, of which a page shows three."""
    return float(f"{value:.6g}")


def _curves(content: CircuitContent) -> str:
    if not content.curves:
        return ""
    lines = [Curve(each.name, each.edges, each.mean, each.low, each.high, each.reference) for each in content.curves]
    return curves_svg(
        lines, title="Faithfulness by number of edges", x_label="edges kept", y_label="faithfulness", linear_y=True
    )


def _kl(content: CircuitContent) -> dict[str, str] | None:
    if content.kl is None or not np.isfinite(content.kl).any():
        return None
    there = content.kl[np.isfinite(content.kl)].astype(np.float64)
    most, mean, nan = float(there.max()), float(there.mean()), float("nan")
    strip = strip_svg(there, mean=mean, low=nan, high=nan, domain=(0.0, most or 1.0), width=420)
    return {"svg": strip, "most": number(most), "mean": number(mean), "count": f"{len(there):,}"}


def _edges(content: CircuitContent, most: int) -> dict[str, Any]:
    listed = list(zip(content.edges[:most], content.scores[:most], strict=True))
    rows = [
        {
            "rank": rank + 1,
            "sender": str(edge.sender),
            "receiver": str(edge.receiver),
            "place": edge.place,
            "score": number(float(score), 3),
            "kept": rank < content.size,
        }
        for rank, (edge, score) in enumerate(listed)
    ]
    return {"rows": rows, "more": len(content.edges) - len(rows)}
