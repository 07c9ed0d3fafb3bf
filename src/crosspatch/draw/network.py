"""Lay out a circuit: layers from the bottom to the top, heads by number or by place; pure data, the same every time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from crosspatch.core.errors import BadInput

PITCH, _ROOM, _WIDEST = 42, 520, 72  # pixels between the middles of two nodes of a row; more where few share the room
NODE_HEIGHT = 18
WIDTHS = {"embed": 50, "kv": 26, "head": 36, "mlp": 50, "logits": 50}
PORTS = {"q": -11, "k": 0, "v": 11}  # where edges end, to the right of a node's middle
_MOST_COLUMNS = 16  # up to so many heads a layer, each number has a column, whether used or not
_KIND = {"embed": "embed", "attn.head": "head", "mlp.in": "mlp", "mlp.out": "mlp", "logits": "logits"}
_RANK = {"kv": 0, "head": 1, "mlp": 2}
_ROW = {"kv": 32, "head": 28, "mlp": 16}  # height that each kind of node needs above what its layer has below it
_BETWEEN = 18  # for heads, where key-value heads stand between their columns
_FIRST_ROW, _FIRST_OF_MANY, _EMPTY_ROW, _ENDS, _NO_END = 46, 38, 14, 48, 12
_LEFT, _TOP, _GAP, _ARCS = 42, 40, 14, 58
_PORT_WORD = {"attn.q": "q", "attn.k": "k", "attn.v": "v", "mlp.in": "mlp", "logits": "logits"}


@runtime_checkable
class Address(Protocol):
    """Names a part of a model: what kind it is, in which layer, which unit."""

    @property
    def kind(self) -> str:
        """What it is: embed, attn.head, mlp.out, attn.q, attn.k, attn.v, mlp.in or logits."""
        ...

    @property
    def layer(self) -> int | None:
        """Its layer, None for what lies outside all layers."""
        ...

    @property
    def unit(self) -> int | None:
        """Its head, None for what has no heads."""
        ...


@runtime_checkable
class Wire(Protocol):
    """An edge as circuits have it: `receiver` reads what `sender` writes, at the tokens of `place` if it has a name."""

    @property
    def sender(self) -> Address:
        """Who writes."""
        ...

    @property
    def receiver(self) -> Address:
        """Who reads."""
        ...

    @property
    def place(self) -> str:
        """The name of the tokens, or nothing for all of them."""
        ...


@runtime_checkable
class Frame(Protocol):
    """What a picture must know of a model's graph besides its edges."""

    @property
    def layers(self) -> int:
        """Number of layers."""
        ...

    @property
    def heads(self) -> int:
        """Heads of a layer."""
        ...

    @property
    def kv_heads(self) -> int:
        """Key-value heads of a layer."""
        ...

    @property
    def places(self) -> tuple[str, ...]:
        """Names of token positions; empty where edges hold for all tokens together."""
        ...


class _Key(NamedTuple):
    """Which node: sorts from the bottom to the top, then from the left to the right."""

    level: int
    place: int
    unit: int
    kind: str

    def layer(self) -> int:
        return self.level // 3


@dataclass(frozen=True)
class Node:
    """A node, with its middle in pixels: the embedding, a head, an MLP, the logits, or a key-value head.

    Key-value heads are nodes of their own where several heads read one, or where places are told apart: attention
    carries what they read to other heads and places.
    """

    kind: str
    name: str
    label: str
    place: str
    x: float
    y: float


@dataclass(frozen=True)
class NetworkEdge:
    """An edge between two numbered nodes, the receiver's input (q, k, v, mlp, logits), its score, its curve."""

    source: int
    target: int
    port: str
    receiver: str
    score: float
    path: str


@dataclass(frozen=True)
class Band:
    """A named stretch of the picture, with where its name stands: a place, or a layer from top to bottom."""

    name: str
    start: float
    stop: float
    middle: float


@dataclass(frozen=True)
class Network:
    """A circuit's picture: nodes from the bottom to the top, edges in the order given, what attention carries."""

    nodes: tuple[Node, ...]
    edges: tuple[NetworkEdge, ...]
    carries: tuple[tuple[int, int], ...]
    layers: tuple[Band, ...]
    places: tuple[Band, ...]
    width: int
    height: int

    @cached_property
    def limit(self) -> float:
        """The largest magnitude of a score; 1 where there is none."""
        sizes = [abs(edge.score) for edge in self.edges if np.isfinite(edge.score)]
        return max(sizes, default=1.0) or 1.0

    def touched(self, count: int) -> frozenset[int]:
        """Number the nodes that the first `count` edges touch."""
        return frozenset(end for edge in self.edges[:count] for end in (edge.source, edge.target))

    def count(self, edges: int) -> int:
        """Count the nodes that the first edges touch, each once for all places; key-value heads are no nodes."""
        return len({self.nodes[number].name for number in self.touched(edges) if self.nodes[number].kind != "kv"})


