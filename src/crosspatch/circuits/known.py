"""Circuits that people found by hand and published, as data: indirect objects, greater-than, docstrings."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.graph import CircuitEdge, Graph
from crosspatch.core.errors import UnknownName
from crosspatch.sites import Site


@dataclass(frozen=True)
class Description:
    """A published circuit: named groups of nodes (`9.6` a head, `m3` an MLP), and which group feeds which.

    A link joins every node of its first group with every later node of its second; for heads it says which of query,
    key and value reads. `counted` is the number of edges that ACDC's tables give.
    """

    model: str
    paper: str
    graph: Graph
    groups: Mapping[str, str]
    links: tuple[tuple[str, str, str], ...]
    counted: int


_GPT2 = Graph(12, 12, 12)
_MLPS = " ".join(f"m{layer}" for layer in range(12))
_ENDS = {"embedding": "embed", "output": "logits"}

_IOI_HEADS = {
    "name movers": "9.9 10.0 9.6",
    "backup name movers": "10.10 10.6 10.2 10.1 11.2 9.7 9.0 11.9",
    "negative name movers": "10.7 11.10",
    "S-inhibition": "7.3 7.9 8.6 8.10",
    "induction": "5.5 5.8 5.9 6.9",
    "duplicate token": "0.1 0.10 3.0",
    "previous token": "2.2 4.11",
}
_MOVERS = ("name movers", "backup name movers", "negative name movers")
_IOI = Description(
    model="gpt2",
    paper="Wang et al. 2022 (2211.00593), as edges in Conmy et al. 2023 (2304.14997)",
    graph=_GPT2,
    groups=_ENDS | {"MLPs": _MLPS} | _IOI_HEADS,
    links=(
        # The published circuit is one of heads: everything between the embedding, the MLPs and the output stays.
        ("embedding", "MLPs", ""),
        ("embedding", "output", ""),
        ("MLPs", "MLPs", ""),
        ("MLPs", "output", ""),
        *(("MLPs", group, "qkv") for group in _IOI_HEADS),
        *((group, "MLPs", "") for group in _IOI_HEADS),
        ("embedding", "previous token", "qkv"),
        ("embedding", "duplicate token", "qkv"),
        ("embedding", "S-inhibition", "q"),
        *(("embedding", movers, "kv") for movers in _MOVERS),
        ("previous token", "induction", "kv"),
        ("induction", "S-inhibition", "kv"),
        ("duplicate token", "S-inhibition", "kv"),
        *(("S-inhibition", movers, "q") for movers in _MOVERS),
        *((movers, "output", "") for movers in _MOVERS),
    ),
    counted=1041,
)
_GREATER_THAN = Description(
    model="gpt2",
    paper="Hanna et al. 2023 (2305.00586), as edges in Conmy et al. 2023 (2304.14997)",
    graph=_GPT2,
    groups=_ENDS
    | {
        "early heads": "0.3 0.5",
        "head 0.1": "0.1",
        "early MLPs": "m0 m1 m2 m3",
        "middle heads": "5.5 6.1 6.9 7.10 8.11 9.1",
        "late MLPs": "m8 m9 m10 m11",
        "MLPs before the last middle head": "m0 m1 m2 m3 m4 m5 m6 m7 m8",
    },
    links=(
        ("embedding", "early heads", "qkv"),
        ("embedding", "head 0.1", "qkv"),
        ("embedding", "early MLPs", ""),
        ("head 0.1", "early MLPs", ""),
        ("head 0.1", "middle heads", "qkv"),
        ("early heads", "middle heads", "qkv"),
        ("early MLPs", "early MLPs", ""),
        ("early MLPs", "middle heads", "qkv"),
        ("middle heads", "late MLPs", ""),
        ("late MLPs", "late MLPs", ""),
        ("middle heads", "output", ""),
        ("late MLPs", "output", ""),
        # The authors left the queries of the middle heads whole; all MLPs before them stand for that.
        ("MLPs before the last middle head", "MLPs before the last middle head", ""),
        ("MLPs before the last middle head", "middle heads", "q"),
    ),
    counted=262,
)
_DOCSTRING = Description(
    model="attn-only-4l",
    paper="Heimersheim and Janiak 2023 (A circuit for Python docstrings), as edges in Conmy et al. 2023 (2304.14997)",
    graph=Graph(4, 8, 8, mlps=False),
    groups=_ENDS
    | {
        "head 0.5": "0.5",
        "head 1.2": "1.2",
        "head 1.4": "1.4",
        "head 2.0": "2.0",
        "argument movers": "3.0 3.6",
    },
    links=(
        ("embedding", "head 0.5", "v"),
        *((source, "head 1.4", "v") for source in ("embedding", "head 0.5")),
        *((source, "head 1.2", "qk") for source in ("embedding", "head 0.5")),
        *((source, "head 2.0", "qk") for source in ("embedding", "head 0.5")),
        ("head 1.4", "head 2.0", "v"),
        ("head 1.4", "argument movers", "q"),
        ("head 1.2", "argument movers", "k"),
        ("head 2.0", "argument movers", "k"),
        *((source, "argument movers", "v") for source in ("embedding", "head 0.5")),
        ("argument movers", "output", ""),
    ),
    counted=37,
)
KNOWN: Mapping[str, Description] = MappingProxyType(
    {"ioi": _IOI, "greater-than": _GREATER_THAN, "docstring": _DOCSTRING}
)


def known_circuit(name: str) -> Circuit:
    """Return a published circuit: "ioi" (26 heads of GPT-2 small), "greater-than" (GPT-2 small) or "docstring".

    The last is of the attention-only model of four layers and eight heads. The edges are those that ACDC was judged by
    (Conmy et al. 2023), without its edges from a head's query, key or value input to that query, key or value: ours
    are 963, 235 and 24, with those 1041, 262 and 37 (`counted_by_acdc`). They hold at all tokens; there are no scores.
    `details["groups"]` names the groups of heads and MLPs, `settings` the source.

    Raises:
        UnknownName: there is no known circuit of that name.
    """
    if name not in KNOWN:
        raise UnknownName.of("published circuit", name, KNOWN)
    told = KNOWN[name]
    included = np.zeros(told.graph.shape, dtype=bool)
    for source, target, reads in told.links:
        for edge in _between(told, source, target, reads):
            included[told.graph.index(edge)] = True
    settings = {"known": name, "model": told.model, "source": told.paper, "counted_by_acdc": told.counted}
    groups = {group: nodes.split() for group, nodes in told.groups.items() if group not in _ENDS}
    return Circuit(told.graph, included, settings=settings, details={"groups": groups})


def counted_by_acdc(circuit: Circuit) -> int:
    """Count a circuit's edges as ACDC does: one more for each query, key or value of a head that has an edge.

    ACDC's "direct computation" edges lead from the input of a query, key or value to itself; here they are no choice.
    """
    read = np.asarray(circuit.included.any((0, 2)))
    inputs = [site.kind.startswith("attn.") for site in circuit.graph.receivers]
    return circuit.size + int(read[np.array(inputs)].sum())


def _between(told: Description, source: str, target: str, reads: str) -> list[CircuitEdge]:
    senders = [_sender(node) for node in told.groups[source].split()]
    receivers = [site for node in told.groups[target].split() for site in _receivers(node, reads)]
    edges = [CircuitEdge(sender, receiver) for sender in senders for receiver in receivers]
    return [edge for edge in edges if _forward(edge)]


def _forward(edge: CircuitEdge) -> bool:
    """Tell whether the receiver comes after the sender: in a later layer, or an MLP that reads its layer's head."""
    if edge.sender.layer is None or edge.receiver.layer is None:
        return True
    within = edge.sender.kind == "attn.head" and edge.receiver.kind == "mlp.in"
    return edge.sender.layer < edge.receiver.layer + within


def _sender(node: str) -> Site:
    if node == "embed":
        return Site("embed")
    if node.startswith("m"):
        return Site("mlp.out", int(node[1:]))
    layer, head = map(int, node.split("."))
    return Site("attn.head", layer, head)


def _receivers(node: str, reads: str) -> list[Site]:
    if node == "logits":
        return [Site("logits")]
    if node.startswith("m"):
        return [Site("mlp.in", int(node[1:]))]
    layer, head = map(int, node.split("."))
    return [Site(f"attn.{letter}", layer, head) for letter in reads]
