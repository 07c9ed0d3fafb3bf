"""What other programs say of circuits: JSON files read with checks, and the names TransformerLens gives to edges."""

import json
import re
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.graph import CircuitEdge, Graph
from crosspatch.core.errors import BadInput
from crosspatch.core.store import write_whole
from crosspatch.sites import Site

Schema = TypeVar("Schema", bound=BaseModel)
_SHOWN = 3  # problems that one error lists


def read_json(path: str | Path, schema: type[Schema], *, what: str) -> Schema:
    """Read a JSON file from outside as `schema` says; `what` names such files in errors.

    Raises:
        BadInput: the file cannot be read, is cut short or no JSON, or does not hold what it must.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{str(path)!r} cannot be read: {error.strerror or error}. Give {what}.") from None
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        raise BadInput(f"{path.name} is not {what}: {_explain(error)}.") from None


def _explain(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)
    told = [f"{'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in found[:_SHOWN]]
    more = [f"and {len(found) - _SHOWN} more problems"] if len(found) > _SHOWN else []
    return "; ".join([*told, *more])


@dataclass(frozen=True)
class HookedEdge:
    """An edge by its TransformerLens names: the hooks of both ends, and which head of each (None: it has no heads).

    The head of a key or value input counts as TransformerLens does unless told to ungroup: key-value heads.
    """

    sender: str
    receiver: str
    sender_head: int | None = None
    receiver_head: int | None = None
    place: str = ""


_EMBEDDING, _ALSO_EMBEDDING = "blocks.0.hook_resid_pre", "hook_embed"
_TO_HOOK = {
    "attn.head": "attn.hook_result",
    "mlp.out": "hook_mlp_out",
    "attn.q": "hook_q_input",
    "attn.k": "hook_k_input",
    "attn.v": "hook_v_input",
    "mlp.in": "hook_mlp_in",
}
_FROM_HOOK = {name: kind for kind, name in _TO_HOOK.items()}
_SENDS = ("attn.head", "mlp.out")
_IN_BLOCK = re.compile(r"blocks\.(?P<layer>[0-9]{1,9})\.(?P<name>.+)")


def to_transformer_lens_edge(graph: Graph, edge: CircuitEdge) -> HookedEdge:
    """Name an edge as TransformerLens does: `blocks.5.attn.hook_result` head 3 to `blocks.7.hook_q_input` head 2.

    The embedding is `blocks.0.hook_resid_pre` (tokens and positions together), the logits the last layer's
    `hook_resid_post`. The inputs of heads and MLPs exist there with `use_split_qkv_input` and `use_hook_mlp_in`.

    Raises:
        UnknownName, BadInput: the graph has no such edge.
    """
    graph.index(edge)
    sender, receiver = _hook(graph, edge.sender), _hook(graph, edge.receiver)
    return HookedEdge(sender, receiver, edge.sender.unit, edge.receiver.unit, edge.place)


def from_transformer_lens_edge(graph: Graph, edge: HookedEdge) -> CircuitEdge:
    """Translate an edge by its TransformerLens names; `hook_embed` is taken for the embedding too.

    Raises:
        UnknownName, BadInput: a name or head is none of the graph's, or the graph has no such edge.
    """
    sender = _site(graph, edge.sender, edge.sender_head, sends=True)
    found = CircuitEdge(sender, _site(graph, edge.receiver, edge.receiver_head, sends=False), edge.place)
    graph.index(found)
    return found


def write_transformer_lens(circuit: Circuit, path: str | Path) -> Path:
    """Write a circuit's edges by their TransformerLens names, with scores (null for none), as JSON; give the path.

    Raises:
        BadInput: the file cannot be written.
    """
    edges = []
    for edge in circuit.edges:
        score = circuit.score(edge)
        named = asdict(to_transformer_lens_edge(circuit.graph, edge))
        edges.append(named | {"score": score if isfinite(score) else None})
    graph = {name: getattr(circuit.graph, name) for name in ("layers", "heads", "kv_heads", "sequential")}
    path = Path(path)
    write_whole(path, json.dumps({"graph": graph, "edges": edges}, allow_nan=False, indent=1).encode())
    return path


def _last(graph: Graph) -> str:
    return f"blocks.{graph.layers - 1}.hook_resid_post"


def _hook(graph: Graph, site: Site) -> str:
    if site.kind == "embed":
        return _EMBEDDING
    return _last(graph) if site.kind == "logits" else f"blocks.{site.layer}.{_TO_HOOK[site.kind]}"


def _site(graph: Graph, name: str, head: int | None, *, sends: bool) -> Site:
    form = _IN_BLOCK.fullmatch(name)
    kind = _FROM_HOOK.get(form["name"]) if form else None
    whole = {_EMBEDDING: "embed", _ALSO_EMBEDDING: "embed"} if sends else {_last(graph): "logits"}
    if name in whole:
        kind, layer = whole[name], None
    elif form is not None and kind is not None and (kind in _SENDS) == sends:
        layer = int(form["layer"])
    else:
        inner = [f"blocks.0.{hook}" for each, hook in _TO_HOOK.items() if (each in _SENDS) == sends]
        raise BadInput(
            f"{name!r} is no {'sender' if sends else 'receiver'} of edges in TransformerLens. There are "
            f"{', '.join([*whole, *inner])} (any layer for 0)."
        )
    if (head is not None) != kind.startswith("attn."):
        raise BadInput(f"{name} {'needs a head' if head is None else f'has no heads, head {head} was given'}.")
    return Site(kind, layer, head)
