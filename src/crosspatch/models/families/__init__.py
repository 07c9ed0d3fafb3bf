"""What convention cannot tell of an architecture: one small declarative entry each, keyed by transformers' `model_type`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Layout = Literal["separate", "concatenated", "by head", "by group"]


@dataclass(frozen=True)
class Family:
    """Exceptions to the naming convention of `models.discover`.

    `layout` is the order of columns in a fused query-key-value projection: all queries, then keys, then values
    ("concatenated"); q, k, v of head 0, then of head 1, … ("by head"); the queries of a group, then its key, then its
    value ("by group"). `outputs` renames the module whose output is what attention or the MLP adds to the stream.
    """

    layout: Layout = "concatenated"
    outputs: Mapping[str, str] = field(default_factory=dict)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "gpt2": Family(layout="concatenated"),
        # One group with multi-query attention, as many groups as heads without.
        "gpt_bigcode": Family(layout="by group"),
        "persimmon": Family(layout="by head"),
        "phi3": Family(layout="concatenated"),
        "gpt_neox": Family(layout="by head"),
        # Both parts of a BLOOM block add the stream themselves, so only the last projection holds the part's own output.
        "bloom": Family(layout="by head", outputs={"attn.out": "self_attention.dense", "mlp.out": "mlp.dense_4h_to_h"}),
        # A Falcon block adds attention into the MLP's output in place; the projection's output is read before that.
        "falcon": Family(layout="by group"),
        "mpt": Family(layout="concatenated", outputs={"mlp.out": "ffn.down_proj"}),
    }
)


def family_of(model_type: str) -> Family:
    """Return the entry of a model type, or the plain convention when it has none."""
    return FAMILIES.get(model_type, Family())
