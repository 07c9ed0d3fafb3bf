"""Circuits in the JSON format of EAP-IG and MIB's circuit track: nodes `a5.h3`, edges `a5.h3->a7.h2<q>`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.exchange import read_json
from crosspatch.circuits.graph import Graph
from crosspatch.core.errors import BadInput
from crosspatch.core.store import write_whole
from crosspatch.sites import Site

WHAT = "a graph as EAP-IG's to_json writes it"
Partial = Literal["refuse", "any", "all"]
_LETTERS = {"attn.q": "q", "attn.k": "k", "attn.v": "v"}


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Config(_Data):
    n_layers: PositiveInt
    n_heads: PositiveInt
    parallel_attn_mlp: bool
    d_model: PositiveInt


class _Node(_Data):
    in_graph: bool
    neurons: list[bool] | None = None


class _Edge(_Data):
    score: FiniteFloat
    in_graph: bool


class _File(_Data):
    cfg: _Config
    nodes: dict[str, _Node]
    edges: dict[str, _Edge]


def read_eap_ig(path: str | Path, graph: Graph | None = None, *, partial: Partial = "refuse") -> Circuit:
    """Read a graph that EAP-IG wrote (`Graph.to_json`; also the circuits of MIB) as a circuit with scores.

    EAP-IG gives each query head its own key and value inputs, also where heads share them. Give the `graph` of such a
    model (the file does not say): its scores add up over the heads of a key-value head, as first-order effects do. If
    only some of these heads' edges are marked, no circuit here is the same one; `partial` says what to do: "refuse",
    or mark the shared edge if "any" or "all" of them are. Edges that the file leaves out are unmarked, their score NaN.

    Whether an edge is in is read from the edges, as EAP-IG's own `prune` does; marks and scores of nodes are not read.
    What a positive score means depends on the metric that was differentiated, so the circuit is not `signed`.

    Raises:
        BadInput: the file cannot be read, is cut short, holds NaN or unknown nodes, has other heads or layers than
            `graph`, chooses neurons within nodes, or marks shared edges in part.
    """
    path = Path(path)
    data = read_json(path, _File, what=WHAT)
    nodes = data.cfg.n_layers * (data.cfg.n_heads + 1) + 2
    if len(data.nodes) != nodes:
        raise BadInput(
            f"{path.name}: its config ({data.cfg.n_layers} layers with {data.cfg.n_heads} heads) makes {nodes} nodes, "
            f"it lists {len(data.nodes)}."
        )
    graph = _graph_of(data.cfg, graph, path.name)
    _check_nodes(data, graph, path.name)
    scores, marked, seen = (np.zeros(graph.shape[1:]) for _ in range(3))
    senders, receivers = _sender_names(graph), _receiver_names(graph)
    for name, edge in data.edges.items():
        at = _index(name, senders, receivers, graph=graph, file=path.name)
        scores[at] += edge.score
        marked[at] += edge.in_graph
        seen[at] += 1
    copies = _copies(graph)[:, None]
    if ((seen > 0) & (seen < copies)).any():
        raise BadInput(f"{path.name} has an edge to the key or value of some heads of a group and not of the others.")
    included = _together(marked, copies, partial, path.name)
    found = np.where(seen > 0, scores, np.nan).astype(np.float32)
    settings = {"format": "EAP-IG", "file": path.name, "d_model": data.cfg.d_model}
    return Circuit(graph, included[None], found[None], settings=settings)


def write_eap_ig(circuit: Circuit, path: str | Path, *, d_model: int | None = None) -> Path:
    """Write a circuit as EAP-IG's `Graph.from_json` reads it; give the path.

    An edge to a key or value that several heads share is written once for each of them, its score divided equally, so
    that the parts add up to it. Edges without a score get 0, as in EAP-IG's own new graphs. `d_model` is the width of
    the model, which the format names; a circuit that was read from such a file knows it.

    Raises:
        BadInput: the graph has places or no MLPs, which the format cannot say, or d_model is not known.
    """
    graph = circuit.graph
    _need_plain(graph)
    d_model = d_model or circuit.settings.get("d_model")
    if d_model is None:
        raise BadInput("EAP-IG's format names the model's width: give d_model.")
    config = {
        "n_layers": graph.layers,
        "n_heads": graph.heads,
        "parallel_attn_mlp": not graph.sequential,
        "d_model": int(d_model),
    }
    text = json.dumps({"cfg": config, "nodes": _nodes(circuit), "edges": dict(_edges(circuit))}, allow_nan=False)
    path = Path(path)
    write_whole(path, text.encode())
    return path


def _graph_of(config: _Config, graph: Graph | None, file: str) -> Graph:
    if graph is None:
        return Graph(config.n_layers, config.n_heads, config.n_heads, not config.parallel_attn_mlp)
    _need_plain(graph)
    pairs = {
        "layers": (config.n_layers, graph.layers),
        "heads": (config.n_heads, graph.heads),
        "attention and MLP in parallel": (config.parallel_attn_mlp, not graph.sequential),
    }
    differing = [
        f"{name}: {theirs} in the file, {ours} here" for name, (theirs, ours) in pairs.items() if theirs != ours
    ]
    if differing:
        raise BadInput(f"{file} is of another model: {'; '.join(differing)}.")
    return graph


def _need_plain(graph: Graph) -> None:
    if graph.places or not graph.mlps:
        lack = "positions: a circuit with places" if graph.places else "models without MLPs: a circuit of one"
        raise BadInput(f"EAP-IG's format knows no {lack} cannot be written or read in it.")


def _check_nodes(data: _File, graph: Graph, file: str) -> None:
    known = {*_sender_names(graph), "logits"}
    unknown = next((name for name in data.nodes if name not in known), None)
    if unknown is not None:
        raise BadInput(f"{file}: there is no node {unknown!r} in a model of {_size(graph)}.")
    partly = next((name for name, node in data.nodes.items() if node.neurons and not all(node.neurons)), None)
    if partly is not None:
        raise BadInput(f"{file} chooses some of the neurons of {partly}: circuits here hold whole nodes.")


def _index(
    name: str, senders: dict[str, int], receivers: dict[str, int], *, graph: Graph, file: str
) -> tuple[int, int]:
    sender, _, receiver = name.partition("->")
    if sender not in senders:
        raise BadInput(f"{file}, edge {name!r}: there is no sender {sender!r} in a model of {_size(graph)}.")
    if receiver not in receivers:
        raise BadInput(
            f"{file}, edge {name!r}: there is no receiver {receiver!r} in a model of {_size(graph)}; receivers are "
            "written such as a0.h0<q>, a0.h0<k>, a0.h0<v>, m0 and logits."
        )
    at = receivers[receiver], senders[sender]
    if not graph.allowed[at]:
        raise BadInput(f"{file}, edge {name!r}: the receiver reads the stream before the sender writes to it.")
    return at


def _size(graph: Graph) -> str:
    return f"{graph.layers} layers with {graph.heads} heads"


def _together(
    marked: Float[np.ndarray, "receiver sender"], copies: Float[np.ndarray, "receiver 1"], partial: Partial, file: str
) -> Bool[np.ndarray, "receiver sender"]:
    split = int(((marked > 0) & (marked < copies)).sum())
    if split and partial == "refuse":
        raise BadInput(
            f"{file} marks {split} edges to keys or values for some of the heads that share them and not for others. "
            "Say partial='any' to take such an edge, partial='all' to leave it out."
        )
    return marked > 0 if partial == "any" else marked == np.broadcast_to(copies, marked.shape)


def _node_name(site: Site) -> str:
    if site.layer is None:
        return "input" if site.kind == "embed" else "logits"
    return f"m{site.layer}" if site.kind.startswith("mlp") else f"a{site.layer}.h{site.unit}"


def _sender_names(graph: Graph) -> dict[str, int]:
    return {_node_name(site): number for number, site in enumerate(graph.senders)}


def _names_of(graph: Graph, receiver: Site) -> list[str]:
    """Name a receiver; a key or value once for each head that shares it."""
    if receiver.kind not in _LETTERS:
        return [_node_name(receiver)]
    return [f"{_node_name(head)}<{_LETTERS[receiver.kind]}>" for head in graph.node_of(receiver)]


def _receiver_names(graph: Graph) -> dict[str, int]:
    return {name: number for number, site in enumerate(graph.receivers) for name in _names_of(graph, site)}


def _copies(graph: Graph) -> Float[np.ndarray, " receiver"]:
    return np.array([len(_names_of(graph, site)) for site in graph.receivers], dtype=np.float64)


def _nodes(circuit: Circuit) -> dict[str, dict[str, bool]]:
    """Mark the nodes that have edges both in and out; the embedding needs none in, the logits are always marked."""
    graph, used = circuit.graph, circuit.included[0]
    fed = np.asarray(graph.feeds[used.any(axis=1)].any(axis=0))
    fed[0] = True
    there = fed & used.any(axis=0)
    nodes = {name: {"in_graph": bool(there[number])} for name, number in _sender_names(graph).items()}
    return nodes | {"logits": {"in_graph": True}}


def _edges(circuit: Circuit) -> Iterator[tuple[str, dict[str, float | bool]]]:
    graph = circuit.graph
    scores = np.zeros(graph.shape) if circuit.scores is None else np.nan_to_num(circuit.scores.astype(np.float64))
    senders = list(_sender_names(graph))
    for number, receiver in enumerate(graph.receivers):
        names = _names_of(graph, receiver)
        for sender in np.flatnonzero(graph.allowed[number]):
            told = {
                "score": float(scores[0, number, sender]) / len(names),
                "in_graph": bool(circuit.included[0, number, sender]),
            }
            yield from ((f"{senders[sender]}->{name}", told) for name in names)
