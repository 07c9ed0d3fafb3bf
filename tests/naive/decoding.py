"""An encoder–decoder that writes on while it is patched, by hand: whole forwards, plain hooks, no cache, one row.

At each step the source run reads the tokens that the patched row has so far, and what it has at the written places, at
all positions, is written into the base run on the same tokens. Earlier positions get again what they got before.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from naive.modules import hook


@dataclass(frozen=True)
class Written:
    """Columns of one side of a module, at one position or all; `item` is as in `naive.modules.hook`."""

    path: str
    side: str
    item: int | str | None = None
    columns: tuple[int | None, int | None] = (None, None)
    position: int | None = None


@dataclass(frozen=True)
class Rules:
    """How far to write on, after which tokens to stop, and which tokens are never said, or never first."""

    count: int
    ends: Collection[int] = ()
    never: Sequence[int] = ()
    never_first: Sequence[int] = ()


@torch.no_grad()
def continued(
    module: nn.Module, base: Mapping[str, Any], source: Mapping[str, Any], written: Sequence[Written], rules: Rules
) -> tuple[list[int], float]:
    """Return the new tokens of one example, and the least lead that the likeliest token had over the next."""
    ids, start, lead = base["decoder_input_ids"], base["decoder_input_ids"].shape[1], float("inf")
    for step in range(rules.count):
        taken: dict[Written, Tensor] = {}
        with_ids = {"decoder_input_ids": ids, "use_cache": False}
        _forward(module, {**source, **with_ids}, written, taken.__setitem__)

        def put(each: Written, value: Tensor, taken: dict[Written, Tensor] = taken) -> Tensor:
            new = value.clone()
            at = slice(None) if each.position is None else each.position
            columns = slice(*each.columns)
            new[:, at, columns] = taken[each][:, at, columns]
            return new

        logits = _forward(module, {**base, **with_ids}, written, put)
        logits[[*rules.never, *(rules.never_first if step == 0 else ())]] = -torch.inf
        best = logits.topk(2)
        lead = min(lead, float(best.values[0] - best.values[1]))
        ids = torch.cat([ids, best.indices[:1, None]], dim=1)
        if int(ids[0, -1]) in rules.ends:
            break
    return ids[0, start:].tolist(), lead


def _forward(module: nn.Module, inputs: Mapping[str, Any], written: Sequence[Written], act: Any) -> Tensor:
    """Run the whole module, `act(place, value)` at each place; return the last position's logits."""

    def at(each: Written) -> Any:
        def visit(value: Tensor) -> Tensor:
            new = act(each, value)
            return value if new is None else new

        return visit

    handles = [hook(module.get_submodule(each.path), each.side, each.item, at(each)) for each in written]
    try:
        return module(**inputs).logits[0, -1].clone()
    finally:
        for handle in handles:
            handle.remove()
