"""What can be written at a site: replace, add, scale, zero, mean, resample, noise, project. Frozen data, one call."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.core.errors import BadInput


@runtime_checkable
class Edit(Protocol):
    """Makes the new activation of a site from the present one, `[batch, pos, width]`."""

    def __call__(self, present: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """Return what should stand at the site instead."""
        ...


def fitted(value: Tensor, present: Tensor, name: str) -> Tensor:
    """Return the value on the activation's device and dtype, broadcast to its shape.

    Raises:
        BadInput: its shape does not fit.
    """
    try:
        return value.to(present.device, present.dtype).expand(present.shape)
    except RuntimeError as error:
        raise BadInput(
            f"{name}: a value of shape {list(value.shape)} does not fit the activation {list(present.shape)} "
            "[batch, pos, width]. Give that shape, or one that broadcasts to it."
        ) from error


@dataclass(frozen=True, eq=False)
class Replace:
    """Put this value in the activation's place."""

    value: Tensor

    def __call__(self, present: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """Return the value, broadcast."""
        return fitted(self.value, present, "Replace")


@dataclass(frozen=True, eq=False)
class Add:
    """Add this value (a steering vector, say)."""

    value: Tensor

    def __call__(self, present: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """Return the sum."""
        return present + fitted(self.value, present, "Add")


@dataclass(frozen=True)
class Scale:
    """Multiply by a number."""

    factor: float

    def __call__(self, present: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """Return the product."""
        return present * self.factor


@dataclass(frozen=True)
class Zero:
    """Put zero in the activation's place (zero ablation)."""

    def __call__(self, present: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """Return zeros."""
        return torch.zeros_like(present)


@dataclass(frozen=True, eq=False)
class Mean:
    """Put the mean of reference activations in the activation's place (mean ablation).

    `reference` is `[example, pos, width]`, for a mean of each position, or `[example, width]`, for one mean everywhere.
    """

    reference: Float[Tensor, "example *pos width"]

    def __call__(self, present: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """Return the mean, accumulated in float32."""
        return fitted(self.reference.float().mean(0), present, "Mean")


@dataclass(frozen=True, eq=False)
class Resample:
    """Put a reference activation, drawn at random for each example, in the activation's place.

    `reference` is `[example, pos, width]` or `[example, width]`; one draw serves all positions of an example.
    """

    reference: Float[Tensor, "example *pos width"]
    seed: int = 0

    def __call__(self, present: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """Return the drawn activations."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = self.reference[torch.randint(len(self.reference), (present.shape[0],), generator=generator)]
        return fitted(drawn if drawn.ndim == present.ndim else drawn[:, None], present, "Resample")


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise of this standard deviation, in the activation's own unit; the same noise for a seed."""

    sigma: float
    seed: int = 0

    def __call__(self, present: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """Return the noised activation."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(present.shape, generator=generator)
        return present + self.sigma * noise.to(present.device, present.dtype)


@dataclass(frozen=True, eq=False)
class Project:
    """Remove the part of the activation that lies in the span of `basis` `[direction, width]`, or keep only that part.

    The basis need not be orthonormal, and its directions may depend on each other.
    """

    basis: Float[Tensor, "direction width"]
    keep: bool = False

    def __call__(self, present: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """Return the activation without (or only) its part in the subspace."""
        if self.basis.ndim != 2 or self.basis.shape[1] != present.shape[-1]:
            raise BadInput(
                f"Project: the basis is {list(self.basis.shape)}, and the activation has width {present.shape[-1]}. "
                "Give one row of that width a direction."
            )
        precision = torch.promote_types(present.dtype, torch.float32)
        u, sizes, _ = torch.linalg.svd(self.basis.to(present.device, precision).T, full_matrices=False)
        # Directions that others span already would stand for arbitrary ones outside the subspace.
        least = max(self.basis.shape) * torch.finfo(self.basis.dtype).eps
        q = u[:, sizes > least * sizes.max()]
        inside = ((present.to(precision) @ q) @ q.T).to(present.dtype)
        return inside if self.keep else present - inside
