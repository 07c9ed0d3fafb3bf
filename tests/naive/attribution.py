"""Direct logit attribution by brute force: take a component's contribution out of the last stream and look again.

How to call.

    parts = attribution(module, anatomy, ids, token, position=-1)  # {(kind, layer, head): change of the logit}
    sum(parts.values()) == logit before any soft cap

Keys: ("embed", None, None), the whole stream that enters block 0; ("attn.head", l, h); ("attn.bias", l, None), what the
output projection adds to all heads; ("mlp.out", l, None); ("bias", None, None), the final norm's and unembedding's.
Norms (the final one, and one behind attention) keep the scale that they had in the run, so each is a linear map.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from crosspatch.models.anatomy import Anatomy
from naive.joint import activation, spot

Key = tuple[str, int | None, int | None]


def frozen(norm: Callable[[Tensor], Tensor], stream: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a norm with its scale held where `stream` `[pos, d_model]` put it; found by probing, whatever its code."""
    ones = torch.ones_like(stream[0])
    signs, large = torch.tensor([1.0, -1.0]).to(ones).repeat(len(ones) // 2), 1e6
    bias = norm(torch.zeros_like(ones))
    gain = (norm(large * signs) - bias) * signs  # mean 0, mean square 1, far above any epsilon
    centred = float((norm(large * ones) - bias).abs().max()) < float((0.5 * gain).abs().max())

    def centre(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if centred else x

    top = (centre(stream) * gain).abs().argmax(-1, keepdim=True)  # where rounding costs least
    scale = (norm(stream) - bias).gather(-1, top) / (centre(stream) * gain).gather(-1, top)
    return lambda x: centre(x) * scale * gain + bias


@torch.no_grad()
def contributions(module: nn.Module, anatomy: Anatomy, ids: Sequence[int]) -> dict[Key, Tensor]:
    """Return what each component adds to the last stream, `[pos, d_model]`; they sum to it."""
    found: dict[Key, Tensor] = {("embed", None, None): activation(module, anatomy, ids, "resid.pre", 0)}
    for layer in range(anatomy.layers):
        z = activation(module, anatomy, ids, "attn.head", layer)
        project, end = spot(module, anatomy, "attn.head", layer)[0], spot(module, anatomy, "attn.out", layer)[0]
        block = module.get_submodule(f"{anatomy.blocks}.{layer}")
        held = end not in (project, block.get_submodule(anatomy.attention))  # a norm behind attention
        behind = frozen(end, project(z)) if held else lambda x: x
        nothing = behind(project(torch.zeros_like(z)))
        for head in range(anatomy.heads):
            alone, columns = torch.zeros_like(z), anatomy.points["attn.head"].columns(head)
            alone[:, columns] = z[:, columns]
            found["attn.head", layer, head] = behind(project(alone)) - nothing
        found["attn.bias", layer, None] = nothing
        found["mlp.out", layer, None] = activation(module, anatomy, ids, "mlp.out", layer)
    return found


@torch.no_grad()
def attribution(
    module: nn.Module, anatomy: Anatomy, ids: Sequence[int], token: int, *, position: int = -1
) -> dict[Key, float]:
    """Return by how much a token's logit at a position falls when a component is taken out, before any soft cap."""
    parts, readout = contributions(module, anatomy, ids), anatomy.readout
    stream = activation(module, anatomy, ids, "resid.post", anatomy.layers - 1)
    (norm,) = (frozen(module.get_submodule(path), stream) for path in readout.norms)
    unembed = module.get_submodule(readout.unembed)

    def logit(x: Tensor) -> float:
        return readout.scale * float(unembed(norm(x)[position])[token])

    bias = {("bias", None, None): logit(torch.zeros_like(stream))}
    return {key: logit(stream) - logit(stream - part) for key, part in parts.items()} | bias
