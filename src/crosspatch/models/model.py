"""An opened model: the user's own module, untouched, with what is known about it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from crosspatch.core.errors import UnknownName
from crosspatch.models.anatomy import Anatomy
from crosspatch.sites import Extent, Site


@dataclass(frozen=True)
class Check:
    """One fact about a model, proved or refuted on the model itself."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Model:
    """The user's module and tokenizer, the anatomy proved on it, and the checks that proved it.

    `opened` is what another process can open it by (a name, a hub id, a path), None for a module given as such.
    """

    module: nn.Module
    tokenizer: Any
    name: str
    fingerprint: str
    anatomy: Anatomy
    checks: tuple[Check, ...] = ()
    opened: str | None = None

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the embedding knows."""
        return self.anatomy.vocab

    @property
    def device(self) -> torch.device:
        """Device of the token embedding, where prompts go in."""
        return self.module.get_submodule(self.anatomy.embedding).weight.device  # pyright: ignore[reportReturnType]

    @property
    def extent(self) -> Extent:
        """Layers and units, for expanding a selection of sites."""
        return Extent(layers=self.anatomy.layers, units=self.anatomy.units())

    def require(self, site: Site) -> None:
        """Raise if this model does not have the site.

        Raises:
            BadInput: its kind cannot be used on this model; the message gives the reason.
            UnknownName: the model has no such kind, layer or unit.
        """
        self.anatomy.require(site.kind)
        extent = self.extent
        if site.layer is not None and site.layer >= extent.layers:
            raise UnknownName(f"{site}: this model has layers 0..{extent.layers - 1}.")
        if site.unit is not None and site.unit >= extent.units.get(site.kind, 0):
            raise UnknownName(f"{site}: this model has units 0..{extent.units.get(site.kind, 0) - 1} of {site.kind}.")
