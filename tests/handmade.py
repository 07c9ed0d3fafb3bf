"""Hand-written models in the plainest PyTorch, each with one habit that a proof or a sweep must not stumble over."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo import VOCAB, D


@dataclass(frozen=True)
class Habits:
    """What is odd about a model.

    `odd_head`: logits are no linear map of a normed stream. `mixing_head`: logits read other positions. `between`:
    added to the stream between blocks. `again`: times that the stack of blocks is run. `extra`: a block adds something
    that is in neither attention nor MLP. `leaky`: the MLP reads the token before, too. `blind`: attention sees no later
    token.
    """

    odd_head: bool = False
    mixing_head: bool = False
    between: float = 0.0
    again: int = 1
    extra: bool = False
    leaky: bool = False
    blind: bool = True


@dataclass(frozen=True)
class Output:
    """What a model returns."""

    logits: Tensor


class Attention(nn.Module):
    """One head."""

    def __init__(self, habits: Habits) -> None:
        super().__init__()
        self.qkv, self.out, self.blind = nn.Linear(D, 3 * D), nn.Linear(D, D), habits.blind

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(hidden).chunk(3, dim=-1)
        scores = q @ k.transpose(1, 2) / D**0.5
        if self.blind:
            scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), float("-inf"))
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, float("-inf"))
        return self.out(scores.softmax(-1) @ v)


class MLP(nn.Module):
    """Two maps with a ReLU between them."""

    def __init__(self, habits: Habits) -> None:
        super().__init__()
        self.up, self.down_proj, self.leaky = nn.Linear(D, 48), nn.Linear(48, D), habits.leaky

    def forward(self, hidden: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)
        return self.down_proj(torch.relu(self.up(hidden + before if self.leaky else hidden)))


class Block(nn.Module):
    """Attention, then an MLP."""

    def __init__(self, habits: Habits) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp, self.extra = nn.LayerNorm(D), Attention(habits), MLP(habits), habits.extra

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = hidden + self.attn(self.norm(hidden), mask)
        hidden = hidden + self.mlp(hidden)
        return hidden + 0.3 * torch.sin(hidden) if self.extra else hidden


class Handmade(nn.Module):
    """A language model with the face of transformers' models: `module(input_ids=…).logits`."""

    def __init__(self, habits: Habits) -> None:
        super().__init__()
        self.embed, self.head, self.norm = nn.Embedding(VOCAB, D), nn.Linear(D, VOCAB), nn.LayerNorm(D)
        self.layers = nn.ModuleList(Block(habits) for _ in range(3))
        self.habits = habits

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> Output:
        hidden, habits = self.embed(input_ids), self.habits
        for _ in range(habits.again):
            for layer in self.layers:
                hidden = layer(hidden, mask=attention_mask) + habits.between
        logits = self.head(self.norm(hidden))
        if habits.odd_head:
            logits = logits + torch.sin(5 * logits)
        return Output(logits.cumsum(1) if habits.mixing_head else logits)


def handmade(seed: int = 0, **habits: Any) -> Handmade:
    """Build a model with some habits; its weights are large enough that patches matter."""
    torch.manual_seed(seed)
    module = Handmade(replace(Habits(), **habits)).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1.5)
    return module
