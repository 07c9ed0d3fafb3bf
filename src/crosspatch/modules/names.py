"""The names that architectures give to the parts of a block, beyond those of decoder-only language models."""

import re
from collections.abc import Sequence

from crosspatch.models import discover

# What projects to queries, keys and values; the first child of one of these names.
PROJECTIONS = {
    "q": (*discover.SEPARATE["attn.q"], "query", "to_q", "q", "q_lin"),
    "k": (*discover.SEPARATE["attn.k"], "key", "to_k", "k", "k_lin"),
    "v": (*discover.SEPARATE["attn.v"], "value", "to_v", "v", "v_lin"),
}
# A second stream that joins attention with projections of its own (Stable Diffusion 3, Flux, DeepFloyd IF).
ADDED = {"q": ("add_q_proj",), "k": ("add_k_proj",), "v": ("add_v_proj",)}
FUSED = (*discover.FUSED, "qkv")
OUTPUT = (*discover.OUTPUT, "to_out.0", "proj", "o", "out_lin")
ADDED_OUTPUT = ("to_add_out",)
BESIDE = ("output.dense",)  # BERT keeps the output map beside the module with the projections
MLP = (*discover.MLP, "ff", "DenseReluDense")
UP = (*discover.FIRST, "intermediate.dense", "linear1", "lin1")  # a block's own two layers, no module around them
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
