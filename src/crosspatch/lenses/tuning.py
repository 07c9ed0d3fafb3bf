"""Train a tuned lens: translators that bring each layer's decoded distribution near the model's own."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.core.errors import BadInput, NotFinite
from crosspatch.lenses.decoding import Decoder, divergence
from crosspatch.lenses.streams import Streams, read_streams
from crosspatch.lenses.translators import Translators, TunedLens, translate
from crosspatch.models.model import Model
from crosspatch.models.weights import trackable
from crosspatch.tasks.given import Given, prompts_of

TOKENS = 256  # of a step: prompts are taken whole until there are so many
FEWEST = 2  # held-out prompts: an interval needs two

Ids = tuple[int, ...]


def train_tuned_lens(
    model: Model, prompts: Given, *, steps: int = 250, rate: float = 0.02, held_out: float = 0.2, seed: int = 0
) -> TunedLens:
    """Train one affine translator a layer, x + A x + b from zero, to make KL(model's own ‖ lens) small.

    `prompts` are texts or token ids, each used once however often it is given; a share `held_out` of them is never
    trained on and measures the lens. A step takes prompts with 256 tokens or a few more, all tokens alike. Adam with a
    rate that falls linearly to zero; `rate` is the most that one step can move a stream of typical size, relative to
    that size, so it means the same at every layer and width (the paper trains by SGD with momentum). The same seed
    gives the same lens; the model's parameters get no gradient. Belrose et al. 2023, arXiv 2303.08112.

    Raises:
        BadInput: fewer than two prompts on a side, negative steps, or a rate that is not above zero.
        NotProved: norms and unembedding were not proved to give the model's logits.
        NotFinite: the loss is no number; the rate is too high, or the model gives NaN.
    """
    if steps < 0 or not rate > 0:
        raise BadInput(f"steps={steps}, rate={rate}: give 0 steps or more, and a rate above zero.")
    kept, measured = split_prompts(prompts_of(model, prompts), held_out, seed=seed)
    with trackable(model.module):
        decoder = Decoder.of(model)
        lens = _Training(decoder, kept, np.random.default_rng(seed)).run(steps, rate)
        before, after = held_out_divergence(decoder, measured, lens)
    settings = {"steps": steps, "rate": rate, "held_out": held_out, "seed": seed, "prompts": len(kept)}
    weights, biases = (tensor.cpu().numpy() for tensor in (lens.weights, lens.biases))
    return TunedLens(weights, biases, before, after, model.name, model.fingerprint, settings)


def split_prompts(prompts: Sequence[Ids], held_out: float, *, seed: int) -> tuple[list[Ids], list[Ids]]:
    """Split distinct prompts at random into those to train on and those held out.

    Raises:
        BadInput: a share outside 0 to 1, or too few prompts for a side.
    """
    distinct = list(dict.fromkeys(prompts))
    count = round(held_out * len(distinct)) if 0 < held_out < 1 else 0
    if count < FEWEST or len(distinct) - count < FEWEST:
        raise BadInput(
            f"held_out={held_out} of {len(distinct)} different prompts: give a share between 0 and 1 that leaves at "
            f"least {FEWEST} prompts to train on and {FEWEST} to measure on."
        )
    order = np.random.default_rng(seed).permutation(len(distinct))
    return [distinct[i] for i in order[count:]], [distinct[i] for i in order[:count]]


class _Training:
    """Translators on their way, and the prompts that they learn from."""

    def __init__(self, decoder: Decoder, prompts: Sequence[Ids], rng: np.random.Generator) -> None:
        self.decoder, self.prompts, self.rng = decoder, prompts, rng
        anatomy, device = decoder.model.anatomy, decoder.model.device
        self.weights = torch.zeros(anatomy.layers, anatomy.d_model, anatomy.d_model, device=device)
        self.shifts = torch.zeros(anatomy.layers, anatomy.d_model, device=device)
        self.sizes = torch.ones(anatomy.layers, 1, device=device)

    def run(self, steps: int, rate: float) -> Translators:
        """Take all steps."""
        # A row of A has d_model entries: moved by rate / d_model each, they move the stream by its mean size × rate.
        groups = [
            {"params": [self.weights], "lr": rate / self.weights.shape[-1]},
            {"params": [self.shifts], "lr": rate},
        ]
        adam = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / max(steps, 1))
        batches = self._batches()
        for step in range(steps):
            streams = list(read_streams(self.decoder.model, next(batches), at="all"))
            if not step:
                self.sizes = _typical_sizes(streams)
            self._fill_gradients(streams)
            adam.step()
            schedule.step()
        return self._translators()

    def _translators(self) -> Translators:
        # b is learnt in units of its layer's stream, so that one rate suits all layers.
        return Translators(self.weights, self.shifts * self.sizes)

    def _batches(self) -> Iterator[list[Ids]]:
        """Yield prompts with about TOKENS tokens, in a new order each time that all have been used."""
        batch: list[Ids] = []
        enough = min(TOKENS, sum(map(len, self.prompts)))  # where there are fewer, all prompts once
        while True:
            for index in self.rng.permutation(len(self.prompts)):
                batch.append(self.prompts[index])
                if sum(map(len, batch)) >= enough:
                    yield batch
                    batch = []

    def _fill_gradients(self, streams: Sequence[Streams]) -> None:
        """Write the gradient of the mean divergence over all tokens, the sum over layers."""
        count = sum(len(each.examples) for each in streams)
        gradients = [torch.zeros_like(leaf) for leaf in (self.weights, self.shifts)]
        for part in (part for each in streams for part in each.split(self.decoder.rows)):
            own = self.decoder.logits(part.layers[-1]).log_softmax(-1)
            for layer in range(len(self.weights)):
                found = self._gradients_at(layer, part.layers[layer], own)
                for gradient, new in zip(gradients, found, strict=True):
                    gradient[layer] += new / count
        self.weights.grad, self.shifts.grad = gradients

    def _gradients_at(self, layer: int, stream: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of one layer's A and of its b, in units of the stream, summed over tokens."""
        with torch.enable_grad():
            weight, shift = (leaf[layer].detach().requires_grad_(True) for leaf in (self.weights, self.shifts))
            moved = translate(stream, weight, shift * self.sizes[layer])
            loss = divergence(own, self.decoder.logits(moved).log_softmax(-1)).sum()
            gradients = torch.autograd.grad(loss, (weight, shift))
        _require_finite(loss, layer)
        return gradients


def _require_finite(loss: Tensor, layer: int) -> None:
    if not torch.isfinite(loss):
        raise NotFinite(
            f"the divergence at layer {layer} is {float(loss)}: lower the rate, or look whether the model gives NaN on "
            "these prompts."
        )


def _typical_sizes(streams: Sequence[Streams]) -> Float[Tensor, "layer 1"]:
    """Return each layer's median root mean square over tokens; a first token far larger than all others counts once."""
    layers = list(zip(*(each.layers for each in streams), strict=True))[:-1]
    return torch.stack([torch.cat(found).float().square().mean(-1).sqrt().median()[None] for found in layers])


def held_out_divergence(
    decoder: Decoder, prompts: Sequence[Ids], lens: Translators
) -> tuple[Float[np.ndarray, "layer prompt"], Float[np.ndarray, "layer prompt"]]:
    """Return KL(model's own ‖ lens) without and with translators, each prompt's mean over tokens, in nats."""
    layers = decoder.model.anatomy.layers
    sums = np.zeros((2, layers, len(prompts)))
    for streams in read_streams(decoder.model, prompts, at="all"):
        for part in streams.split(decoder.rows):
            own = decoder.logits(part.layers[-1]).log_softmax(-1)
            for layer, stream in enumerate(part.layers[:-1]):
                for side, each in enumerate((stream, lens(layer, stream))):
                    found = divergence(own, decoder.logits(each).log_softmax(-1))
                    np.add.at(sums[side, layer], part.examples.numpy(), found.cpu().double().numpy())
    mean = (sums / [len(prompt) for prompt in prompts]).astype(np.float32)
    return mean[0], mean[1]
