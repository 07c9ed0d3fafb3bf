"""The answers of a task as one linear reading of the last stream."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from crosspatch.attribution.linear import Pulled
from crosspatch.engine.readout import Targets
from crosspatch.models.anatomy import Readout
from crosspatch.models.blocks import final_stream, logits_of, readout_parts
from crosspatch.models.model import Model
from crosspatch.models.weights import Parts


@dataclass(frozen=True)
class Aim:
    """The answers as one row of weights and a bias for each pair."""

    model: Model
    ids: Tensor
    weights: Float64[Tensor, "pair answer"]

    @classmethod
    def of(cls, model: Model, targets: Targets, answer: str) -> "Aim":
        """Weigh right answers against wrong ones, each side by its mean."""
        ids = torch.cat([targets.right[:, 0], targets.wrong[:, 0]], dim=1)
        right, wrong = (mask[:, 0].double() for mask in (targets.right_mask, targets.wrong_mask))
        right, wrong = (mask / mask.sum(1, keepdim=True).clamp_min(1) for mask in (right, wrong))
        signs = {"diff": (1, -1), "right": (1, 0), "wrong": (0, 1)}[answer]
        return cls(model, ids, torch.cat([right * signs[0], wrong * signs[1]], dim=1))

    @property
    def readout(self) -> Readout:
        """How the model turns its last stream into logits."""
        return self.model.anatomy.readout

    def each(self, stream: Tensor, *, softcap: bool) -> Float64[Tensor, "pair answer"]:
        """Return each answer's logit as the model itself gives it."""
        readout = self.readout
        with torch.no_grad():
            final = final_stream(self._parts, readout, stream)
            used = readout if softcap else replace(readout, softcap=0.0)
            return logits_of(self._parts, used, final, self.ids).to(self.ids.device).double()

    @cached_property
    def _parts(self) -> nn.Module | Parts:
        return readout_parts(self.model.module, self.readout, self.ids)

    def logits(self, stream: Tensor, *, softcap: bool) -> Float64[Tensor, " pair"]:
        """Return what the parts must add up to."""
        return (self.each(stream, softcap=softcap) * self.weights).sum(1)

    def largest(self, stream: Tensor) -> float:
        """Return the largest absolute logit of an answer that counts: errors are relative to it."""
        return float((self.each(stream, softcap=False) * (self.weights != 0)).abs().max())

    def direction(self) -> Pulled:
        """Return the answers' direction in the stream that the unembedding reads, and their bias."""
        parts = self._parts
        unembed, ids = parts.get_submodule(self.readout.unembed), self.ids
        ids = parts.places(ids) if isinstance(parts, Parts) else ids
        weight: Tensor = unembed.weight.data  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue]
        bias = getattr(unembed, "bias", None)
        scaled = self.weights * self.readout.scale
        ids = ids.to(weight.device)
        direction = torch.einsum("pa,pad->pd", scaled, weight[ids].to(scaled.device).double())
        constant = (
            torch.zeros_like(scaled)
            if not isinstance(bias, Tensor)
            else scaled * bias.detach()[ids].to(scaled.device).double()
        )
        return Pulled(direction, constant.sum(1))
