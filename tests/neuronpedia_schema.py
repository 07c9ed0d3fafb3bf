"""Neuronpedia's published structure of an attribution graph (1.0.0), written down apart from the exporter."""

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Nothing is converted, and no key is there that the structure does not have."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Generator(Strict):
    name: str
    version: str
    url: str | None = None


class Info(Strict):
    generator: Generator
    description: str | None = None
    creator_name: str | None = None
    creator_url: str | None = None
    source_urls: list[str] = []
    create_time_ms: int | None = None


class Metadata(Strict):
    slug: str = Field(min_length=1)
    scan: str = Field(min_length=1)
    prompt_tokens: list[str] = Field(min_length=1)
    prompt: str
    info: Info | None = None
    generation_settings: dict[str, Any] = {}


class QParams(Strict):
    linkType: str
    pinnedIds: list[str] = []
    supernodes: list[list[str]] = []
    clickedId: str = ""
    sg_pos: str = ""


class Node(Strict):
    node_id: str
    feature: int
    layer: str
    ctx_idx: int
    feature_type: str
    jsNodeId: str
    clerp: str
    influence: float | None = None
    activation: float | None = None


class Link(Strict):
    source: str
    target: str
    weight: float


class Graph(Strict):
    metadata: Metadata
    qParams: QParams
    nodes: list[Node]
    links: list[Link]


def read_checked(path: Path) -> Graph:
    """Read a file as another program would, and check what the structure alone does not say."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    graph = Graph.model_validate(json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse))
    nodes = {node.node_id: node for node in graph.nodes}
    assert len(nodes) == len(graph.nodes)
    ends = {end for link in graph.links for end in (link.source, link.target)}
    assert ends == set(nodes)
    assert len({(link.source, link.target) for link in graph.links}) == len(graph.links)
    assert all(math.isfinite(link.weight) for link in graph.links)
    for node in graph.nodes:
        assert 0 <= node.ctx_idx < len(graph.metadata.prompt_tokens)
        assert node.node_id == f"{node.layer}_{node.feature}_{node.ctx_idx}"
        assert node.layer == "E" or node.layer.isdecimal()
    depth = {name: -1 if node.layer == "E" else int(node.layer) for name, node in nodes.items()}
    assert all(depth[link.source] <= depth[link.target] for link in graph.links)
    return graph
