"""How long a prompt may be: models that learned a vector for each position have no vector beyond the last one."""

import re

from torch import nn

from crosspatch.core.errors import BadInput
from crosspatch.models.anatomy import Anatomy

_TABLE = re.compile(r"(wpe|embed_positions|positions?_embeddings?|pos_emb\w*)")


def learned_positions(module: nn.Module, anatomy: Anatomy) -> int | None:
    """Return the number of positions that a model has learned; None for one that works them out (rotary, ALiBi)."""
    for path, part in module.named_modules():
        outside = path != anatomy.embedding and not path.startswith(f"{anatomy.blocks}.")
        if outside and isinstance(part, nn.Embedding) and _TABLE.fullmatch(path.rsplit(".", 1)[-1]):
            return part.num_embeddings - int(getattr(part, "offset", 0))  # OPT's table begins with two rows for padding
    return None


def require_positions(module: nn.Module, anatomy: Anatomy, longest: int) -> None:
    """Raise BadInput if a prompt of so many tokens, with a long answer behind it, has positions never learned."""
    most = learned_positions(module, anatomy)
    if most is not None and longest > most:
        raise BadInput(
            f"a prompt has {longest:,} tokens, and this {anatomy.family} model has learned {most:,} positions: give "
            "shorter prompts."
        )
