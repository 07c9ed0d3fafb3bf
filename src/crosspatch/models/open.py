"""Open a model: load it, find its parts, prove them on the model itself."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crosspatch.models.discover import discover
from crosspatch.models.layout import Layout
from crosspatch.models.load import load, parse_device
from crosspatch.models.model import Model
from crosspatch.models.proof import prove
from crosspatch.models.shards import with_shards


def open_model(
    what: str | os.PathLike[str] | nn.Module,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    layout: Layout | None = None,
    say: Callable[[str], None] | None = None,
) -> Model:
    """Open a model for patching: a known name, a hub id, a folder, a GGUF file, or a module you already hold.

    A module is used as it is and never changed; with no `tokenizer`, tasks come as token ids. The model's parts are
    found by convention and proved by a few forwards of seven tokens; what cannot be proved is refused when it is asked
    for. `layout` says how a model that does not fit is spread over devices and processes, or quantised; a module that
    you have spread, offloaded or quantised yourself is recognised.

    Raises:
        UnknownName: no model of that name.
        BadInput: the module is in training mode, compiled, or laid out in a way that is not understood; weights exist
            only as pickle; or the layout does not suit the model.
        NotProved: the module has no stack of blocks between an embedding and logits; make a `Trial` of it.
    """
    place = layout if layout is None or device is None else layout.on(parse_device(device))
    loaded = load(what, tokenizer=tokenizer, dtype=dtype, device=place or device, say=say)
    anatomy, checks = prove(loaded.module, with_shards(loaded.module, discover(loaded.module)))
    known = loaded.module, loaded.tokenizer, loaded.name, loaded.fingerprint
    return Model(*known, anatomy, checks, opened=_where(what), layout=layout)


def _where(what: str | os.PathLike[str] | nn.Module) -> str | None:
    """Return what another process opens the model by."""
    if isinstance(what, nn.Module):
        return None
    return str(Path(what).expanduser().resolve()) if Path(what).expanduser().exists() else os.fspath(what)
