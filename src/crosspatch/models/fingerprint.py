"""Fingerprint: a short hash that says whether two models are the same."""

import hashlib
import json
from typing import Any

import torch

from crosspatch.models.weights import named_whole

_SAMPLE = 4096  # elements of each tensor
# The tensors themselves say their dtype, how they are split over ranks is no part of the model, and saving a module
# writes its class into its configuration.
_VOLATILE = ("transformers_version", "torch_dtype", "dtype", "distributed_config", "architectures")


def fingerprint(module: torch.nn.Module) -> str:
    """Hash a module's config, the names, shapes and dtypes of its tensors, and up to 4096 elements of each.

    Returns 16 hexadecimal digits, the same on every run and device. Two models that differ in other elements alone
    hash alike: it recognises a model, it does not prove that no weight was touched. Weights that are offloaded or
    split over ranks count as if they were whole and in place; all ranks must ask together.
    """
    digest = hashlib.sha256(json.dumps(_config(module), sort_keys=True, default=str).encode())
    with torch.no_grad():
        for name, tensor in named_whole(module):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            if tensor.numel() and not tensor.is_meta:
                digest.update(_sample(tensor))
    return digest.hexdigest()[:16]


def _sample(tensor: torch.Tensor) -> bytes:
    flat = tensor.reshape(-1)
    # an odd step, so that it does not fall on the same column of every row
    step = max(1, flat.numel() // _SAMPLE) | 1
    return flat[::step][:_SAMPLE].contiguous().view(torch.uint8).cpu().numpy().tobytes()


def _config(module: torch.nn.Module) -> dict[str, Any]:
    to_dict = getattr(getattr(module, "config", None), "to_dict", None)
    found: Any = to_dict() if callable(to_dict) else {}
    return {key: value for key, value in found.items() if not key.startswith("_") and key not in _VOLATILE}
