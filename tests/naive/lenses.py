"""Lenses and probes from their definitions: transformers' own hidden states, one prompt at a time; plain scikit-learn.

How to call.

    distributions(name, ids)              # [layer, pos, vocab] log-probabilities, layer 0 the embedding
    saturation(tops)                      # first layer from which on the top token stays the last one
    tuned(name, prompts, steps=…, rate=…) # A, b of each layer by full-batch Adam
    divergences(name, prompt, maps)       # mean KL(own ‖ lens) over a prompt's tokens, one a layer
    probe_accuracy(x, y, kept, test)      # logistic regression on features standardised by hand
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from zoo import module_of

Maps = Sequence[tuple[Tensor, Tensor]]

# Where each family keeps its final norm and unembedding, and what it does to the logits, read off its code.
ENDS: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "gpt2": ("transformer.ln_f", "lm_head", lambda x: x),
    "llama": ("model.norm", "lm_head", lambda x: x),
    "gpt_neox": ("gpt_neox.final_layer_norm", "lm_head", lambda x: x),
    "gemma2": ("model.norm", "lm_head", lambda x: 5.0 * torch.tanh(x / 5.0)),
    "gemma3": ("model.norm", "lm_head", lambda x: x),
    "cohere": ("model.norm", "lm_head", lambda x: 0.5 * x),
    "granite": ("model.norm", "lm_head", lambda x: x / 0.5),
}


def streams(name: str, ids: Sequence[int]) -> list[Tensor]:
    """Return what enters each block, `[pos, d_model]`; transformers norms the last hidden state, so it is left out."""
    with torch.no_grad():
        found = module_of(name)(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return [state[0] for state in found.hidden_states[:-1]]


def decode(name: str, stream: Tensor) -> Tensor:
    """Return log-probabilities of one layer's stream."""
    norm, unembed, after = ENDS[name]
    module = module_of(name)
    return after(module.get_submodule(unembed)(module.get_submodule(norm)(stream))).log_softmax(-1)


def own(name: str, ids: Sequence[int]) -> Tensor:
    """Return the model's own log-probabilities `[pos, vocab]`."""
    with torch.no_grad():
        return module_of(name)(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)


@torch.no_grad()
def distributions(name: str, ids: Sequence[int]) -> Tensor:
    """Return each layer's log-probabilities, the last the model's own."""
    return torch.stack([*(decode(name, stream) for stream in streams(name, ids)), own(name, ids)])


def saturation(tops: Sequence[int]) -> int:
    """Walk down from the last layer while the top token is the last one's."""
    layer = len(tops) - 1
    while layer > 0 and tops[layer - 1] == tops[-1]:
        layer -= 1
    return layer


def mean_divergence(reference: Tensor, other: Tensor) -> Tensor:
    """Return the mean KL over tokens."""
    return (reference.exp() * (reference - other)).sum(-1).mean()


def divergences(name: str, ids: Sequence[int], maps: Maps | None = None) -> list[float]:
    """Return the mean KL(own ‖ lens) over a prompt's tokens, one a layer."""
    found = []
    with torch.no_grad():
        for layer, stream in enumerate(streams(name, ids)):
            moved = stream if maps is None else stream + stream @ maps[layer][0].T + maps[layer][1]
            found.append(float(mean_divergence(own(name, ids), decode(name, moved))))
    return found


def tuned(name: str, prompts: Sequence[Sequence[int]], *, steps: int, rate: float) -> Maps:
    """Train x + A x + b of each layer on all tokens of all prompts at every step, b in units of the median token."""
    reference, maps = torch.cat([own(name, ids) for ids in prompts]), []
    for layer in range(len(streams(name, prompts[0]))):
        x = torch.cat([streams(name, ids)[layer] for ids in prompts])
        size = x.pow(2).mean(-1).sqrt().median()
        a = torch.zeros(x.shape[1], x.shape[1], requires_grad=True)
        b = torch.zeros(x.shape[1], requires_grad=True)
        adam = torch.optim.Adam([{"params": [a], "lr": rate / x.shape[1]}, {"params": [b], "lr": rate}])
        starts = [group["lr"] for group in adam.param_groups]
        for step in range(steps):
            for group, start in zip(adam.param_groups, starts, strict=True):
                group["lr"] = start * (1 - step / steps)
            loss = mean_divergence(reference, decode(name, x + x @ a.T + b * size))
            a.grad, b.grad = torch.autograd.grad(loss, (a, b))
            adam.step()
        maps.append((a.detach(), b.detach() * size))
    return maps


def probe_accuracy(x: np.ndarray, y: np.ndarray, kept: np.ndarray, test: np.ndarray) -> float:
    """Return the share of the test examples that logistic regression names rightly."""
    mean, spread = x[kept].mean(axis=0), x[kept].std(axis=0)
    model = LogisticRegression(C=1.0, max_iter=500).fit((x[kept] - mean) / spread, y[kept])
    right = [model.predict([(row - mean) / spread])[0] == label for row, label in zip(x[test], y[test], strict=True)]
    return float(np.mean(right))