def lay_out_network(frame: Frame, wires: Sequence[Wire], scores: Float[np.ndarray, " edge"]) -> Network:
    """Place the nodes of a circuit's edges and draw each edge's curve; edges keep their order.

    Only nodes that an edge touches are there. Without places, each column is a head's number; with places, each place
    has a band of its own, where heads stand packed. Raises BadInput unless each edge has a score (NaN for none).
    """
    if len(wires) != len(scores):
        raise BadInput(f"{len(wires)} edges have {len(scores)} scores: give one for each, NaN where there is none.")
    split = bool(frame.places) or frame.kv_heads != frame.heads
    ends = [(_sender(frame, wire), _receiver(frame, wire, split=split)) for wire in wires]
    keys = sorted({key for pair in ends for key in pair})
    rows, height = _rows(frame, keys)
    columns, bands, width = _columns(frame, keys)
    nodes = tuple(_node(frame, key, x=columns[key], y=rows[key.level]) for key in keys)
    numbers = {key: number for number, key in enumerate(keys)}
    edges = tuple(
        _edge(wire, nodes, (numbers[source], numbers[target]), float(score))
        for wire, score, (source, target) in zip(wires, scores, ends, strict=True)
    )
    return Network(
        nodes, edges, tuple(_carries(frame, numbers)), tuple(_layer_bands(frame, rows)), bands, width, height
    )


def _sender(frame: Frame, wire: Wire) -> _Key:
    return _key(frame, _KIND[wire.sender.kind], wire.sender, place=wire.place)


def _receiver(frame: Frame, wire: Wire, *, split: bool) -> _Key:
    kind = wire.receiver.kind
    if kind == "attn.q" or (not split and kind in ("attn.k", "attn.v")):
        return _key(frame, "head", wire.receiver, place=wire.place)
    return _key(frame, _KIND.get(kind, "kv"), wire.receiver, place=wire.place)


def _key(frame: Frame, kind: str, address: Address, *, place: str) -> _Key:
    inside = 3 * (address.layer or 0) + _RANK.get(kind, 0)
    level = {"embed": -1, "logits": 3 * frame.layers}.get(kind, inside)
    return _Key(level, frame.places.index(place) if frame.places else 0, address.unit or 0, kind)


def _node(frame: Frame, key: _Key, *, x: float, y: float) -> Node:
    layer, unit = key.layer(), key.unit
    names = {
        "head": f"attn.head[{layer}, {unit}]",
        "mlp": f"mlp.out[{layer}]",
        "kv": f"key-value head [{layer}, {unit}]",
    }
    labels = {"head": f"{layer}.{unit}", "mlp": f"MLP {layer}", "kv": f"kv{unit}"}
    place = frame.places[key.place] if frame.places else ""
    return Node(key.kind, names.get(key.kind, key.kind), labels.get(key.kind, key.kind), place, x, y)


# ---- rows ------------------------------------------------------------------------------------------------------------


def _rows(frame: Frame, keys: Sequence[_Key]) -> tuple[dict[int, float], int]:
    """Give the y of each level that has nodes, and the height of the whole; layers without a node are thin."""
    levels = {key.level for key in keys}
    first = _FIRST_ROW if frame.layers <= _MOST_COLUMNS else _FIRST_OF_MANY
    room = {**_ROW, "head": _BETWEEN if _between(frame) else _ROW["head"]}
    above = {-1: 0}  # how far each level lies above the embedding
    top = 6 if -1 in levels else -30
    for layer in range(frame.layers):
        here = [(3 * layer + rank, room[kind]) for kind, rank in _RANK.items() if 3 * layer + rank in levels]
        top += 0 if here else _EMPTY_ROW
        for level, needed in here:
            top += first if level == here[0][0] else needed
            above[level] = top
        if not here:
            above[3 * layer + 1] = top
    top += _ENDS if 3 * frame.layers in levels else _NO_END
    above[3 * frame.layers] = top
    foot = _TOP + top
    return {level: float(foot - up) for level, up in above.items()}, foot + NODE_HEIGHT


def _between(frame: Frame) -> bool:
    """Tell whether key-value heads fit between the columns of their heads, and need no row of their own."""
    group = frame.heads // frame.kv_heads
    return not frame.places and group % 2 == 0 and _pitch(frame.heads) >= (WIDTHS["head"] + WIDTHS["kv"]) + 4


def _layer_bands(frame: Frame, rows: dict[int, float]) -> list[Band]:
    """Part the picture into layers, half-way between their rows; names stand beside the heads."""
    own = [[rows[3 * layer + rank] for rank in range(3) if 3 * layer + rank in rows] for layer in range(frame.layers)]
    edges = [rows[-1] - NODE_HEIGHT / 2 - 5]
    edges += [(min(low) + max(high)) / 2 for low, high in pairwise(own)]
    edges.append(min(own[-1]) - NODE_HEIGHT / 2 - 6)
    named = [rows.get(3 * layer + 1, min(each)) for layer, each in enumerate(own)]
    return [Band(str(layer), edges[layer + 1], edges[layer], named[layer]) for layer in range(frame.layers)]


