"""`sites`: what can be patched in a model, with shapes, the modules that carry it, and TransformerLens names."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from crosspatch.cli import options as given
from crosspatch.cli.question import open_model
from crosspatch.cli.say import Voice

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from crosspatch.models.anatomy import Anatomy
    from crosspatch.models.model import Model

UNITS = {"head": "head", "kv_head": "key-value head", "neuron": "neuron"}


def sites(
    model: given.Model,
    *,
    device: given.Device = None,
    dtype: given.Dtype = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """List what can be patched in a model, with shapes and modules.

    Where a site has a name in TransformerLens, it stands behind the module.

    \b
    crosspatch sites gemma-3-270m
    """
    voice = Voice(json, quiet)
    opened = open_model(model, voice, device=device, dtype=dtype)
    voice.document(document(opened))
    voice.show(tree(opened))


def document(model: "Model") -> dict[str, Any]:
    """Describe a model's sites as JSON."""
    anatomy = model.anatomy
    sizes = ("layers", "d_model", "heads", "kv_heads", "d_head", "d_mlp", "vocab")
    return {
        "model": model.name,
        "model_hash": model.fingerprint,
        "family": anatomy.family,
        **{name: getattr(anatomy, name) for name in sizes},
        "sites": list(rows(anatomy)),
        "refused": [{"kind": kind, "reason": reason} for kind, reason in anatomy.refused.items()],
    }


def rows(anatomy: "Anatomy") -> Iterator[dict[str, Any]]:
    """Describe each kind that the model offers, in the order of a forward pass."""
    from crosspatch.core.errors import BadInput
    from crosspatch.sites import KINDS, Site, to_transformer_lens

    for kind in (KINDS[name] for name in KINDS if name in anatomy.kinds()):
        layers, units = anatomy.layers if kind.has_layers else None, anatomy.units().get(kind.name)
        side, path = carrier(anatomy, kind.name)
        try:
            lens = to_transformer_lens(Site(kind.name, 0 if kind.has_layers else None)).replace(
                "blocks.0.", "blocks.L."
            )
        except BadInput:  # it has no name there
            lens = None
        yield {
            "kind": kind.name,
            "selection": kind.name + _ranges(layers, units),
            "part": kind.part,
            "layers": layers,
            "units": units,
            "unit": UNITS.get(kind.unit) if kind.unit and units else None,
            "shape": shape(anatomy, kind.name),
            "side": side,
            "path": path,
            "module": ".".join(part for part in (f"{anatomy.blocks}.L" if kind.has_layers else "", path) if part),
            "transformer_lens": lens,
        }


def _ranges(layers: int | None, units: int | None) -> str:
    ranges = [f"0..{count - 1}" if count > 1 else "0" for count in (layers, units) if count]
    return f"[{', '.join(ranges)}]" if ranges else ""


def shape(anatomy: "Anatomy", kind: str) -> str:
    """Write the shape of one site (of one unit, where there are units) in the axis names of the documentation."""
    if kind == "attn.pattern":
        return "[batch, pos, pos]"
    if kind == "logits":
        return f"[batch, pos, vocab={anatomy.vocab}]"
    point = anatomy.points.get(kind)
    if kind == "mlp.hidden":
        return "[batch, pos]"
    if point is not None and point.starts:
        return f"[batch, pos, d_head={point.width}]"
    return f"[batch, pos, d_model={anatomy.d_model}]"


def carrier(anatomy: "Anatomy", kind: str) -> tuple[str, str]:
    """Give where a kind is carried (`input`, `output`, `inside`) and by which module, relative to a block.

    An empty path is the block itself.
    """
    whole = {
        "embed": ("output", anatomy.embedding),
        "resid.pre": ("input", ""),
        "resid.mid": ("inside", ""),
        "resid.post": ("output", ""),
        "attn.pattern": ("inside", anatomy.attention),
        "logits": ("output", anatomy.readout.unembed),  # read by the metric, never patched
    }
    if kind in whole:
        return whole[kind]
    point = anatomy.points[kind]
    return point.side, point.path


def tree(model: "Model") -> "Tree":
    """Draw a model's sites: two lines each, so that they fit a narrow terminal."""
    from rich.text import Text
    from rich.tree import Tree

    anatomy = model.anatomy
    sizes = f"d_model {anatomy.d_model}, {anatomy.heads} heads of {anatomy.d_head}, d_mlp {anatomy.d_mlp}"
    root = Tree(Text(f"{model.name} · {anatomy.family} · {anatomy.layers} layers · {sizes}", style="bold"))
    found = list(rows(anatomy))
    width = max(len(row["selection"]) for row in found) + 2
    block = None
    for row in found:
        if row["layers"] is None:
            root.add(_leaf(row, width + 4, row["path"]))
            continue
        block = block or root.add(Text(f"{anatomy.blocks}.L, L = 0..{anatomy.layers - 1}"))
        block.add(_leaf(row, width, row["path"] or "the block"))
    for kind, reason in anatomy.refused.items():
        root.add(Text(f"{kind}: refused, {reason}", style="yellow"))
    return root


def _leaf(row: dict[str, Any], width: int, where: str) -> "Text":
    from rich.text import Text

    text = Text(f"{row['selection']:<{width}}", style="bold").append(row["shape"], style="not bold")
    text.append(f"\n{row['side']} of {where}".replace("inside of", "inside"), style="not bold dim")
    if row["transformer_lens"]:
        text.append(f"  =  {row['transformer_lens']}", style="not bold dim")
    return text
