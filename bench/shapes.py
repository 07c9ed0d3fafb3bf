"""Models of the right shape with random weights, and pairs of random prompts: all that a timing needs."""

from dataclasses import dataclass, field
from typing import Any

import torch

import crosspatch
from crosspatch.models.model import Model
from crosspatch.tasks import Task

TEXTS = ("second", "third", "one")  # where clean and corrupt prompts differ: see `prompts`
REAL = {"gemma-270m": "gemma-3-270m"}  # shapes whose real weights crosspatch can open by name


@dataclass(frozen=True)
class Shape:
    """A transformers architecture and the sizes that differ from its defaults; `layers` names the field that counts."""

    family: str
    sizes: dict[str, Any] = field(default_factory=dict)
    layers: str = "num_hidden_layers"


GEMMA = {
    "vocab_size": 262144,
    "hidden_size": 640,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 2048,
    "sliding_window": 512,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 32768,
    "pad_token_id": 0,
}
LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
TINY = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
GPT2_TINY = {
    "vocab_size": 200,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SHAPES = {
    "gpt2-small": Shape("gpt2", {"n_layer": 12}, "n_layer"),
    "gemma-270m": Shape("gemma3_text", GEMMA),
    "llama-8b": Shape("llama", LLAMA),
    "tiny": Shape("llama", TINY),
    "gpt2-tiny": Shape("gpt2", GPT2_TINY, "n_layer"),
}


@dataclass(frozen=True)
class Build:
    """How to make one model; children are told the same and make the same weights."""

    shape: str
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    real: bool = False
    layers: int | None = None


def open_shape(build: Build) -> Model:
    """Build a model directly on its device, or open the real one, and prove its anatomy."""
    if build.real and build.shape in REAL and build.layers is None:
        return crosspatch.open_model(REAL[build.shape], device=build.device, dtype=build.dtype)
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = SHAPES[build.shape]
    sizes = shape.sizes | ({shape.layers: build.layers} if build.layers else {})
    if shape.family == "gemma3_text":
        kinds = ("sliding_attention",) * 5 + ("full_attention",)
        sizes = sizes | {"layer_types": [kinds[layer % 6] for layer in range(sizes[shape.layers])]}
    torch.manual_seed(build.seed)
    with torch.device(build.device):
        module = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(shape.family, **sizes), dtype=getattr(torch, build.dtype)
        )
    return crosspatch.open_model(module.eval())


def prompts(texts: str, *, pairs: int, length: int, vocab: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Draw clean and corrupt prompts `[pair][pos]` of random tokens.

    They differ from the second token on ("second"), throughout the last third ("third"), or in one token two thirds of
    the way ("one": position 10 of 15, where the second subject of an IOI sentence stands).
    """
    draw = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, vocab, (pairs, length), generator=draw).tolist()
    other = torch.randint(3, vocab, (pairs, length), generator=draw).tolist()
    late = length - length // 3
    changed = {"second": range(1, length), "third": range(late, length), "one": [late]}[texts]
    corrupt = [list(row) for row in clean]
    for row, from_row in zip(corrupt, other, strict=True):
        for position in changed:
            row[position] = from_row[position] if from_row[position] != row[position] else row[position] - 1
    return clean, corrupt


def make_task(texts: str, *, pairs: int, length: int, vocab: int, seed: int = 0) -> Task:
    """Make a task of such prompts, each with a right and a wrong answer of its own."""
    clean, corrupt = prompts(texts, pairs=pairs, length=length, vocab=vocab, seed=seed)
    right = [(11 + 5 * pair) % vocab for pair in range(pairs)]
    wrong = [(12 + 5 * pair) % vocab for pair in range(pairs)]
    return crosspatch.tasks.from_tokens(clean, corrupt, right=right, wrong=wrong, name=f"random, differing: {texts}")
