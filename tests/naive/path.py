"""Path patching, exactly as in Wang et al. 2022 (appendix B, algorithm 1): plain hooks, no engine.

How to call. Parts and scores are those of `naive.joint`: a part is `(kind, layer, unit, positions)`.

    sender = [("attn.head", 0, 2, None)]  # one or more parts; None: all positions
    receivers = [("attn.q", 2, 1, [-1]), ("attn.k", 2, 0, None)]  # or "logits"
    path_effect(module, anatomy, base_ids, source_ids, sender=sender, receivers=receivers, score=score)

Run C: the base prompt with the output of every attention head (the input of the output projection) held at its value in
the base run, except the sender, which takes the source's; MLPs and norms are recomputed. What each receiver would hold
is saved. Run D: the base prompt with only the receivers written over. So what reaches a receiver went through the
stream and MLPs, never through another head. A receiver that computes before its sender takes the base's own value.

With receivers "logits" run C is the end: its logits are scored. Everything by keyword after the two prompts.

`frozen=("attn.head", "mlp.out")` holds MLPs too: what is left is the direct edge from sender to receiver. Where sender
and frozen parts overlap, the sender's value stands.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crosspatch.models.anatomy import Anatomy
from naive.joint import ORDER, Hooks, Ids, Part, Score, Write, forward, hooks_of, keeper, spot, taken
from naive.patching import run

Receivers = Sequence[Part] | str


def saved(
    module: nn.Module, anatomy: Anatomy, ids: Ids, writes: Sequence[Write], receivers: Sequence[Part]
) -> tuple[Tensor, list[Write]]:
    """Run C: return its logits `[pos, vocab]`, and each receiver with what its kind holds there."""
    hooks: Hooks = {}
    for index, write in enumerate(sorted(writes, key=lambda w: ORDER.index(w[0][0]))):
        hooks |= {f"{index} {name}": hook for name, hook in hooks_of(module, anatomy, write, len(ids)).items()}
    seen: list[list[list[Tensor]]] = []
    for number, (kind, layer, _, _) in enumerate(receivers):
        kinds = ("resid.pre", "attn.out") if kind == "resid.mid" else (kind,)
        seen.append([[] for _ in kinds])
        for each, into in zip(kinds, seen[-1], strict=True):
            hooks[f"look {number} {each}"] = (*spot(module, anatomy, each, layer), keeper(into))
    logits = run(module, ids, **hooks)
    return logits, [
        (part, torch.stack([tensor for (tensor,) in held]).sum(0)) for part, held in zip(receivers, seen, strict=True)
    ]


def path_logits(
    module: nn.Module,
    anatomy: Anatomy,
    base_ids: Ids,
    source_ids: Ids,
    *,
    sender: Sequence[Part],
    receivers: Receivers,
    frozen: Sequence[str] = ("attn.head",),
) -> Tensor:
    """Return the logits `[pos, vocab]` of run D; with receivers "logits" they are run C's own."""
    every = [(kind, layer, None, None) for kind in frozen for layer in range(anatomy.layers)]
    # The sender is written after what is frozen, so it stands where both speak of one place.
    writes = [*taken(module, anatomy, base_ids, every), *taken(module, anatomy, source_ids, sender)]
    parts = () if isinstance(receivers, str) else receivers
    logits, held = saved(module, anatomy, base_ids, writes, parts)
    return logits if isinstance(receivers, str) else forward(module, anatomy, base_ids, held)


def path_effect(
    module: nn.Module,
    anatomy: Anatomy,
    base_ids: Ids,
    source_ids: Ids,
    *,
    sender: Sequence[Part],
    receivers: Receivers,
    score: Score,
    frozen: Sequence[str] = ("attn.head",),
) -> float:
    """Return score(run D) − score(base run) at the last position."""
    patched = path_logits(module, anatomy, base_ids, source_ids, sender=sender, receivers=receivers, frozen=frozen)
    return score(patched[-1]) - score(forward(module, anatomy, base_ids)[-1])
