"""Circuits as attribution graphs for neuronpedia's viewer, in its published JSON schema (version 1.0.0)."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, model_validator

from crosspatch import __version__
from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.exchange import read_json
from crosspatch.circuits.graph import CircuitEdge
from crosspatch.circuits.saving import plain
from crosspatch.core.errors import BadInput
from crosspatch.core.store import write_whole
from crosspatch.sites import Site

WHAT = "a graph in neuronpedia's schema (metadata, qParams, nodes, links)"
_BLANK = re.compile(r"[\s▁ĠĊ]+")  # how tokenizers write spaces and line ends


class _Data(BaseModel):
    # Fields that a later version of the schema adds are kept as they are.
    model_config = ConfigDict(frozen=True, extra="allow")


class Metadata(_Data):
    """What was asked: `scan` is neuronpedia's id of the model, `slug` the graph's own."""

    slug: str
    scan: str
    prompt_tokens: tuple[str, ...]
    prompt: str
    info: dict[str, Any] = {}
    generation_settings: dict[str, Any] = {}


class QParams(_Data):
    """The viewer's saved state."""

    pinnedIds: tuple[str, ...] = ()
    supernodes: tuple[tuple[str, ...], ...] = ()
    linkType: str = "both"
    clickedId: str = ""
    sg_pos: str = ""


class NodeData(_Data):
    """One node at one token."""

    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: NonNegativeInt
    feature_type: str
    jsNodeId: str
    clerp: str
    influence: FiniteFloat | None = None
    activation: FiniteFloat | None = None


class LinkData(_Data):
    """One weighted link between nodes, by their ids."""

    source: str
    target: str
    weight: FiniteFloat


class NeuronpediaGraph(_Data):
    """A whole graph; validation also finds ids that are double or missing, and nodes beyond the prompt's tokens."""

    metadata: Metadata
    qParams: QParams = Field(...)
    nodes: tuple[NodeData, ...]
    links: tuple[LinkData, ...]

    @model_validator(mode="after")
    def _consistent(self) -> "NeuronpediaGraph":
        ids, length = {node.node_id for node in self.nodes}, len(self.metadata.prompt_tokens)
        if len(ids) < len(self.nodes):
            raise ValueError("two nodes have the same node_id")
        lost = next((end for link in self.links for end in (link.source, link.target) if end not in ids), None)
        if lost is not None:
            raise ValueError(f"a link names the node {lost!r}, which is not there")
        beyond = next((node for node in self.nodes if node.ctx_idx >= length), None)
        if beyond is not None:
            raise ValueError(f"node {beyond.node_id!r} is at token {beyond.ctx_idx} of a prompt of {length} tokens")
        return self


@dataclass(frozen=True)
class ShownPrompt:
    """The prompt that a graph is drawn over: its text, its tokens as texts, and where each place of the graph is.

    `scan` is neuronpedia's id of the model (such as gpt2-small), `positions` an index into the tokens for each place.
    `answer` and its `probability` label the logits; the viewer reads both, so give both or none.
    """

    scan: str
    text: str
    tokens: tuple[str, ...]
    positions: Mapping[str, int] = field(default_factory=dict)
    answer: str = ""
    probability: float = nan


def to_neuronpedia(circuit: Circuit, prompt: ShownPrompt, *, slug: str) -> NeuronpediaGraph:
    """Make neuronpedia's graph of a circuit.

    A node is the embedding, a head, an MLP or the logits, at one token: that of its place, or the last where the graph
    has no places. A link's weight is the sum of the scores of the edges it stands for: a head's query, key and value
    are one target, and an edge to a key or value that heads share is divided equally among those of them that write.
    A key or value that is read at one place and acts at later ones is linked to its head at the tokens where that head
    writes (equal parts), or where it is read if it writes nowhere. Edges without a score weigh 0, and 1 where the
    circuit has no scores.

    Raises:
        BadInput: a place has no position, a position is outside the prompt, or the tokens are not those of the text.
    """
    _check_prompt(circuit, prompt)
    weights: dict[tuple[tuple[Site, int], tuple[Site, int]], float] = {}
    for link, weight in _links(circuit, prompt):
        weights[link] = weights.get(link, 0.0) + weight
    found = sorted({end for link in weights for end in link}, key=lambda end: (end[0], end[1]))
    nodes = {end: _node(circuit, prompt, *end) for end in found}
    return NeuronpediaGraph(
        metadata=Metadata(
            slug=slug,
            scan=prompt.scan,
            prompt_tokens=prompt.tokens,
            prompt=prompt.text,
            info={"generator": {"name": "crosspatch", "version": __version__}},
            generation_settings=plain(circuit.settings),
        ),
        qParams=QParams(linkType="both"),
        nodes=tuple(nodes.values()),
        links=tuple(
            LinkData(source=nodes[source].node_id, target=nodes[target].node_id, weight=weight)
            for (source, target), weight in weights.items()
        ),
    )


