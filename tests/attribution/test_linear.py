"""Pulling directions back: affine maps and norms are recognised by what they do, and nothing else is."""

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from crosspatch.attribution.linear import NotLinear, applied, freeze, pull_back

WIDTHS = (8, 9)


def rows_of(width, dtype=torch.float64, *, shift=0.0):
    generator = torch.Generator().manual_seed(width)
    return torch.randn(5, width, generator=generator, dtype=dtype) * 3 + shift


def shaken(module):
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn_like(weight))
    return module.double().requires_grad_(False)


@pytest.mark.parametrize(
    "make", [lambda n: nn.Linear(n, n), lambda n: Conv1D(n, n), lambda n: nn.Linear(n, n, bias=False)]
)
@pytest.mark.parametrize("width", WIDTHS)
def test_affine_maps_pull_back_by_their_transpose(make, width):
    """g · f(x) = (Wᵀ g) · x + g · b."""
    module, rows, aim = shaken(make(width)), rows_of(width), rows_of(width, shift=1.0)
    pulled = pull_back(module, rows, aim, tolerance=1e-6)
    matrix = module.weight if isinstance(module, Conv1D) else module.weight.T
    torch.testing.assert_close(pulled.direction, aim @ matrix.T)
    torch.testing.assert_close((pulled.direction * rows).sum(1) + pulled.constant, (aim * module(rows)).sum(1))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shift", [0.0, 5.0])
@pytest.mark.parametrize(
    ("make", "centred"), [(nn.LayerNorm, True), (LlamaRMSNorm, False), (Gemma3RMSNorm, False), (nn.RMSNorm, False)]
)
def test_norms_are_frozen_at_their_rows(make, centred, width, shift):
    """The fit gives the norm's own output, its centring, and a transpose that agrees with it."""
    module, rows, aim = shaken(make(width)), rows_of(width, shift=shift), rows_of(width)
    norm = freeze(module, rows, applied(module, rows), tolerance=1e-5)
    assert norm.centred is centred
    torch.testing.assert_close(norm.forward(rows), module(rows).double(), rtol=1e-5, atol=1e-5)
    linear = norm.forward(rows) - norm.bias
    torch.testing.assert_close((norm.transposed(aim) * rows).sum(1), (aim * linear).sum(1))
    pulled = pull_back(module, rows, aim, tolerance=1e-5)
    torch.testing.assert_close(pulled.direction, norm.transposed(aim))


@pytest.mark.parametrize(
    "module",
    [
        nn.GELU(),
        nn.Tanh(),
        nn.Softmax(-1),
        nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)),
        nn.Sequential(nn.Linear(8, 4), nn.ReLU()),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_is_neither_is_refused(module):
    """No activation function passes for linear, nor a norm with more behind it."""
    rows = rows_of(8, torch.float32)
    aim = torch.ones(5, module(rows).shape[-1], dtype=torch.float64)
    with pytest.raises(NotLinear, match="linear"):
        pull_back(module, rows, aim, tolerance=1e-4)


def test_half_weights_are_applied_in_single_precision():
    """The sum is as exact as if the weights had been stored in float32."""
    module = nn.Linear(64, 8).to(torch.bfloat16)
    rows = rows_of(64, torch.float32)
    out = applied(module, rows)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, rows @ module.weight.float().T + module.bias.float())


def test_weights_made_in_inference_mode_can_be_pulled_through():
    """A model that was loaded in inference mode works too."""
    with torch.inference_mode():
        module = nn.Linear(8, 8)
    pulled = pull_back(module, rows_of(8, torch.float32), rows_of(8), tolerance=1e-4)
    torch.testing.assert_close(pulled.direction, (rows_of(8) @ module.weight.double()), rtol=1e-5, atol=1e-5)
