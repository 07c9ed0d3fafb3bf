"""TransformerLens names: `blocks.5.attn.hook_z` to a site, and back."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.sites.site import Site

# TransformerLens name within a block, or of the whole model, to kind
_IN_BLOCK: Mapping[str, str] = MappingProxyType(
    {
        "hook_resid_pre": "resid.pre",
        "hook_resid_mid": "resid.mid",
        "hook_resid_post": "resid.post",
        "hook_attn_out": "attn.out",
        "hook_mlp_out": "mlp.out",
        "attn.hook_q": "attn.q",
        "attn.hook_k": "attn.k",
        "attn.hook_v": "attn.v",
        "attn.hook_pattern": "attn.pattern",
        "attn.hook_z": "attn.head",
        "mlp.hook_post": "mlp.hidden",
    }
)
_OUTSIDE: Mapping[str, str] = MappingProxyType({"hook_embed": "embed"})
_BACK = {kind: name for name, kind in (*_IN_BLOCK.items(), *_OUTSIDE.items())}

# Names that exist there and have no equal here: what they are, and the nearest kinds
_SPLIT_INPUT = "the residual stream before the norm, copied for each head", "resid.pre (before the norm) or attn.in"
_NORMED = "the normalised residual stream, with or without the norm's weights depending on how weights were folded"
_ROTATED = "the vector after the rotary embedding"
_OTHERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "hook_attn_in": _SPLIT_INPUT,
        "hook_q_input": _SPLIT_INPUT,
        "hook_k_input": _SPLIT_INPUT,
        "hook_v_input": _SPLIT_INPUT,
        "hook_mlp_in": ("the residual stream before the norm", "resid.mid (before the norm) or mlp.in"),
        "ln1.hook_normalized": (_NORMED, "attn.in"),
        "ln2.hook_normalized": (_NORMED, "mlp.in"),
        "ln_final.hook_normalized": (_NORMED, "resid.post of the last layer or logits"),
        "ln1.hook_scale": ("the divisor of the norm", "resid.pre or attn.in"),
        "ln2.hook_scale": ("the divisor of the norm", "resid.mid or mlp.in"),
        "ln_final.hook_scale": ("the divisor of the norm", "resid.post of the last layer or logits"),
        "attn.hook_rot_q": (_ROTATED, "attn.q (before it)"),
        "attn.hook_rot_k": (_ROTATED, "attn.k (before it)"),
        "attn.hook_attn_scores": ("the scores before the softmax", "attn.pattern (after it)"),
        "attn.hook_result": ("each head's output after the output projection", "attn.head (before it)"),
        "hook_result": ("each head's output after the output projection", "attn.head (before it)"),
        "mlp.hook_pre": ("the neurons before the activation function", "mlp.hidden (after it)"),
        "mlp.hook_pre_linear": ("the linear branch of a gated MLP", "mlp.hidden (the gated product)"),
        "hook_pos_embed": ("the position embedding alone", "embed, or resid.pre[0] (their sum)"),
        "hook_tokens": ("the token ids", "embed"),
    }
)
_FORM = re.compile(r"blocks\.(?P<layer>[^.]*)\.(?P<rest>.*)")


def is_transformer_lens_name(name: str) -> bool:
    """Tell whether a name is written the way TransformerLens writes names."""
    return name.startswith(("blocks.", "ln_final.")) or "hook_" in name


def from_transformer_lens(name: str) -> Site:
    """Translate a TransformerLens name such as `blocks.5.attn.hook_z` to the site of its whole width.

    Raises UnknownName for a name that is not one, BadInput for one that means something else or has no equal here.
    """
    form = _FORM.fullmatch(name)
    rest = form["rest"] if form else name
    if rest in _OTHERS:
        meaning, nearest = _OTHERS[rest]
        raise BadInput(f"{name} is {meaning} in TransformerLens, and no site here. The nearest here: {nearest}.")
    if form is None and rest in _OUTSIDE:
        return Site(_OUTSIDE[rest])
    if form is None or rest not in _IN_BLOCK:
        known = [*_OUTSIDE, *(f"blocks.0.{inner}" for inner in _IN_BLOCK)]
        raise UnknownName.of("TransformerLens name", name, known, hint="Any layer number may stand for 0.")
    kind, layer = _IN_BLOCK[rest], form["layer"]
    if not re.fullmatch(r"[0-9]{1,9}", layer):
        raise BadInput(f"{name}: the layer must be a number. For all layers write {kind}, for some {kind}[2:6].")
    return Site(kind, int(layer))


def to_transformer_lens(site: Site) -> str:
    """Name the activation that holds the site as TransformerLens does; unit and position are indices into it.

    Raises BadInput for a kind that has no name there (attn.in, mlp.in, logits).
    """
    if site.kind not in _BACK:
        raise BadInput(f"{site.kind} has no name in TransformerLens. Kinds that have one: {', '.join(sorted(_BACK))}.")
    return _BACK[site.kind] if site.layer is None else f"blocks.{site.layer}.{_BACK[site.kind]}"
