"""What a sweep will take of the memory besides the weights, foreseen before it starts, and what the machine has free.

The estimate is meant to be above the peak, and not far above: `bench/memory_model.py` compares them.
"""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from crosspatch.core.errors import MemoryShortage
from crosspatch.engine.cells import Cell, Extents
from crosspatch.engine.plan import bytes_per_token, width_of
from crosspatch.engine.readout import Scorer, Targets
from crosspatch.metrics import Metric
from crosspatch.models.bundles import width_for
from crosspatch.models.model import Model
from crosspatch.models.runs import MASKS

# The heap holds more than what is in use: pieces that were given back and are too small or too scattered for the rest.
SPREAD = {"cpu": 1.5, "cuda": 1.2}
ALWAYS = 4 << 20  # what is there whatever the model
BYTES_PER_CELL = 1000  # a planned patch is a few Python objects
MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class Sizes:
    """What one sweep holds at once, in bytes: what the two runs of a pair keep, and what reading one row takes.

    `patterns`: the runs keep attention patterns. `unembedding`: bytes of its copy in single precision, if one is made.
    """

    model: Model
    extents: Extents
    pair: int
    row: int
    patterns: bool
    unembedding: int = 0

    @property
    def item(self) -> int:
        """Bytes of one number."""
        return next(self.model.module.parameters()).element_size()

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(self.extents.lengths)

    def masks(self, pairs: int) -> int:
        """Return the bytes of a mask of each kind of layer, and of those that the model's forward makes on its way."""
        config, square = getattr(self.model.module, "config", None), self.longest**2
        kinds = len(set(getattr(config, "layer_types", None) or ("full",)))
        return square * kinds * self.item + max(square, min(pairs * square, MASKS)) * kinds * (self.item + 1)

    def runs(self, chunk: Sequence[int]) -> int:
        """Return the bytes of one block call on both runs of some pairs, and of the patterns that it shows."""
        extents = self.extents
        tokens = sum(2 * extents.lengths[pair] - extents.differ[pair] for pair in chunk)
        # Attention that shows its pattern holds scores, masked scores, softmax and copies of them at once.
        heads = 5 * self.model.anatomy.heads * self.longest if self.patterns else 0
        return tokens * bytes_per_token(self.model) + len(chunk) * self.longest * heads * self.item

    def pack(self, pack: Sequence[Cell]) -> int:
        """Return the bytes of one block call on a pack: tokens, keys that bundles copy, and masks of the bundles."""
        anatomy, longest = self.model.anatomy, self.longest
        tokens = sum(width_of(cell, self.extents, anatomy) for cell in pack)
        wide = width_for(longest)
        bundles = tokens // wide + len({cell.pair for cell in pack})
        keys = bundles * longest * 2 * anatomy.heads * anatomy.d_head
        return tokens * bytes_per_token(self.model) + (keys + tokens * (longest + wide)) * self.item

    def read(self, pack: Sequence[Cell]) -> int:
        """Return the bytes of reading the metric of as many rows as are read at once: some of one shape."""
        shapes = Counter((cell.start, self.extents.lengths[cell.pair]) for cell in pack)
        return self.row * min(max(shapes.values()), Scorer.rows_at_once)

    def smallest(self) -> int:
        """Return the bytes in use, at the least, while the runs of the longest pair are made."""
        return self.pair + self.runs([self.extents.lengths.index(self.longest)]) + self.masks(1)

    def peak(self, *, pairs: int, call: int, cells: int) -> int:
        """Return the most bytes that a sweep may take: pairs held at once, its largest call, the cells planned."""
        used = pairs * self.pair + self.masks(pairs) + call + self.unembedding
        # A product of matrices lays one of them out anew.
        anatomy = self.model.anatomy
        product = anatomy.d_model * max(anatomy.d_mlp, anatomy.d_model) * self.item
        spread = SPREAD.get(self.model.device.type, SPREAD["cpu"])
        return int(spread * used) + product + BYTES_PER_CELL * cells + ALWAYS

    def require_room(self) -> None:
        """Raise if not even the runs of one pair fit into what is free.

        Raises:
            MemoryShortage: says what is needed, what is free, and what helps.
        """
        free, needed = free_bytes(self.model.device), self.smallest()
        if free is not None and needed > free:
            raise MemoryShortage(
                f"the two runs of one pair of {self.longest} tokens need {needed / 2**20:,.0f} MiB beside the weights; "
                f"{free / 2**20:,.0f} MiB are free: use shorter prompts, fewer kinds of sites at once, a smaller "
                "dtype (bfloat16), or a device with more memory."
            )


def read_weights(model: Model, targets: Targets, metrics: Sequence[Metric]) -> int:
    """Return the weights that one readout multiplies: the answers' rows of the unembedding, or all of them."""
    answers = targets.right.shape[2] + targets.wrong.shape[2]
    return targets.reads * model.anatomy.d_model * (model.anatomy.vocab if whole(model, metrics) else answers)


def read_bytes(model: Model, targets: Targets, metrics: Sequence[Metric]) -> int:
    """Return the bytes of reading one row, in single precision: its answers' weights, or logits of the vocabulary."""
    # Of the logits: themselves, their logarithmic softmax, and one more that a metric makes of them.
    one = 3 * model.anatomy.vocab if whole(model, metrics) else read_weights(model, targets, metrics) // targets.reads
    return 4 * one


def unembedding_bytes(model: Model, metrics: Sequence[Metric]) -> int:
    """Return the bytes of the copy in single precision that whole logits of a model in half precision are read with."""
    half = next(model.module.parameters()).element_size() < 4
    return 4 * model.anatomy.vocab * model.anatomy.d_model if half and whole(model, metrics) else 0


def whole(model: Model, metrics: Sequence[Metric]) -> bool:
    """Tell whether logits of the whole vocabulary are read."""
    return not model.anatomy.readout.direct or any(metric.needs == "vocab" for metric in metrics)


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that a new process could have, None where the system does not tell."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    with suppress(OSError, StopIteration, ValueError):
        # What the system holds as a cache counts as free: it is given up on demand.
        found = next(line for line in MEMORY.read_text("ascii").splitlines() if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
