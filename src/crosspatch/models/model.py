"""An opened model: the user's own module, untouched, with what is known about it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from crosspatch.core.errors import UnknownName
from crosspatch.models.anatomy import Anatomy
from crosspatch.models.layout import Layout
from crosspatch.models.weights import device_of
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

    `opened` is what another process can open it by (a name, a hub id, a path), None for a module given as such;
    `layout` how it was asked to be laid out.
    """

    module: nn.Module
    tokenizer: Any
    name: str
    fingerprint: str
    anatomy: Anatomy
    checks: tuple[Check, ...] = ()
    opened: str | None = None
    layout: Layout | None = None

    def __repr__(self) -> str:
        # The generated one would hold the whole module and vocabulary.
        a = self.anatomy
        return f"Model({self.name!r}, {a.family}: {a.layers} layers, {a.heads} heads, d_model {a.d_model})"

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the embedding knows."""
        return self.anatomy.vocab

    @property
    def device(self) -> torch.device:
        """Device that embeds tokens, where prompts go in."""
        return device_of(self.module.get_submodule(self.anatomy.embedding)) or torch.device("cpu")

    @property
    def together(self) -> bool:
        """Whether several processes hold the model, so that all of them must do the same."""
        return any(isinstance(parameter, DTensor) for parameter in self.module.parameters())

    def agreed(self, number: int) -> int:
        """Return the smallest of what the processes that hold the model together give; the number itself for one."""
        if not self.together:
            return number
        smallest = torch.tensor(number, device=self.device)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)

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
