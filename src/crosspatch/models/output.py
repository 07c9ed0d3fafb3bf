"""From heads to the stream: the output projection by head, its bias, and a norm behind it with its scale held."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from crosspatch.core.errors import NotProved
from crosspatch.models.anatomy import Anatomy
from crosspatch.models.blocks import at_least_single
from crosspatch.models.hooks import first_tensor
from crosspatch.models.weights import device_of, plain

Rows = Float[Tensor, "*row d_model"]


@dataclass(frozen=True)
class Output:
    """What the heads of one layer are written through.

    Head h at a token adds `scale · gain ⊙ (weight[h]ᵀ z + …)`: `gain` is that of a norm behind the projection (None:
    there is no norm, and the scale is 1), whose scale is the token's own and is held. `bias` is the projection's.
    """

    weight: Float[Tensor, "head d_head d_model"]
    bias: Float[Tensor, " d_model"]
    gain: Float[Tensor, " d_model"] | None
    norm: nn.Module | None = None

    @property
    def biased(self) -> bool:
        """Whether the projection adds a constant."""
        return bool((self.bias != 0).any())

    def factor(self, written: Rows, added: Rows, *, tolerance: float) -> Rows:
        """Return what each token's parts are multiplied by on their way into the stream: scale · gain, or 1.

        `written` is what the projection gives, `added` what the model adds to the stream.

        Raises:
            NotProved: no scale per token makes one of the other.
        """
        factor = torch.ones_like(written) if self.gain is None else self.gain * fitted_scale(self.gain, written, added)
        missed = float((factor * written - added).abs().max()) if written.numel() else 0.0
        if not missed <= tolerance * max(float(added.abs().max()) if added.numel() else 0.0, 1e-30):
            raise NotProved(
                f"the heads' parts miss what attention adds to the stream by {missed:.1e}: between them lies more than "
                "a linear map and a norm without shift (root mean square), so heads cannot be told apart there."
            )
        return factor


def fitted_scale(gain: Float[Tensor, " d_model"], written: Rows, added: Rows) -> Float[Tensor, "*row 1"]:
    """Return each token's own scale of a norm: added = scale · gain ⊙ written, by least squares."""
    shape = (gain * written).double()
    size = (shape * shape).sum(-1, keepdim=True).clamp_min(1e-300)
    return ((added.double() * shape).sum(-1, keepdim=True) / size).to(written.dtype)


def output_of(block: nn.Module, anatomy: Anatomy) -> Output:
    """Read a block's output projection, by head, off what it gives."""
    inner, outer = anatomy.points["attn.head"], anatomy.points["attn.out"]
    projection = plain(block.get_submodule(inner.path))
    width, columns = max(inner.starts) + inner.width, inner.columns(None)
    device = device_of(projection)
    bias = _called(projection, torch.zeros(1, width, device=device))[0]
    weight = _matrix(projection, width, bias)[columns].unflatten(0, (anatomy.heads, -1))
    if f"{inner.path}.".startswith(f"{outer.path}."):
        return Output(weight, bias, None)
    norm = plain(block.get_submodule(outer.path))
    # Entries of equal size show a norm's gain whatever its scale, which is fitted for each token.
    gain = _called(norm, torch.ones(1, anatomy.d_model, device=device_of(norm)))[0]
    return Output(weight, bias, gain, norm)


def _matrix(projection: nn.Module, width: int, bias: Float[Tensor, " d_model"]) -> Float[Tensor, "width d_model"]:
    """Return the matrix of an affine map: its weight, whichever way it is stored, or what unit vectors give."""
    weight = getattr(projection, "weight", None)
    probe = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(bias)
    expected = _called(projection, probe) - bias
    stored = () if not isinstance(weight, Tensor) or weight.ndim != 2 else (weight.detach().T, weight.detach())
    for matrix in map(at_least_single, stored):
        if matrix.shape == (width, len(bias)):
            missed = (probe @ matrix - expected).abs().max()
            if bool(missed <= 1e-5 * expected.abs().max()):
                return matrix
    return _called(projection, torch.eye(width, dtype=bias.dtype, device=bias.device)) - bias


def _called(part: nn.Module, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row out"]:
    """Call a module on rows as on one packed sequence, in float32 at least, whatever its own precision."""
    weights = {
        name: at_least_single(value) if value.is_floating_point() else value
        for name, value in part.state_dict(keep_vars=True).items()
    }
    dtype = next((value.dtype for value in weights.values() if value.is_floating_point()), rows.dtype)
    return first_tensor(functional_call(part, weights, (rows.to(dtype)[None],)))[0]
