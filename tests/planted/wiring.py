"""What planted models are made of: a Llama with all weights at zero, and heads, neurons and answers wired by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import cos, sin
from typing import Any

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from crosspatch.tasks import Task, from_tokens

D_HEAD = 32
STILL = (*range(8, 16), *range(24, 32))  # dimensions of queries and keys that rotary embedding leaves alone
ANGLE = 0.1  # by which the pair of dimensions (1, 17) turns from one token to the next
SCORE = 400.0  # exp(−400) is zero in single precision and no number at all in others
FAR = 80_000.0  # times 1 − cos(0.1): neighbouring tokens' scores differ by 400
EPSILON = 1e12  # so much larger than a mean square that the norm's scale is the same for all inputs

Weights = Mapping[str, float]  # channel: weight
Edges = frozenset[str]  # of the graph of the model: "sender -> receiver"
Example = tuple[tuple[int, ...], tuple[int, ...], int, int]  # clean ids, corrupt ids, right, wrong


@dataclass(frozen=True)
class Expected:
    """Normalised effects on the logit difference: 0 is the base run, 1 the source run."""

    denoise: float
    noise: float


@dataclass(frozen=True)
class Planted:
    """A model, its prompts, and the truth about it.

    `pairs` hold (clean ids, corrupt ids, right, wrong); `names` are the same for all. `truth` maps a site to its
    effects, `together` several sites patched at once, `paths` a path (sender, receiver) of which "logits" is an end.

    `edges` are all edges of the graph that alone matter by noise: in the run on the clean prompt, the edge carrying the
    corrupt run (at all tokens) changes the logit difference. `edges_denoise`: the same with the prompts' roles swapped;
    None: the same edges. A search that cuts one edge after the other may be left with fewer, and that may hang on its
    order: see `kept`.
    """

    name: str
    sentence: str
    module: nn.Module
    pairs: Sequence[Example]
    names: Mapping[str, int]
    truth: Mapping[str, Expected]
    together: Mapping[tuple[str, ...], Expected] = field(default_factory=dict)
    paths: Mapping[tuple[str, str], Expected] = field(default_factory=dict)
    edges: Edges = frozenset()
    edges_denoise: Edges | None = None
    acdc_keeps: Sequence[Edges] = ()
    acdc_keeps_absolute: Sequence[Edges] = ()

    def used(self, direction: str) -> Edges:
        """Return the edges that alone matter by noise or denoise."""
        return self.edges if direction == "noise" or self.edges_denoise is None else self.edges_denoise

    def kept(self, *, absolute: bool = False) -> Sequence[Edges]:
        """Return what ACDC by noise may be left with, any of these, whatever its order of tests.

        It cuts an edge where the logit difference does not fall, or (`absolute`) does not change.
        """
        return (absolute and self.acdc_keeps_absolute) or self.acdc_keeps or (self.edges,)

    def task(self) -> Task:
        """Return the pairs as a task scored by the logit difference."""
        clean, corrupt, right, wrong = zip(*self.pairs, strict=True)
        return from_tokens(clean, corrupt, right=list(right), wrong=list(wrong), names=self.names, name=self.name)


@dataclass(frozen=True)
class Board:
    """A model to be wired; channels of the stream and tokens go by their names."""

    module: Any
    channels: Mapping[str, int]
    tokens: Mapping[str, int]

    def embed(self, token: str, **weights: float) -> None:
        """Let a token write to channels."""
        for channel, weight in weights.items():
            self.module.model.embed_tokens.weight[self.tokens[token], self.channels[channel]] = weight

    def head(self, layer: int, head: int, *, values: Mapping[str, str]) -> None:
        """Let a head carry channels of the token that it looks at into channels of the token that looks."""
        attention = self.module.model.layers[layer].self_attn
        for index, (read, write) in enumerate(values.items()):
            attention.v_proj.weight[head * D_HEAD + index, self.channels[read]] = 1
            attention.o_proj.weight[self.channels[write], head * D_HEAD + index] = 1

    def look_for(self, layer: int, head: int, *, matches: Sequence[tuple[Weights, Weights]]) -> None:
        """Let a head score a key by `SCORE` times Σ (query's weighted channels) × (key's weighted channels)."""
        for index, (query, key) in zip(STILL, matches, strict=False):
            self._query(layer, head, index, {channel: SCORE * weight for channel, weight in query.items()})
            self._key(layer, head, index, key)

    def look_back(self, layer: int, head: int, *, by: int) -> None:
        """Let a head look at the token `by` tokens before it."""
        self._query(layer, head, 1, {"one": FAR * cos(ANGLE * by)})
        self._query(layer, head, 1 + D_HEAD // 2, {"one": -FAR * sin(ANGLE * by)})
        self._key(layer, head, 1, {"one": 1.0})

    def neuron(self, layer: int, index: int, *, reads: Weights, writes: Weights) -> None:
        """Let a neuron write relu(Σ of what it reads)."""
        mlp = self.module.model.layers[layer].mlp
        for channel, weight in reads.items():
            mlp.gate_proj.weight[index, self.channels[channel]] = weight
        mlp.up_proj.weight[index, self.channels["one"]] = 1
        for channel, weight in writes.items():
            mlp.down_proj.weight[self.channels[channel], index] = weight

    def answer(self, token: str, **weights: float) -> None:
        """Let a token's logit be a weighted sum of channels of the last stream."""
        for channel, weight in weights.items():
            self.module.lm_head.weight[self.tokens[token], self.channels[channel]] = weight

    def _query(self, layer: int, head: int, index: int, weights: Weights) -> None:
        projection = self.module.model.layers[layer].self_attn.q_proj
        for channel, weight in weights.items():
            projection.weight[head * D_HEAD + index, self.channels[channel]] = weight * D_HEAD**0.5

    def _key(self, layer: int, head: int, index: int, weights: Weights) -> None:
        projection = self.module.model.layers[layer].self_attn.k_proj
        for channel, weight in weights.items():
            projection.weight[head * D_HEAD + index, self.channels[channel]] = weight


def blank(tokens: Sequence[str], channels: Sequence[str], *, layers: int, heads: int) -> Board:
    """Build a Llama whose weights are zero and whose norms are the identity; every token writes 1 to channel "one"."""
    step = 2 * heads
    width = -(-(len(channels) + 1) // step) * step
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=D_HEAD,
        hidden_act="relu",
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": ANGLE**-16},
        max_position_embeddings=32,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
    )
    module = LlamaForCausalLM(config).eval()
    for name, weight in module.named_parameters():
        weight.fill_(EPSILON**0.5 if "norm" in name else 0.0)
    named = ("one", *channels)
    board = Board(module, {c: i for i, c in enumerate(named)}, {t: i for i, t in enumerate(tokens)})
    for token in tokens:
        board.embed(token, one=1)
    return board


def example(board: Board, clean: str, corrupt: str, *, right: str = "yes", wrong: str = "no") -> Example:
    """Return the token ids of two prompts of words and of their answers."""
    prompts = [tuple(board.tokens[word] for word in text.split()) for text in (clean, corrupt)]
    return prompts[0], prompts[1], board.tokens[right], board.tokens[wrong]