# ---- columns ---------------------------------------------------------------------------------------------------------


def _pitch(columns: int) -> float:
    return float(max(PITCH, min(_WIDEST, _ROOM // max(columns, 1))))


def _columns(frame: Frame, keys: Sequence[_Key]) -> tuple[dict[_Key, float], tuple[Band, ...], int]:
    """Give the x of each node, the bands of places, and the width of the whole."""
    found: dict[_Key, float] = {}
    bands, left = [], float(_LEFT)
    for place in range(max(1, len(frame.places))):
        here = [key for key in keys if key.place == place]
        slots, columns = _packed(here) if frame.places else _by_number(frame, here)
        pitch = float(PITCH) if frame.places else _pitch(columns)
        wide = columns * pitch
        found |= {key: left + (slot + 0.5) * pitch for key, slot in slots.items()}
        found |= {key: left + wide / 2 for key in here if key.kind in ("embed", "logits")}
        mlps = [key for key in here if key.kind == "mlp"]
        found |= {key: left + wide + 10 + WIDTHS["mlp"] / 2 for key in mlps}
        right = left + wide + (16 + WIDTHS["mlp"]) * bool(mlps)
        right += (_GAP if frame.places else _ARCS) * bool(mlps)
        bands += [Band(frame.places[place], left - 4, right, (left - 4 + right) / 2)] if frame.places else []
        left = right + _GAP
    return found, tuple(bands), round(left)


def _by_number(frame: Frame, keys: Sequence[_Key]) -> tuple[dict[_Key, float], int]:
    """Give heads the column of their number, key-value heads the middle of their heads' columns; count the columns."""
    group = frame.heads // frame.kv_heads
    # A key-value head whose heads are not there needs a column all the same.
    used = {key.unit for key in keys if key.kind == "head"} | {key.unit * group for key in keys if key.kind == "kv"}
    order = range(frame.heads) if frame.heads <= _MOST_COLUMNS else sorted(used)
    slot = {head: float(place) for place, head in enumerate(order)}
    found = {key: slot[key.unit] for key in keys if key.kind == "head"}
    for key in keys:
        if key.kind == "kv":
            found[key] = float(np.mean([slot[h] for h in range(key.unit * group, (key.unit + 1) * group) if h in slot]))
    return found, max(len(slot), 2)


def _packed(keys: Sequence[_Key]) -> tuple[dict[_Key, float], int]:
    """Set the heads, and the key-value heads, of each layer side by side about the middle of their band."""
    rows: dict[int, list[_Key]] = {}
    for key in keys:
        if key.kind in ("head", "kv"):
            rows.setdefault(key.level, []).append(key)
    most = max([2, *map(len, rows.values())])
    return {key: (most - len(row)) / 2 + number for row in rows.values() for number, key in enumerate(row)}, most


# ---- edges -----------------------------------------------------------------------------------------------------------


def _edge(wire: Wire, nodes: Sequence[Node], ends: tuple[int, int], score: float) -> NetworkEdge:
    port = _PORT_WORD[wire.receiver.kind]
    source, target = (nodes[end] for end in ends)
    end = target.x + (PORTS.get(port, 0) if target.kind == "head" else PORTS.get(port, 0) * 0.6)
    path = _curve((source.x, source.y - NODE_HEIGHT / 2), (end, target.y + NODE_HEIGHT / 2), arc=source.kind == "mlp")
    return NetworkEdge(*ends, port, str(wire.receiver), score, path)


def _curve(start: tuple[float, float], end: tuple[float, float], *, arc: bool) -> str:
    """Draw a curve that leaves and arrives upright; one that would run through its own column swings out of it."""
    rise = start[1] - end[1]
    lift = max(10.0, min(0.45 * rise, 90.0))
    aside = 0.0
    if abs(start[0] - end[0]) < PITCH / 2 and rise > 1.5 * NODE_HEIGHT:
        aside = min(0.35 * rise, 1.3 * _ARCS) if arc else min(0.5 * rise, 30.0)
    one, two = (start[0] + aside, start[1] - lift), (end[0] + aside, end[1] + lift)
    return f"M{_at(start)}C{_at(one)} {_at(two)} {_at(end)}"


def _at(point: tuple[float, float]) -> str:
    return f"{round(point[0])} {round(point[1])}"


def _carries(frame: Frame, numbers: dict[_Key, int]) -> list[tuple[int, int]]:
    """Pair each key-value head with the heads that read it, at whatever place: the numbers of their nodes."""
    group = frame.heads // frame.kv_heads
    return [
        (numbers[one], numbers[two])
        for one in numbers
        for two in numbers
        if one.kind == "kv" and two.kind == "head" and two.layer() == one.layer() and two.unit // group == one.unit
    ]
