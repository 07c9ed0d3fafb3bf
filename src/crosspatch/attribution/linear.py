"""Pull a direction back through modules that are linear, or that become so when a norm's scale is frozen.

Nothing here knows a class of module: each form is fitted on the module's own outputs and checked against them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.func import functional_call

from crosspatch.models.anatomy import Point
from crosspatch.models.blocks import at_least_single
from crosspatch.models.hooks import first_tensor
from crosspatch.models.proof import TOLERANCE, distance
from crosspatch.models.weights import device_of, plain


class NotLinear(Exception):
    """A path that is not linear, even with its norms' scales frozen; the text is the reason."""


@dataclass(frozen=True)
class Pulled:
    """What a direction g on a module's output is on its input: g · f(x) = direction · x + constant, row by row."""

    direction: Float64[Tensor, "row width"]
    constant: Float64[Tensor, " row"]


def applied(module: nn.Module, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row out"]:
    """Call a module on rows as on one packed sequence, in float32 at least, whatever the model's own precision."""
    home, rows = rows.device, at_least_single(rows).to(device_of(module))
    state = dict(module.named_parameters())
    if any(value.is_inference() or _is_half(value) for value in state.values()):
        # Weights made in inference mode cannot be differentiated through; copies can.
        state = {name: at_least_single(value).clone() for name, value in state.items() if value.is_floating_point()}
        return first_tensor(functional_call(module, state, (rows[None],)))[0].to(home)
    return first_tensor(module(rows[None]))[0].to(home)


def _is_half(value: Tensor) -> bool:
    return value.is_floating_point() and value.element_size() < 4


def tolerance_of(tensor: Tensor) -> float:
    """Return the largest relative error that counts as equal in a tensor's precision."""
    return TOLERANCE.get(tensor.dtype, 1e-1)


def pull_back(
    module: nn.Module, rows: Float[Tensor, "row width"], direction: Float64[Tensor, "row out"], *, tolerance: float
) -> Pulled:
    """Pull a direction back through an affine module, or through a norm whose scale is frozen at these rows.

    Raises:
        NotLinear: it is neither.
    """
    with torch.inference_mode(False), torch.no_grad():
        rows, out = rows.clone(), applied(module, rows)
        origin = applied(module, torch.zeros_like(rows[:1]))
        # A norm gives nearly the same for twice its input, an affine map twice as much beyond its constant.
        affine = distance(applied(module, 2 * rows) - origin, 2 * (out - origin)) <= tolerance
    if affine:
        return Pulled(_transposed(module, rows, direction), direction @ origin[0].double())
    norm = freeze(module, rows, out, tolerance=tolerance)
    return Pulled(norm.transposed(direction), direction @ norm.bias)


def _transposed(module: nn.Module, rows: Tensor, direction: Tensor) -> Float64[Tensor, "row width"]:
    """Multiply by the transpose of an affine module's matrix, whatever form it is stored in."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = at_least_single(rows).detach().clone().requires_grad_()
        out = applied(module, leaf)
        return torch.autograd.grad(out, leaf, direction.to(out.dtype))[0].double()


@dataclass(frozen=True)
class Frozen:
    """A norm with its scale held: scale · weight ⊙ (x − centred · mean x) + bias, `scale` a number a row."""

    scale: Float64[Tensor, "row 1"]
    weight: Float64[Tensor, " width"]
    bias: Float64[Tensor, " width"]
    centred: bool

    def forward(self, rows: Float64[Tensor, "row width"]) -> Float64[Tensor, "row width"]:
        """Apply it."""
        return self.scale * self.weight * _centre(rows, self.centred) + self.bias

    def transposed(self, direction: Float64[Tensor, "row width"]) -> Float64[Tensor, "row width"]:
        """Apply the transpose of its linear part. Centring is its own transpose."""
        return _centre(self.scale * self.weight * direction, self.centred)


def _centre(rows: Tensor, centred: bool) -> Tensor:
    return rows - rows.mean(-1, keepdim=True) if centred else rows


def freeze(
    module: nn.Module, rows: Float[Tensor, "row width"], out: Float[Tensor, "row out"], *, tolerance: float
) -> Frozen:
    """Fit a norm's weight, bias, centring and its scale at these rows to what it gives.

    Raises:
        NotLinear: no such form gives `out`.
    """
    if out.shape != rows.shape:
        raise NotLinear(f"{type(module).__name__} is not linear")
    probe = _signs(rows)
    with torch.inference_mode(False), torch.no_grad():
        up, down = applied(module, probe).double(), applied(module, -probe).double()
        shifted = applied(module, probe + 0.7).double()
    # A norm is odd about its bias, and an input of equal sizes shows its weight whatever the scale.
    bias, probe, rows = (up + down)[0] / 2, probe.double(), rows.double()
    forms = [_form(up[0] - bias, probe[0], bias=bias, centred=centred) for centred in (False, True)]
    best = min(forms, key=lambda form: distance(form.at(probe + 0.7, shifted).forward(probe + 0.7), shifted))
    fitted = best.at(rows, out.double())
    if not distance(fitted.forward(rows), out) <= tolerance:
        raise NotLinear(f"{type(module).__name__} is neither linear nor a norm whose scale could be held")
    return fitted


@dataclass(frozen=True)
class _Form:
    """A norm up to its scale."""

    weight: Tensor
    bias: Tensor
    centred: bool

    def at(self, rows: Tensor, out: Tensor) -> Frozen:
        """Fit each row's scale by least squares."""
        shape = self.weight * _centre(rows, self.centred)
        size = (shape * shape).sum(-1, keepdim=True).clamp_min(1e-300)
        scale = ((out - self.bias) * shape).sum(-1, keepdim=True) / size
        return Frozen(scale, self.weight, self.bias, self.centred)


def _form(out: Tensor, probe: Tensor, *, bias: Tensor, centred: bool) -> _Form:
    return _Form(out / _centre(probe, centred), bias, centred)


def _signs(rows: Tensor) -> Float[Tensor, "1 width"]:
    """Return as many +1 as −1 (but for one in odd widths), so that centring changes next to nothing."""
    signs = torch.ones(1, rows.shape[-1], dtype=at_least_single(rows).dtype, device=rows.device)
    signs[:, torch.randperm(rows.shape[-1], generator=torch.Generator().manual_seed(0))[::2].to(rows.device)] = -1
    return signs


def through(
    block: nn.Module,
    ends: tuple[Point, Point],
    seen: tuple[Tensor, Tensor],
    direction: Float64[Tensor, "row d_model"],
    *,
    tolerance: float,
) -> Pulled:
    """Pull a direction on what a part adds to the stream back to its heads or neurons, past a frozen post-norm.

    `ends` are the points of the heads or neurons and of the sum's part, `seen` what passed there `[row, width]`.
    `tolerance` is the largest relative error that counts as equal in the precision that the model ran in.

    Raises:
        NotLinear: more lies between them than a linear map and a norm.
    """
    (inner, outer), (hidden, added) = ends, seen
    projection = plain(block.get_submodule(inner.path))
    with torch.inference_mode(False), torch.no_grad():
        written = applied(projection, hidden)
    constant = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
    if not (written.shape == added.shape and distance(written, added) <= tolerance):
        norm = _behind(block, inner, outer)
        with torch.inference_mode(False), torch.no_grad():
            if not distance(applied(norm, written), added) <= tolerance:
                raise NotLinear(f"more than {inner.path} and {outer.path} lies between them")
        behind = pull_back(norm, written, direction, tolerance=tolerance)
        direction, constant = behind.direction, behind.constant
    pulled = pull_back(projection, hidden, direction, tolerance=tolerance)
    return Pulled(pulled.direction, pulled.constant + constant)


def _behind(block: nn.Module, inner: Point, outer: Point) -> nn.Module:
    """Return the module after the projection, which gives what the part adds."""
    if f"{inner.path}.".startswith(f"{outer.path}."):
        raise NotLinear(f"{outer.path} does more to the output of {inner.path} than pass it on")
    return plain(block.get_submodule(outer.path))
