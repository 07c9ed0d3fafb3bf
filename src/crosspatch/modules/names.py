"""The names that architectures give to the parts of a block, beyond those of decoder-only language models."""

import re
from collections.abc import Sequence

# What projects to queries, keys and values; the first child of one of these names.
PROJECTIONS = {
    "q": ("q_proj", "query", "to_q", "q", "q_lin", "wq"),
    "k": ("k_proj", "key", "to_k", "k", "k_lin", "wk"),
    "v": ("v_proj", "value", "to_v", "v", "v_lin", "wv"),
}
# A second stream that joins attention with projections of its own (Stable Diffusion 3, Flux, DeepFloyd IF).
ADDED = {"q": ("add_q_proj",), "k": ("add_k_proj",), "v": ("add_v_proj",)}
FUSED = ("qkv", "qkv_proj", "c_attn", "query_key_value", "Wqkv")
OUTPUT = ("o_proj", "out_proj", "to_out.0", "c_proj", "proj", "dense", "o", "wo", "out_lin")
ADDED_OUTPUT = ("to_add_out",)
BESIDE = ("output.dense",)  # BERT keeps the output map beside the module with the projections
MLP = ("mlp", "ff", "feed_forward", "ffn", "DenseReluDense", "block_sparse_moe")
UP = ("fc1", "intermediate.dense", "linear1", "lin1")  # a block's own two layers, without a module around them
DOWN = ("fc2", "output.dense", "linear2", "lin2")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
CROSS = re.compile(r"cross|encoder_attn|EncDec|attn2", re.IGNORECASE)

_ENDINGS = re.compile(r"_(model|tower|blocks?|layers?|module)$")
_GENERAL = {"model", "layers", "layer", "block", "blocks", "h", "transformer", "backbone", "module", "base"}


def stack_names(paths: Sequence[str]) -> list[str]:
    """Return a short name for each list of blocks: none for a single one, else the first word that tells it apart.

    `model.encoder.layers` beside `model.decoder.layers` is `encoder`.
    """
    if len(paths) <= 1:
        return [""] * len(paths)
    words = [[_ENDINGS.sub("", part) for part in path.split(".") if part and part not in _GENERAL] for path in paths]
    for count in range(1, 1 + max(map(len, words))):
        found = ["_".join(each[:count]) for each in words]
        if all(found) and len(set(found)) == len(found):
            return found
    return [path.replace(".", "_") or "blocks" for path in paths]
