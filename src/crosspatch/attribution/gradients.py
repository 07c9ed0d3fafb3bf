"""From gradients to estimates: change times gradient for every node, layer by layer, read off at the sites."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.attribution.opened import Opened
from crosspatch.attribution.places import STREAM, Key, Spots, Table, by_unit
from crosspatch.attribution.softmax import joint_key_table, key_table, query_table
from crosspatch.attribution.tape import Cotangents, Pulled, Tape, pull
from crosspatch.engine.writing import CARRIER
from crosspatch.models.blocks import at_least_single


@dataclass(frozen=True)
class Estimating:
    """One pass of gradients from the end to the first block, and where its estimates go.

    With `drop` the pass carries a batch of gradients: the plain one, and one for each block above, in which what that
    block adds to the stream passes no gradient. `out[cell]` gathers the estimates.
    """

    opened: Opened
    places: Mapping[Key, Spots]
    out: Float[Tensor, " cell"]
    qk: bool
    drop: bool

    def run(self, final: Float[Tensor, "token d_model"], *, share: float = 1.0) -> None:
        """Pull the metric's gradient back through all blocks; `share` weighs what is added to the estimates.

        A block's own dropped gradient is the plain one that leaves it, since only the skip past the block is left. It
        joins the batch below the block, which grows by one a layer (Kramár et al. 2024, section 3.1.2).
        """
        layers = self.opened.bench.anatomy.layers
        lowest = min(key.layer for key in self.places)
        cotangents = final[None]
        self._stream(layers, cotangents, share)
        for layer in reversed(range(lowest, layers)):
            tape = self.opened.tape(layer)
            leaving, cotangents = cotangents, cotangents.to(tape.leaving.device)
            pulled = pull(tape, cotangents)
            self._inside(layer, tape, pulled, share=share, leaving=leaving[:1])
            cotangents = torch.cat([pulled.entering, leaving[:1].to(pulled.entering)]) if self.drop else pulled.entering
            self._stream(layer, cotangents, share)

    def _stream(self, layer: int, cotangents: Cotangents, share: float) -> None:
        spots = self.places.get(Key(STREAM, layer))
        if spots is not None:
            change = self.opened.stream_change(layer)
            table = (at_least_single(cotangents) * change.to(cotangents.device)).sum(-1, keepdim=True)
            self._add(spots, table, share=share, layer=layer, drops=self.opened.bench.anatomy.layers)

    def _inside(self, layer: int, tape: Tape, pulled: Pulled, *, share: float, leaving: Cotangents) -> None:
        layers = self.opened.bench.anatomy.layers
        for key, spots in self.places.items():
            if key.layer != layer or key.kind == STREAM:
                continue
            middle = key.kind in CARRIER
            table = self._table(key, tape, pulled, leaving if middle and self.drop else None)
            # A node's own block never drops what the node itself adds, so one of the blocks says nothing.
            self._add(spots, table, share=share, layer=layer, drops=layers if middle else layers - 1)

    def _table(
        self, key: Key, tape: Tape, pulled: Pulled, dropped: Float[Tensor, "1 token d_model"] | None
    ) -> Float[Tensor, "_ token unit"]:
        if self.qk and key.kind == "attn.q":
            return query_table(self.opened, key.layer, tape, pulled.heads)
        if self.qk and key.kind == "attn.k":
            make = joint_key_table if key.joint else key_table
            return make(self.opened, key.layer, tape, pulled.heads)
        slope = pulled.seen[CARRIER.get(key.kind, key.kind)]
        slope = slope if dropped is None else torch.cat([slope, dropped.to(slope)])
        change = self.opened.change(key.kind, key.layer, tape)
        return by_unit(self.opened.bench.anatomy, key.kind, at_least_single(slope) * change.to(slope.device))

    def _add(self, spots: Spots, table: Table, *, share: float, layer: int, drops: int) -> None:
        """Read a table off; with GradDrop, blocks below count as the plain gradient, since dropping them says nothing.

        c = 1/(L − 1) Σ over dropped blocks of |estimate| (equation 12); for the stream, which is part of no block, 1/L.
        """
        cells, values = spots.read(table)
        magnitudes = (layer * values[0].abs() + values[1:].abs().sum(0)) / max(drops, 1)
        found = magnitudes if self.drop else values[0]
        self.out[cells.to(self.out.device)] += share * found.to(self.out)
