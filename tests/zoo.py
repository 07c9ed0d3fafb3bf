"""Tiny random models by family, and what a person reads off their code: module paths, columns of heads, order.

Nothing here comes from crosspatch: the table is the truth that its anatomies are checked against.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import logging as transformers_logging

from crosspatch.models.model import Model
from crosspatch.models.open import open_model
from crosspatch.tasks import Pair, Task

transformers_logging.set_verbosity_error()  # tiny configurations are odd on purpose

VOCAB, D, WIDTH = 97, 32, 8  # token ids, width of the stream, width of a head
Spot = tuple[str, str]  # path inside a block, side

FOUR, TWO, ONE = (0, 8, 16, 24), (0, 8), (0,)
BASE = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_SIZES = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": D,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GPT_SIZES = {"n_layer": 3, "n_head": 4, "n_embd": D, "n_positions": 64}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}


def separate(attention: str, output: str = "o_proj") -> dict[str, Spot]:
    """Name the spots of attention whose q, k and v are three projections."""
    return {
        "attn.in": (attention, "in"),
        "attn.q": (f"{attention}.q_proj", "out"),
        "attn.k": (f"{attention}.k_proj", "out"),
        "attn.v": (f"{attention}.v_proj", "out"),
        "attn.head": (f"{attention}.{output}", "in"),
        "attn.out": (attention, "out"),
    }


def fused(attention: str, qkv: str, output: str) -> dict[str, Spot]:
    """Name the spots of attention whose q, k and v leave one projection."""
    spots: dict[str, Spot] = dict.fromkeys(("attn.q", "attn.k", "attn.v"), (f"{attention}.{qkv}", "out"))
    rest: dict[str, Spot] = {"attn.in": (attention, "in"), "attn.head": (f"{attention}.{output}", "in")}
    return spots | rest | {"attn.out": (attention, "out")}


def mlp(name: str, down: str) -> dict[str, Spot]:
    """Name the spots of an MLP with a module of its own."""
    return {"mlp.in": (name, "in"), "mlp.hidden": (f"{name}.{down}", "in"), "mlp.out": (name, "out")}


def experts(name: str) -> dict[str, Spot]:
    """Name the spots of a mixture of experts, which has no one row of neurons."""
    return {"mlp.in": (name, "in"), "mlp.out": (name, "out")}


@dataclass(frozen=True)
class Beast:
    """One family: its tiny configuration, and the truth about it."""

    model_type: str
    config: Mapping[str, Any]
    spots: Mapping[str, Spot]
    blocks: str = "model.layers"
    embedding: str = "model.embed_tokens"
    q: Sequence[int] = FOUR
    k: Sequence[int] = TWO
    v: Sequence[int] = TWO
    neurons: int = 48
    parallel: bool = False  # attention and MLP read the same stream
    own_attention: bool = False  # it does not call transformers' attention interface
    second_norm: str = "post_attention_layernorm"  # reads the stream between attention and MLP

    def starts(self, kind: str) -> Sequence[int]:
        """First columns of a kind's units."""
        neurons = range(self.neurons)
        table = {"attn.q": self.q, "attn.k": self.k, "attn.v": self.v, "attn.head": FOUR, "mlp.hidden": neurons}
        return table.get(kind, ())

    def columns(self, kind: str, unit: int | None) -> list[int] | slice:
        """Columns of a unit, of all units, or the whole width."""
        starts, width = self.starts(kind), 1 if kind == "mlp.hidden" else WIDTH
        if not starts:
            return slice(None)
        return [start + i for start in (starts if unit is None else [starts[unit]]) for i in range(width)]

    @property
    def units(self) -> dict[str, int]:
        """Number of units of each kind that has them."""
        counts = {kind: len(self.starts(kind)) for kind in self.spots if self.starts(kind)}
        return counts | ({} if self.own_attention else {"attn.pattern": 4})

    @property
    def kinds(self) -> set[str]:
        """The kinds of site that the family offers."""
        without = ({"resid.mid"} if self.parallel else set()) | ({"attn.pattern"} if self.own_attention else set())
        return {"embed", "resid.pre", "resid.mid", "resid.post", "attn.pattern", "logits", *self.spots} - without