def write_neuronpedia(circuit: Circuit, path: str | Path, *, prompt: ShownPrompt, slug: str) -> Path:
    """Write a circuit as neuronpedia's JSON; give the path. Raises as `to_neuronpedia`, and BadInput if it cannot."""
    graph = to_neuronpedia(circuit, prompt, slug=slug)
    try:
        text = json.dumps(graph.model_dump(mode="json", exclude_unset=True), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"a setting of the circuit is no JSON: {error}.") from None
    write_whole(Path(path), text.encode())
    return Path(path)


def read_neuronpedia(path: str | Path) -> NeuronpediaGraph:
    """Read and check a graph file in neuronpedia's schema.

    Raises:
        BadInput: the file cannot be read, is cut short, does not follow the schema, or contradicts itself.
    """
    return read_json(path, NeuronpediaGraph, what=WHAT)


def _check_prompt(circuit: Circuit, prompt: ShownPrompt) -> None:
    missing = [place for place in circuit.graph.places if place not in prompt.positions]
    if missing:
        raise BadInput(f"the prompt says no position for {', '.join(missing)}: give each place of the graph its token.")
    length = len(prompt.tokens)
    for place, at in prompt.positions.items():
        if not 0 <= at < length:
            raise BadInput(f"{place} is at token {at}, and the prompt has {length} tokens (0 to {length - 1}).")
    if not length:
        raise BadInput("the prompt has no tokens: give them as texts.")
    if bool(prompt.answer) == isnan(prompt.probability):
        raise BadInput("the viewer labels the logits with an answer and its probability: give both or none.")
    text, joined = (_BLANK.sub("", each) for each in (prompt.text, "".join(prompt.tokens)))
    # Beyond ASCII, tokens may be bytes of a character, which no text can show.
    if joined.isascii() and text not in joined:
        raise BadInput(f"the tokens spell {''.join(prompt.tokens)!r}, not the prompt {prompt.text!r}: take its own.")


def _links(circuit: Circuit, prompt: ShownPrompt) -> Iterator[tuple[tuple[tuple[Site, int], tuple[Site, int]], float]]:
    graph = circuit.graph
    writes: dict[Site, set[int]] = {}
    for edge in circuit.edges:
        writes.setdefault(edge.sender, set()).add(_position(edge, prompt))
    for edge in circuit.edges:
        at, score = _position(edge, prompt), 1.0 if circuit.scores is None else circuit.score(edge)
        nodes = graph.node_of(edge.receiver) or (edge.receiver,)
        heads = [head for head in nodes if head in writes] or nodes
        for head in heads:
            later = sorted(place for place in writes.get(head, ()) if place >= at)
            carried = edge.receiver.kind in ("attn.k", "attn.v") and later
            for place in later if carried else [at]:
                share = len(heads) * (len(later) if carried else 1)
                yield ((edge.sender, at), (head, place)), float(np.nan_to_num(score)) / share


def _position(edge: CircuitEdge, prompt: ShownPrompt) -> int:
    return prompt.positions[edge.place] if edge.place else len(prompt.tokens) - 1


def _node(circuit: Circuit, prompt: ShownPrompt, site: Site, at: int) -> NodeData:
    graph = circuit.graph
    layer, feature, kind, label = {
        "embed": ("E", at, "embedding", f"Emb: {prompt.tokens[at]!r}"),
        "logits": (str(graph.layers), 0, "logit", _answer(prompt)),
        "mlp.out": (str(site.layer), graph.heads, "mlp", str(site)),
        "attn.head": (str(site.layer), site.unit, "attention head", str(site)),
    }[site.kind]
    return NodeData(
        node_id=f"{layer}_{feature}_{at}",
        feature=feature,
        layer=layer,
        ctx_idx=at,
        feature_type=kind,
        jsNodeId=f"{layer}_{feature}-{at}",
        clerp=label,
    )


def _answer(prompt: ShownPrompt) -> str:
    # The viewer reads the probability out of this text, in just this form.
    return f'Output "{prompt.answer}" (p={prompt.probability:.3f})' if prompt.answer else ""
