"""Some pairs of a sweep, numbered from 0, and what their packs share while their runs are held."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from crosspatch.engine.cells import Extents
from crosspatch.engine.readout import Scorer, Targets
from crosspatch.models.runs import Bench, Run


@dataclass(frozen=True)
class Local:
    """What is known of the pairs of one chunk, numbered from 0; `numbers` are theirs in the whole sweep."""

    numbers: list[int]
    extents: Extents
    targets: Targets

    @classmethod
    def of(cls, extents: Extents, targets: Targets, numbers: Sequence[int]) -> "Local":
        """Pick the pairs out of what is known of all."""
        rows = list(numbers)
        own = Extents(
            lengths=tuple(extents.lengths[n] for n in rows),
            differ=tuple(extents.differ[n] for n in rows),
            reads=tuple(extents.reads[n] for n in rows),
        )
        masks = targets.right_mask[rows], targets.wrong_mask[rows]
        return cls(rows, own, Targets(targets.right[rows], targets.wrong[rows], *masks))


@dataclass(frozen=True)
class Pass:
    """What the packs of one chunk share: its two runs, what is written, and the metrics of both runs."""

    bench: Bench
    base: Run
    written: Run
    local: Local
    scorer: Scorer
    before: Float32[Tensor, "metric pair"]
    after: Float32[Tensor, "metric pair"]


def final_reads(run: Run, local: Local, pairs: Tensor) -> Float[Tensor, "pair read d_model"]:
    """Return a run's final stream at the positions read."""
    last = run.stream[-1]
    reads = torch.tensor(local.extents.reads, device=pairs.device)[pairs]
    return last[pairs[:, None].to(last.device), reads.to(last.device)].to(pairs.device)