LLAMA = Beast("llama", LLAMA_SIZES, separate("self_attn") | mlp("mlp", "down_proj"))
SPARSE = separate("self_attn") | experts("mlp")
# Two more norms act on what attention and the MLP add, so the parts of the sum are the outputs of those norms.
POST_NORMED = LLAMA.spots | {
    "attn.out": ("post_attention_layernorm", "out"),
    "mlp.out": ("post_feedforward_layernorm", "out"),
}
# A norm over all heads together follows the projections of OLMo; a head of its own is found behind it.
NORMED = {"attn.q": ("self_attn.q_norm", "out"), "attn.k": ("self_attn.k_norm", "out")}
GEMMA = {**LLAMA_SIZES, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
FALCON_SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": D}
FALCON = fused("self_attention", "query_key_value", "dense") | mlp("mlp", "dense_4h_to_h")
# q, k, v of head 0, then of head 1, …
IN_TURN = {"q": (0, 24, 48, 72), "k": (8, 32, 56, 80), "v": (16, 40, 64, 88)}
GPT = {"blocks": "transformer.h", "embedding": "transformer.wte"}
WORDS = {"blocks": "transformer.h", "embedding": "transformer.word_embeddings"}
ALL_FOUR = {"k": FOUR, "v": FOUR}

ZOO: dict[str, Beast] = {
    "gpt2": Beast(
        "gpt2",
        GPT_SIZES,
        fused("attn", "c_attn", "c_proj") | mlp("mlp", "c_proj"),
        **GPT,
        k=(32, 40, 48, 56),
        v=(64, 72, 80, 88),
        neurons=128,
        second_norm="ln_2",
    ),
    "gpt_neox": Beast(
        "gpt_neox",
        {**LLAMA_SIZES, "num_key_value_heads": None},
        fused("attention", "query_key_value", "dense") | mlp("mlp", "dense_4h_to_h"),
        blocks="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        **IN_TURN,
        parallel=True,
    ),
    "gptj": Beast(
        "gptj",
        {**GPT_SIZES, "rotary_dim": 4},
        separate("attn", "out_proj") | mlp("mlp", "fc_out"),
        **GPT,
        **ALL_FOUR,
        neurons=128,
        parallel=True,
        own_attention=True,
    ),
    "opt": Beast(
        "opt",
        {**FALCON_SIZES, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": D},
        separate("self_attn", "out_proj")
        | {"mlp.in": ("fc1", "in"), "mlp.hidden": ("fc2", "in"), "mlp.out": ("fc2", "out")},
        blocks="model.decoder.layers",
        embedding="model.decoder.embed_tokens",
        **ALL_FOUR,
        second_norm="final_layer_norm",
    ),
    "bloom": Beast(
        "bloom",
        {"n_layer": 3, "n_head": 4, "hidden_size": D},
        fused("self_attention", "query_key_value", "dense")
        | mlp("mlp", "dense_4h_to_h")
        | {"attn.out": ("self_attention.dense", "out"), "mlp.out": ("mlp.dense_4h_to_h", "out")},
        **WORDS,
        **IN_TURN,
        neurons=128,
        own_attention=True,
    ),
    "falcon_7b": Beast(
        "falcon",
        {**FALCON_SIZES, "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "alibi": False},
        FALCON,
        **WORDS,
        k=(32,),
        v=(40,),
        neurons=128,
        parallel=True,
        own_attention=True,
    ),
    "falcon_40b": Beast(
        "falcon",
        {**FALCON_SIZES, "num_kv_heads": 2, "new_decoder_architecture": True},
        FALCON,
        **WORDS,
        q=(0, 8, 32, 40),
        k=(16, 48),
        v=(24, 56),
        neurons=128,
        parallel=True,
        own_attention=True,
    ),
    "falcon_rw": Beast(
        "falcon",
        {
            **FALCON_SIZES,
            "multi_query": False,
            "parallel_attn": False,
            "new_decoder_architecture": False,
            "alibi": True,
        },
        FALCON,
        **WORDS,
        **IN_TURN,
        neurons=128,
        own_attention=True,
    ),
    "phi": Beast(
        "phi",
        {**LLAMA_SIZES, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
        separate("self_attn", "dense") | mlp("mlp", "fc2"),
        **ALL_FOUR,
        parallel=True,
    ),
    "phi3": Beast(
        "phi3", LLAMA_SIZES, fused("self_attn", "qkv_proj", "o_proj") | mlp("mlp", "down_proj"), k=(32, 40), v=(48, 56)
    ),
    "llama": LLAMA,
    "mistral": replace(LLAMA, model_type="mistral", config={**LLAMA_SIZES, "sliding_window": 4}),
    "qwen2": replace(LLAMA, model_type="qwen2"),
    "qwen3": replace(LLAMA, model_type="qwen3", config={**LLAMA_SIZES, "head_dim": 8}),
    "gemma2": replace(
        LLAMA,
        model_type="gemma2",
        spots=POST_NORMED,
        second_norm="pre_feedforward_layernorm",
        config={**GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 5.0},
    ),
    "gemma3": replace(
        LLAMA,
        model_type="gemma3_text",
        spots=POST_NORMED,
        second_norm="pre_feedforward_layernorm",
        config={**GEMMA, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "olmo2": replace(LLAMA, model_type="olmo2", spots=POST_NORMED | NORMED, second_norm=""),
    "mixtral": Beast("mixtral", {**LLAMA_SIZES, **MOE}, SPARSE),
    "qwen3_moe": Beast(
        "qwen3_moe",
        {
            **LLAMA_SIZES,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        SPARSE,
    ),
    "olmoe": Beast("olmoe", {**LLAMA_SIZES, "num_experts": 4, "num_experts_per_tok": 2}, SPARSE | NORMED),
    "gpt_oss": Beast(
        "gpt_oss",
        {
            **LLAMA_SIZES,
            **MOE,
            "head_dim": 8,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        SPARSE,
    ),
    "stablelm": replace(LLAMA, model_type="stablelm"),
    "cohere": replace(LLAMA, model_type="cohere", config={**LLAMA_SIZES, "logit_scale": 0.5}, parallel=True),
    "starcoder2": Beast(
        "starcoder2", {**LLAMA_SIZES, "sliding_window": 4}, separate("self_attn") | mlp("mlp", "c_proj")
    ),
    "gpt_bigcode": Beast(
        "gpt_bigcode",
        GPT_SIZES,
        fused("attn", "c_attn", "c_proj") | mlp("mlp", "c_proj"),
        **GPT,
        k=(32,),
        v=(40,),
        neurons=128,
        second_norm="ln_2",
    ),
    "gpt_bigcode_mha": Beast(
        "gpt_bigcode",
        {**GPT_SIZES, "multi_query": False},
        fused("attn", "c_attn", "c_proj") | mlp("mlp", "c_proj"),
        **GPT,
        **IN_TURN,
        neurons=128,
        second_norm="ln_2",
    ),
    "granite": replace(
        LLAMA, model_type="granite", config={**LLAMA_SIZES, "logits_scaling": 0.5, "embedding_multiplier": 3.0}
    ),
    "mpt": Beast(
        "mpt",
        {"d_model": D, "n_heads": 4, "n_layers": 3, "max_seq_len": 64},
        fused("attn", "Wqkv", "out_proj")
        | {"mlp.in": ("ffn", "in"), "mlp.hidden": ("ffn.down_proj", "in"), "mlp.out": ("ffn.down_proj", "out")},
        blocks="transformer.blocks",
        embedding="transformer.wte",
        k=(32, 40, 48, 56),
        v=(64, 72, 80, 88),
        neurons=128,
        own_attention=True,
        second_norm="norm_2",
    ),
}


def fresh(name: str, *, dtype: torch.dtype = torch.float32, kernel: str | None = None, **overrides: Any) -> nn.Module:
    """Build a module of a family; its weights are large enough that patches matter. `kernel`: sdpa, eager."""
    beast = ZOO[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(beast.model_type, **{**BASE, **beast.config, **overrides})
    module = AutoModelForCausalLM.from_config(config, attn_implementation=kernel).eval().to(dtype)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape).to(dtype) * 0.1)
            else:
                weight.mul_(4)
    return module


@lru_cache
def module_of(name: str, dtype: torch.dtype = torch.float32, kernel: str | None = None) -> nn.Module:
    """Return a module that tests share: leave it as it is."""
    return fresh(name, dtype=dtype, kernel=kernel)


@lru_cache
def opened(name: str, dtype: torch.dtype = torch.float32) -> Model:
    """Return an opened model that tests share: leave its module as it is."""
    return open_model(module_of(name, dtype))


def make_pair(length: int, changed: Sequence[int], *, seed: int = 0, **settings: Any) -> Pair:
    """Make a pair of random tokens that differ at the given positions."""
    tokens = torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(1000 * seed + length)).tolist()
    other = [3 + (token + 11 - 3) % (VOCAB - 3) if i in changed else token for i, token in enumerate(tokens)]
    given = {"right": ((5,),), "wrong": ((7,),), "names": {"mid": changed[0], "end": length - 1}} | settings
    return Pair(tuple(tokens), tuple(other), **given)


def make_task(*pairs: Pair, metric: str = "logit_diff") -> Task:
    """Make a task of pairs."""
    return Task("random tokens", tuple(pairs), metric=metric)


@lru_cache
def uneven() -> tuple[Pair, ...]:
    """Return pairs of three lengths that differ early and late; longer than the sliding windows of the zoo."""
    return make_pair(9, (3, 7)), make_pair(6, (2, 4), seed=1), make_pair(9, (5, 6), seed=2)
