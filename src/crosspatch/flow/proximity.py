"""How much of a sum one summand is: proximity in the L1 norm, its bounds, and shares of it (Ferrando & Voita 2024)."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

EPSILON = 1e-5  # a part that leads away from the sum has this proximity, not less


def sign_of(total: Float[Tensor, "*node d_model"]) -> Float[Tensor, "*node d_model"]:
    """Return 1 or −1 for each entry; 1 for zero."""
    return torch.where(total >= 0, 1.0, -1.0).to(total.dtype)


def proximity_of(
    towards: Float[Tensor, "*node d_model"], size: Float[Tensor, "*node d_model"]
) -> Float64[Tensor, "*node"]:
    """Return max(‖y‖₁ − ‖z − y‖₁, ε) of a part z and a sum y, given sign(y) ⊙ z and |y|.

    Entry by entry |y| − |z − y| = min(u, 2|y| − u) with u = sign(y) z. Written so, small parts of a large sum are not
    lost in rounding.
    """
    return torch.minimum(towards, 2 * size - towards).sum(-1).double().clamp_min(EPSILON)


def proximity(part: Float[Tensor, "*node d_model"], total: Float[Tensor, "*node d_model"]) -> Float64[Tensor, "*node"]:
    """Return max(‖y‖₁ − ‖z − y‖₁, ε) of a part z and a sum y (Ferrando & Voita 2024, section 2; ε from their code)."""
    return proximity_of(part * sign_of(total), total.abs())
