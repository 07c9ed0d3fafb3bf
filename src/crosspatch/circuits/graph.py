"""The graph of a model: who writes to the residual stream, who reads it, and which edges lie between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.models.anatomy import Anatomy
from crosspatch.sites import Site

SENDERS = ("embed", "attn.head", "mlp.out")
RECEIVERS = ("attn.q", "attn.k", "attn.v", "mlp.in", "logits")
_STEP = {"embed": -1, "attn.q": 0, "attn.k": 0, "attn.v": 0, "attn.head": 0, "mlp.in": 1, "mlp.out": 1}


@dataclass(frozen=True)
class CircuitEdge:
    """One edge: what `sender` writes, as `receiver` reads it; with a `place`, at the tokens of that name only."""

    sender: Site
    receiver: Site
    place: str = ""

    def __str__(self) -> str:
        return f"{self.sender} -> {self.receiver}" + (f" @{self.place}" if self.place else "")


@dataclass(frozen=True)
class Graph:
    """Nodes and edges of a transformer whose parts add to one residual stream.

    Senders are the embedding, each head and each MLP (a mixture of experts is one); receivers are each head's query,
    each key-value head's key and value, each MLP's input, and the logits (the final stream). An edge goes from a sender
    to a receiver that reads the stream later; where attention and MLP are parallel, the MLP does not read its own
    layer's heads. With `places` (names of token positions), each edge is there once for each of them. `mlps=False` is
    the graph of an attention-only model.
    Sources: Conmy et al. 2023 (2304.14997), section 3; Elhage et al. 2021.
    """

    layers: int
    heads: int
    kv_heads: int
    sequential: bool = True
    places: tuple[str, ...] = ()
    mlps: bool = True

    @classmethod
    def of(cls, anatomy: Anatomy, places: Sequence[str] = ()) -> "Graph":
        """Return the graph of an opened model.

        Raises:
            BadInput: the model does not offer a kind of site that edges need.
        """
        for kind in (*SENDERS, *RECEIVERS, "attn.out"):
            anatomy.require(kind)
        return cls(anatomy.layers, anatomy.heads, anatomy.kv_heads, anatomy.sequential, tuple(places))

    @cached_property
    def senders(self) -> tuple[Site, ...]:
        """Everything that writes to the stream, in the order of a forward pass."""
        found = [Site("embed")]
        for layer in range(self.layers):
            found += [Site("attn.head", layer, head) for head in range(self.heads)]
            found += [Site("mlp.out", layer)] * self.mlps
        return tuple(found)

    @cached_property
    def receivers(self) -> tuple[Site, ...]:
        """Everything that reads the stream, in the order of a forward pass; of a layer all queries, keys, values."""
        found: list[Site] = []
        for layer in range(self.layers):
            counts = (("attn.q", self.heads), ("attn.k", self.kv_heads), ("attn.v", self.kv_heads))
            found += [Site(kind, layer, unit) for kind, count in counts for unit in range(count)]
            found += [Site("mlp.in", layer)] * self.mlps
        return (*found, Site("logits"))

    @cached_property
    def allowed(self) -> Bool[np.ndarray, "receiver sender"]:
        """Whether an edge exists, at each place alike."""
        written = np.array([self._time(site) for site in self.senders])
        read = np.array([self._time(site) for site in self.receivers])
        if not self.sequential:
            read -= read % 2  # the MLP reads what its layer's heads read
        return written[None] < read[:, None]

    def _time(self, site: Site) -> int:
        return 2 * self.layers if site.kind == "logits" else 2 * (site.layer or 0) + _STEP[site.kind]

    @property
    def rooms(self) -> int:
        """Number of copies of each edge: one a place, or one for all tokens together."""
        return max(1, len(self.places))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an array that has a number for every edge: place, receiver, sender."""
        return self.rooms, len(self.receivers), len(self.senders)

    @property
    def size(self) -> int:
        """Number of edges; 32,491 in GPT-2 small without places."""
        return int(self.allowed.sum()) * self.rooms

    @property
    def nodes(self) -> int:
        """Number of nodes: senders and the logits; 158 in GPT-2 small."""
        return len(self.senders) + 1

    def full(self) -> Bool[np.ndarray, "place receiver sender"]:
        """Return all edges."""
        return np.broadcast_to(self.allowed, self.shape).copy()

    def edge(self, index: tuple[int, int, int]) -> CircuitEdge:
        """Return the edge at a place of an array of this graph's shape."""
        place, receiver, sender = index
        name = self.places[place] if self.places else ""
        return CircuitEdge(self.senders[sender], self.receivers[receiver], name)

    def index(self, edge: CircuitEdge) -> tuple[int, int, int]:
        """Return where an edge lies in an array of this graph's shape.

        Raises:
            UnknownName, BadInput: the graph has no such node, place or edge.
        """
        if edge.sender not in self._sender_numbers:
            raise UnknownName.of("sender", str(edge.sender), [str(site) for site in self.senders])
        if edge.receiver not in self._receiver_numbers:
            raise UnknownName.of("receiver", str(edge.receiver), [str(site) for site in self.receivers])
        if edge.place not in (self.places or ("",)):
            raise UnknownName.of("place", edge.place, self.places or ("",))
        place = self.places.index(edge.place) if self.places else 0
        found = place, self._receiver_numbers[edge.receiver], self._sender_numbers[edge.sender]
        if not self.allowed[found[1:]]:
            raise BadInput(f"there is no edge {edge}: the receiver reads the stream before the sender writes to it.")
        return found

    @cached_property
    def _sender_numbers(self) -> dict[Site, int]:
        return {site: number for number, site in enumerate(self.senders)}

    @cached_property
    def _receiver_numbers(self) -> dict[Site, int]:
        return {site: number for number, site in enumerate(self.receivers)}

    def edges(self, included: Bool[np.ndarray, "place receiver sender"]) -> Iterator[CircuitEdge]:
        """Yield the edges that are marked, in the order of their receivers."""
        for index in np.argwhere(included):
            yield self.edge(tuple(index.tolist()))

    def node_of(self, receiver: Site) -> tuple[Site, ...]:
        """Return the senders that a receiver feeds: a head, all heads of a key-value head, an MLP; none for logits."""
        if receiver.kind == "logits":
            return ()
        if receiver.kind == "mlp.in":
            return (Site("mlp.out", receiver.layer),)
        unit = receiver.unit or 0
        group = self.heads // self.kv_heads
        heads = [unit] if receiver.kind == "attn.q" else range(unit * group, (unit + 1) * group)
        return tuple(Site("attn.head", receiver.layer, head) for head in heads)

    @cached_property
    def feeds(self) -> Bool[np.ndarray, "receiver sender"]:
        """Whether a receiver is an input of a sender's node."""
        found = np.zeros(self.shape[1:], dtype=bool)
        for number, receiver in enumerate(self.receivers):
            for node in self.node_of(receiver):
                found[number, self._sender_numbers[node]] = True
        return found
