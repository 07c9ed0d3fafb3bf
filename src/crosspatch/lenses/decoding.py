"""Decode a residual stream of any layer by the model's own final norm and unembedding."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosspatch.core.errors import NotProved
from crosspatch.models.blocks import final_stream, logits_of, readout_parts
from crosspatch.models.model import Model
from crosspatch.models.weights import Parts

BYTES = 1 << 26  # of the logits of the whole vocabulary


@dataclass(frozen=True)
class Decoder:
    """The readout of a model with real weights: norms, unembedding, scale and soft cap on the logits."""

    model: Model
    parts: nn.Module | Parts

    @classmethod
    def of(cls, model: Model) -> "Decoder":
        """Fetch the readout's weights. All ranks must ask together.

        Raises:
            NotProved: norms and unembedding were not proved to give the model's logits.
        """
        readout = model.anatomy.readout
        if not readout.direct:
            raise NotProved(
                f"the logits of this {model.anatomy.family} model are only given by its own forward, not by norms and "
                "one unembedding, so other layers cannot be decoded by them. Patch it instead, or probe its streams."
            )
        return cls(model, readout_parts(model.module, readout))

    @property
    def rows(self) -> int:
        """How many rows are decoded at once."""
        return max(1, BYTES // (4 * self.model.vocab_size))

    def logits(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Return the logits that the model would give if this were its last stream."""
        readout = self.model.anatomy.readout
        return logits_of(self.parts, readout, final_stream(self.parts, readout, stream)).to(stream.device)


def divergence(reference: Float[Tensor, "row vocab"], own: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """Return D(reference ‖ own) of log-probabilities in nats; it can be differentiated."""
    weight = reference.exp()
    # A token that the reference rules out counts nothing, even if both sides are −inf there.
    return torch.where(weight == 0, 0.0, weight * (reference - own).masked_fill(weight == 0, 0.0)).sum(-1)
