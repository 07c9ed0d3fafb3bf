"""What an opened model is made of: for each site kind, the module that carries it and the columns of each head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.models.shards import Shard


@dataclass(frozen=True)
class Point:
    """Where an activation can be read and written: one side of a module inside a block.

    `starts[u]` is the first column of unit `u` and `width` its number of columns; without starts there are no units.
    With a `shard`, each rank holds a part of the columns there; they are joined before anyone sees them.
    """

    path: str
    side: Literal["input", "output"]
    starts: Sequence[int] = ()
    width: int = 0
    shard: Shard | None = None

    def columns(self, unit: int | None) -> slice | list[int]:
        """Return the columns of a unit, or those of all units for `None` (a fused projection holds other kinds too)."""
        if not self.starts:
            return slice(None)
        if unit is not None:
            return slice(self.starts[unit], self.starts[unit] + self.width)
        if isinstance(self.starts, range) and self.starts.step == self.width:
            return slice(self.starts[0], self.starts[-1] + self.width)
        return [column for start in self.starts for column in range(start, start + self.width)]


@dataclass(frozen=True)
class Readout:
    """How the model turns its last residual stream into logits: modules to apply in order, then the unembedding.

    `softcap` and `scale` act on the logits: `scale * x`, then `softcap * tanh(x / softcap)`. Not `direct`: only the
    model's own forward is known to give its logits, so the whole vocabulary is computed.
    """

    norms: tuple[str, ...]
    unembed: str
    scale: float = 1.0
    softcap: float = 0.0
    direct: bool = True


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model, found by convention and proved on the model itself.

    `points` maps a site kind to its point (paths are relative to a block); `refused` maps a kind that cannot be used to
    the reason. `packed`: tokens of many prompts may share one call of a block. `causal`: a token never changes what
    comes before it. `sequential`: the MLP reads what attention wrote. `tuples`: a block returns a tuple. `by_length`:
    what blocks are handed depends on how long the prompt is, so only prompts of one length may be run together.
    `heads_shard`: attention on each rank knows a part of the heads only.
    """

    family: str
    embedding: str
    blocks: str
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_head: int
    d_mlp: int
    vocab: int
    attention: str
    sequential: bool
    packed: bool
    causal: bool
    tuples: bool
    readout: Readout
    points: Mapping[str, Point]
    refused: Mapping[str, str]
    by_length: bool = False
    heads_shard: Shard | None = None

    def all_heads(self, own: Tensor, axis: int) -> Tensor:
        """Return the heads of all ranks along an axis; all ranks must ask together."""
        return own if self.heads_shard is None else self.heads_shard.whole(own, axis)

    def units(self) -> dict[str, int]:
        """Return the number of units of each kind that has units in this model."""
        counts = {kind: len(point.starts) for kind, point in self.points.items() if point.starts}
        return counts | ({"attn.pattern": self.heads} if "attn.pattern" not in self.refused and self.heads else {})

    def kinds(self) -> tuple[str, ...]:
        """Return the site kinds that this model offers."""
        always = ("resid.pre", "resid.post", "logits")
        kinds = (*always, "embed", "resid.mid", "attn.pattern", *self.points)
        return tuple(kind for kind in kinds if kind not in self.refused)

    def require(self, kind: str) -> None:
        """Raise if this model does not offer the kind.

        Raises:
            BadInput: the kind exists but cannot be used on this model; the message gives the reason.
            UnknownName: there is no such kind.
        """
        if kind in self.refused:
            offered = ", ".join(self.kinds())
            raise BadInput(
                f"{kind} cannot be used on this {self.family} model: {self.refused[kind]}. It offers: {offered}."
            )
        if kind not in self.kinds():
            raise UnknownName.of("site kind", kind, self.kinds())
