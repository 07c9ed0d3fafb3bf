"""Edges of GPT-2 under names that every library's can be mapped to, and their scores and masks by plain torch.

"a5.h3->a7.h2<q>" is what head 3 of layer 5 writes, as the query of head 2 of layer 7 reads it; "input->m0" and
"m3->logits" are edges from the embedding, to an MLP and to the final stream. Arrays are [receiver, sender] in the order
of a forward pass. This file knows no crosspatch: peers' scripts import it in environments of their own.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Rows of receivers, and what was written before them → what is added to their input [pair, pos, row, d_model].
Change = Callable[[slice, Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Edges:
    """The graph of a GPT-2: names, places in arrays."""

    layers: int
    heads: int

    @property
    def senders(self) -> list[str]:
        """The embedding, then each layer's heads and its MLP."""
        found = ["input"]
        for layer in range(self.layers):
            found += [*(f"a{layer}.h{head}" for head in range(self.heads)), f"m{layer}"]
        return found

    @property
    def receivers(self) -> list[str]:
        """Each layer's queries, keys, values and MLP, then the logits."""
        found = []
        for layer in range(self.layers):
            found += [f"a{layer}.h{head}<{letter}>" for letter in "qkv" for head in range(self.heads)] + [f"m{layer}"]
        return [*found, "logits"]

    def before(self, receiver: int) -> int:
        """Return how many senders write before a receiver reads."""
        layer, rest = divmod(receiver, 3 * self.heads + 1)
        return 1 + layer * (self.heads + 1) + (self.heads if rest == 3 * self.heads else 0)

    @property
    def allowed(self) -> np.ndarray:
        """Whether there is an edge `[receiver, sender]`."""
        before = np.array([self.before(receiver) for receiver in range(len(self.receivers))])
        return np.arange(len(self.senders))[None] < before[:, None]

    def names(self, marked: np.ndarray) -> list[str]:
        """Return the names of the marked edges, in order."""
        senders, receivers = self.senders, self.receivers
        return [f"{senders[sender]}->{receivers[receiver]}" for receiver, sender in np.argwhere(marked)]

    def array(self, names: Collection[str], values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return an array of values that are given by name, NaN elsewhere; every edge must be named once."""
        found = np.full(self.allowed.shape, np.nan)
        senders, receivers = ({name: n for n, name in enumerate(each)} for each in (self.senders, self.receivers))
        for name, value in zip(names, values, strict=True):
            sender, _, receiver = name.partition("->")
            found[receivers[receiver], senders[sender]] = value
        if len(names) != self.allowed.sum() or np.isnan(found[self.allowed]).any():
            raise ValueError("edges are missing, or are named twice")
        return found


class ByHand:
    """A GPT-2 of transformers written out in plain torch, in double precision, where each reader has its own input."""

    def __init__(self, module: torch.nn.Module) -> None:
        config = module.config
        self.edges = Edges(config.n_layer, config.n_head)
        self.epsilon = config.layer_norm_epsilon
        self.weights = {name.removeprefix("transformer."): w.double() for name, w in module.state_dict().items()}

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Return the last position's logits `[pair, vocab]`."""
        return self._run(ids, _nothing)[0]

    def scores(self, clean: Tensor, corrupt: Tensor, metric: Callable[[Tensor], Tensor]) -> np.ndarray:
        """Edge attribution patching: (written in the corrupt run − in the clean run) · gradient at the reader's input.

        The gradient is the clean run's, of the metric summed over pairs; products are summed over pairs and positions.
        """
        leaves: dict[int, Tensor] = {}

        def change(rows: slice, written: Sequence[Tensor]) -> Tensor:
            pairs, positions, width = written[0].shape
            leaves[rows.start] = torch.zeros(pairs, positions, rows.stop - rows.start, width, dtype=torch.double)
            return leaves[rows.start].requires_grad_()

        with torch.enable_grad():
            logits, written = self._run(clean, change)
            metric(logits).sum().backward()
        with torch.no_grad():
            moved = torch.stack(self._run(corrupt, _nothing)[1]) - torch.stack(written)
            slopes = torch.cat([leaf.grad for leaf in leaves.values()], dim=2)
            found = torch.einsum("nbsd,bsrd->rn", moved, slopes).numpy()
        return np.where(self.edges.allowed, found, np.nan)

    @torch.no_grad()
    def masked(self, clean: Tensor, corrupt: Tensor, kept: np.ndarray, *, strength: float = 1.0) -> Tensor:
        """Return the clean run's logits `[pair, vocab]` when edges that are not kept carry what the corrupt run wrote.

        With a `strength` below 1 they carry a mixture.
        """
        other = torch.stack(self._run(corrupt, _nothing)[1])
        removed = strength * torch.from_numpy(self.edges.allowed & ~kept).double()

        def change(rows: slice, written: Sequence[Tensor]) -> Tensor:
            count = len(written)
            return torch.einsum("rn,nbsd->bsrd", removed[rows, :count], other[:count] - torch.stack(list(written)))

        return self._run(clean, change)[0]

    def _run(self, ids: Tensor, change: Change) -> tuple[Tensor, list[Tensor]]:
        """Return the last position's logits and what each sender wrote `[pair, pos, d_model]`."""
        heads, weights = self.edges.heads, self.weights
        stream = weights["wte.weight"][ids] + weights["wpe.weight"][: ids.shape[1]]
        written = [stream]
        for layer in range(self.edges.layers):
            rows, block = layer * (3 * heads + 1), f"h.{layer}."
            inputs = stream[:, :, None] + change(slice(rows, rows + 3 * heads), written)
            per_head = self._heads(self._norm(inputs, block + "ln_1"), block)
            written += per_head.unbind(2)
            stream = stream + per_head.sum(2) + weights[block + "attn.c_proj.bias"]
            inputs = stream + change(slice(rows + 3 * heads, rows + 3 * heads + 1), written)[:, :, 0]
            hidden = self._linear(self._norm(inputs, block + "ln_2"), block + "mlp.c_fc")
            written.append(self._linear(functional.gelu(hidden, approximate="tanh"), block + "mlp.c_proj"))
            stream = stream + written[-1]
        last = len(self.edges.receivers) - 1
        final = self._norm(stream + change(slice(last, last + 1), written)[:, :, 0], "ln_f")
        return final[:, -1] @ weights["wte.weight"].T, written

    def _heads(self, inputs: Tensor, block: str) -> Tensor:
        """Return what each head writes `[pair, pos, head, d_model]`, from the inputs of queries, keys and values."""
        heads, width = self.edges.heads, inputs.shape[-1]
        into = self.weights[block + "attn.c_attn.weight"].unflatten(1, (3 * heads, -1))
        mixed = torch.einsum("bsrd,drk->brsk", inputs, into)
        mixed = mixed + self.weights[block + "attn.c_attn.bias"].unflatten(0, (3 * heads, 1, -1))
        found = functional.scaled_dot_product_attention(*mixed.split(heads, dim=1), is_causal=True)
        out = self.weights[block + "attn.c_proj.weight"].unflatten(0, (heads, width // heads))
        return torch.einsum("bhsk,hkd->bshd", found, out)

    def _norm(self, inputs: Tensor, name: str) -> Tensor:
        shift, scale = self.weights[name + ".bias"], self.weights[name + ".weight"]
        return functional.layer_norm(inputs, inputs.shape[-1:], scale, shift, self.epsilon)

    def _linear(self, inputs: Tensor, name: str) -> Tensor:
        return inputs @ self.weights[name + ".weight"] + self.weights[name + ".bias"]


def _nothing(rows: slice, written: Sequence[Tensor]) -> Tensor:
    return torch.zeros(1, 1, 1, 1, dtype=written[0].dtype)
