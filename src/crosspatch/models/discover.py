"""Find a model's parts by the names that architectures share. What is found here is proved in `models.proof`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from crosspatch.core.errors import NotProved
from crosspatch.models.anatomy import Anatomy, Point, Readout
from crosspatch.models.families import Family, Layout, family_of

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
OUTPUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")
FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")
SEPARATE = {"attn.q": ("q_proj", "wq"), "attn.k": ("k_proj", "wk"), "attn.v": ("v_proj", "wv")}
MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
DOWN = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "fc_out", "w2")
FIRST = ("fc1",)
# Present together, these two norms act on what attention and the MLP add to the stream, not on what they read.
POST_NORMS = {"attn.out": "post_attention_layernorm", "mlp.out": "post_feedforward_layernorm"}


@dataclass(frozen=True)
class Sizes:
    """The widths that the slicing of heads needs."""

    heads: int
    kv_heads: int
    d_head: int


def blocks_path(module: nn.Module) -> str:
    """Return the path of the list of blocks: the `ModuleList` that holds the most parameters.

    Raises:
        NotProved: the module has no list of blocks.
    """
    lists = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not lists:
        raise NotProved(f"{type(module).__name__} has no torch.nn.ModuleList of blocks, so its layers cannot be found.")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))[0]


def first_child(parent: nn.Module, names: Iterable[str]) -> str | None:
    """Return the first of the names that is a child module of the parent."""
    return next((name for name in names if isinstance(getattr(parent, name, None), nn.Module)), None)


def discover(module: nn.Module) -> Anatomy:
    """Describe the module by convention and family table; facts that only a run can tell are filled in by the proof.

    Raises:
        NotProved: no list of blocks, or no embedding or unembedding, can be found.
    """
    path = blocks_path(module)
    blocks = list(module.get_submodule(path))  # pyright: ignore[reportArgumentType]
    config = getattr(module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config  # pyright: ignore[reportOptionalMemberAccess]
    model_type = getattr(text, "model_type", type(module).__name__)
    attention = next((name for name in ATTENTION if all(first_child(block, [name]) for block in blocks)), "")
    sizes = head_sizes(text, blocks[0], attention)
    points, refused = find_points(blocks, attention, sizes, family_of(model_type))
    embedding = name_of(module, _getter(module, "get_input_embeddings"), "token embedding")
    unembed = name_of(module, _getter(module, "get_output_embeddings"), "unembedding")
    down = points.get("mlp.hidden")
    return Anatomy(
        family=model_type,
        embedding=embedding,
        blocks=path,
        layers=len(blocks),
        d_model=int(module.get_submodule(embedding).weight.shape[-1]),  # pyright: ignore
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        d_head=sizes.d_head,
        d_mlp=len(down.starts) if down else 0,
        vocab=int(module.get_submodule(embedding).weight.shape[0]),  # pyright: ignore
        attention=attention,
        sequential=True,
        packed=False,
        causal=True,
        tuples=False,
        readout=Readout(
            norms=(),
            unembed=unembed,
            scale=_logit_scale(text),
            softcap=float(getattr(text, "final_logit_softcapping", None) or 0.0),
        ),
        points=points,
        refused=refused,
        by_length=_rotary_by_length(text),
    )


def _rotary_by_length(config: object) -> bool:
    """Whether rotary tables change with the length of the prompt (transformers' `dynamic` and `longrope` types)."""
    settings = str(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    return "'dynamic'" in settings or "'longrope'" in settings


def _getter(module: nn.Module, name: str) -> nn.Module | None:
    get = getattr(module, name, None)
    return get() if callable(get) else None  # pyright: ignore[reportReturnType]


def _logit_scale(config: object) -> float:
    if getattr(config, "logits_scaling", None):
        return 1.0 / float(config.logits_scaling)  # pyright: ignore[reportAttributeAccessIssue]
    return float(getattr(config, "logit_scale", None) or 1.0)


def name_of(module: nn.Module, part: nn.Module | None, what: str) -> str:
    """Return the path of a part inside the module.

    Raises:
        NotProved: the part is missing.
    """
    path = next((name for name, m in module.named_modules() if part is not None and m is part), None)
    if path is None:
        raise NotProved(f"{type(module).__name__} does not say which module is its {what}.")
    return path


def head_sizes(config: object, block: nn.Module, attention: str) -> Sizes:
    """Return head counts and width from the configuration, checked against the attention's output projection."""
    if not attention:
        return Sizes(0, 0, 0)
    heads = _setting(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    part = block.get_submodule(attention)
    output = first_child(part, OUTPUT)
    columns = input_width(part.get_submodule(output)) if output else 0
    d_head = columns // heads if heads else 0
    kv_heads = _kv_heads(config, part, heads, d_head)
    return Sizes(heads, kv_heads, d_head)


def _kv_heads(config: object, attention: nn.Module, heads: int, d_head: int) -> int:
    """Count key-value heads from the key projection's own width; fused projections leave the rest to them."""
    key = first_child(attention, SEPARATE["attn.k"])
    if key and d_head:
        return output_width(attention.get_submodule(key)) // d_head
    fused = first_child(attention, FUSED)
    if fused and d_head:
        return (output_width(attention.get_submodule(fused)) // d_head - heads) // 2
    return _setting(config, "num_key_value_heads", "num_kv_heads") or heads


def _setting(config: object, *names: str) -> int:
    return int(next((v for n in names if (v := getattr(config, n, None)) is not None), 0))


def input_width(linear: nn.Module) -> int:
    """Return how many columns a linear map reads; 0 for a module that says nothing of it."""
    # transformers' Conv1D stores [in, out]; torch's Linear stores [out, in], and a quantised one something packed.
    own = getattr(linear, "in_features", None)
    return own if isinstance(own, int) else _width(linear, 0 if type(linear).__name__ == "Conv1D" else -1)


def output_width(linear: nn.Module) -> int:
    """Return how many columns a linear map gives; 0 for a module that says nothing of it."""
    own = getattr(linear, "out_features", None)
    return own if isinstance(own, int) else _width(linear, -1 if type(linear).__name__ == "Conv1D" else 0)


def _width(linear: nn.Module, axis: int) -> int:
    """Return a width of the weight matrix; 0 for a module that has none of its own."""
    weight = getattr(linear, "weight", None)
    return int(weight.shape[axis]) if isinstance(weight, torch.Tensor) and weight.ndim > 1 else 0


def find_points(
    blocks: Sequence[nn.Module], attention: str, sizes: Sizes, family: Family
) -> tuple[dict[str, Point], dict[str, str]]:
    """Return the point of each kind, alike in all blocks, and a reason for each kind that has none."""
    block = blocks[0]
    points: dict[str, Point] = {}
    refused: dict[str, str] = {}
    if attention:
        _attention_points(block, attention, sizes, family, into=points)
    _mlp_points(block, into=points)
    if all(isinstance(getattr(block, name, None), nn.Module) for name in POST_NORMS.values()):
        points |= {kind: Point(path, "output") for kind, path in POST_NORMS.items() if kind in points}
    points |= {kind: Point(path, "output") for kind, path in family.outputs.items()}
    for kind in ("attn.in", "attn.q", "attn.k", "attn.v", "attn.head", "attn.out"):
        if kind not in points:
            refused[kind] = "no module that carries it was found in the block"
    for kind in ("mlp.in", "mlp.hidden", "mlp.out"):
        if kind not in points:
            refused[kind] = "the MLP has no single projection of neurons (a mixture of experts, say)"
    for kind, point in list(points.items()):
        shape = _shape_at(block, point)
        if other := next((i for i, each in enumerate(blocks) if _shape_at(each, point) != shape), None):
            del points[kind]
            refused[kind] = f"block {other} is built in another way than block 0"
    return points, refused


def _shape_at(block: nn.Module, point: Point) -> tuple[str, int] | None:
    """Return what carries a point in a block, as far as its columns need; None where there is no such module."""
    module = dict(block.named_modules()).get(point.path)
    if module is None:
        return None
    if not point.starts:
        return "module", 0
    return "columns", input_width(module) if point.side == "input" else output_width(module)


def _attention_points(block: nn.Module, name: str, sizes: Sizes, family: Family, *, into: dict[str, Point]) -> None:
    attention = block.get_submodule(name)
    into["attn.in"] = Point(name, "input")
    into["attn.out"] = Point(name, "output")
    if not sizes.d_head:
        return
    if output := first_child(attention, OUTPUT):
        starts = range(0, sizes.heads * sizes.d_head, sizes.d_head)
        into["attn.head"] = Point(f"{name}.{output}", "input", starts, sizes.d_head)
    if fused := first_child(attention, FUSED):
        for kind, starts in fused_starts(family.layout, sizes).items():
            into[kind] = Point(f"{name}.{fused}", "output", starts, sizes.d_head)
        return
    for kind, names in SEPARATE.items():
        if part := first_child(attention, names):
            count = sizes.heads if kind == "attn.q" else sizes.kv_heads
            starts = range(0, count * sizes.d_head, sizes.d_head)
            into[kind] = Point(f"{name}.{part}", "output", starts, sizes.d_head)


def fused_starts(layout: Layout, sizes: Sizes) -> Mapping[str, tuple[int, ...]]:
    """Return the first column of each query, key and value head in a fused projection (see `families.Family`)."""
    heads, kv, d = sizes.heads, sizes.kv_heads, sizes.d_head
    if layout == "by head":
        return {kind: tuple((3 * h + i) * d for h in range(heads)) for i, kind in enumerate(SEPARATE)}
    if layout == "by group":
        # Falcon's three layouts are one: kv groups of `heads / kv` queries, then their key, then their value.
        each = heads // kv
        return {
            "attn.q": tuple((h // each * (each + 2) + h % each) * d for h in range(heads)),
            "attn.k": tuple((g * (each + 2) + each) * d for g in range(kv)),
            "attn.v": tuple((g * (each + 2) + each + 1) * d for g in range(kv)),
        }
    return {
        "attn.q": tuple(h * d for h in range(heads)),
        "attn.k": tuple((heads + h) * d for h in range(kv)),
        "attn.v": tuple((heads + kv + h) * d for h in range(kv)),
    }


def _mlp_points(block: nn.Module, *, into: dict[str, Point]) -> None:
    name = first_child(block, MLP)
    if name is None:
        # OPT keeps the two projections in the block itself.
        if (first := first_child(block, FIRST)) and (down := first_child(block, DOWN)):
            into["mlp.in"] = Point(first, "input")
            into["mlp.hidden"] = _neurons(block, down)
            into["mlp.out"] = Point(down, "output")
        return
    into["mlp.in"] = Point(name, "input")
    into["mlp.out"] = Point(name, "output")
    if down := first_child(block.get_submodule(name), DOWN):
        into["mlp.hidden"] = _neurons(block, f"{name}.{down}")
    if "mlp.hidden" in into and not into["mlp.hidden"].starts:
        del into["mlp.hidden"]


def _neurons(block: nn.Module, path: str) -> Point:
    width = input_width(block.get_submodule(path))
    return Point(path, "input", range(width), 1)
