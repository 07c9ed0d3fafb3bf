"""Information-flow routes by hand: every part of every node as a vector, importances as published, then a search.

Written from Ferrando and Voita 2024 (2403.00824), with plain hooks; the zoo's table tells where things are. A node is
`(stage, token)`: stage 2l enters block l, 2l + 1 lies between its attention and its MLP. An edge is
`(component, source node, target node)`; a bias comes from no node.

    parts_of(name, ids, layer, token)          # {(component, source): vector} at a token behind attention
    graph(name, ids)                           # {edge: importance} of all tokens
    route(graph(name, ids), end, 0.04)         # {edge: weight} of those that the end depends on
"""

import torch
from torch import Tensor

from naive.families import activation, patterns, spot_of
from zoo import ZOO

Node = tuple[int, int]
Edge = tuple[str, Node | None, Node]
FLOAT = torch.float32
EPSILON = 1e-5


@torch.no_grad()
def parts_of(name: str, ids: tuple[int, ...], layer: int, token: int) -> dict[tuple[str, Node | None], Tensor]:
    """Return what attention at a token is the sum of: x_i + Σ_h Σ_j α_ij^h v_j^h W_O^h + b_O (their equation 2)."""
    beast, pattern = ZOO[name], patterns(name, ids, FLOAT)[layer]
    values, project = activation(name, "attn.v", layer, ids, FLOAT), spot_of(name, "attn.head", layer, FLOAT)[0]
    width = max(beast.starts("attn.head")) + 8
    nothing = project(torch.zeros(width))
    parts: dict[tuple[str, Node | None], Tensor] = {("attn.bias", None): nothing}
    for head in range(len(pattern)):
        for source in range(token + 1):
            alone = torch.zeros(width)
            group = head // (len(pattern) // len(beast.v))
            alone[beast.columns("attn.head", head)] = values[source, beast.columns("attn.v", group)]
            vector = pattern[head, token, source] * (project(alone) - nothing)
            parts[f"attn.head[{layer}, {head}]", (2 * layer, source)] = vector
    written, added = sum(parts.values()), activation(name, "attn.out", layer, ids, FLOAT)[token]
    held = added / written if "norm" in beast.spots["attn.out"][0] else 1.0  # a norm's scale and gain, entry by entry
    parts = {key: part * held for key, part in parts.items() if key[0] != "attn.bias" or bool(nothing.any())}
    parts["resid", (2 * layer, token)] = activation(name, "resid.pre", layer, ids, FLOAT)[token]
    return parts


def importance(parts: dict, *, total: Tensor) -> dict:
    """Share a sum out among its parts: max(‖y‖₁ − ‖z − y‖₁, ε), divided by the sum of all."""
    found = {key: max(float(total.abs().sum() - (z - total).abs().sum()), EPSILON) for key, z in parts.items()}
    return {key: proximity / sum(found.values()) for key, proximity in found.items()}


def graph(name: str, ids: tuple[int, ...]) -> dict[Edge, float]:
    """Return the importance of every edge."""
    beast, edges = ZOO[name], {}
    for layer in range(3):
        mlp, out = (activation(name, kind, layer, ids, FLOAT) for kind in ("mlp.out", "resid.post"))
        for token in range(len(ids)):
            parts, target = parts_of(name, ids, layer, token), (2 * layer + 1, token)
            if beast.parallel:
                parts[f"mlp.out[{layer}]", (2 * layer, token)], target = mlp[token], (2 * layer + 2, token)
            middle = sum(parts.values())
            nodes = [(parts, middle, target)]
            if not beast.parallel:
                two = {("resid", target): middle, (f"mlp.out[{layer}]", target): mlp[token]}
                nodes.append((two, out[token], (2 * layer + 2, token)))
            for each, total, end in nodes:
                for (component, source), share in importance(each, total=total).items():
                    named = f"attn.bias[{layer}]" if component == "attn.bias" else component
                    edges[named, source, end] = share
    return edges


def route(edges: dict[Edge, float], end: Node, threshold: float) -> dict[Edge, float]:
    """Search backwards along edges above the threshold; a node's edges share 1 among themselves."""
    found: dict[Edge, float] = {}
    waiting, seen = [end], {end}
    while waiting:
        node = waiting.pop()
        kept = {edge: share for edge, share in edges.items() if edge[2] == node and share > threshold}
        found |= {edge: share / sum(kept.values()) for edge, share in kept.items()}
        fresh = {edge[1] for edge in kept if edge[1] is not None} - seen
        waiting, seen = [*waiting, *fresh], seen | fresh
    return found
