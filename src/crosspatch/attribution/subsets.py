"""Random subsets of nodes, each patched jointly on one random pair: the samples that bound what was missed."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from crosspatch.attribution.joint import Asked, Ground, Joint
from crosspatch.core.errors import BadInput
from crosspatch.engine.patching import Sites
from crosspatch.engine.sweep import Options
from crosspatch.models.model import Model
from crosspatch.sites import Site
from crosspatch.tasks import Task

_AT_ONCE = 1 << 24  # random numbers, or memberships, held unpacked


@dataclass(frozen=True)
class Sampling:
    """Say how subsets are drawn: `samples` of them, each node with probability `p`, on one random pair each.

    Nodes in `skip` are in no subset: verified nodes whose large effects would only add noise.
    Raises BadInput for fewer than 2 samples or a `p` that is not between 0 and 1.
    """

    samples: int
    p: float
    seed: int = 0
    skip: frozenset[Site] = frozenset()
    asked: Asked = field(default_factory=Asked)

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise BadInput(f"{self.samples} samples of subsets: a spread needs 2 at least. Give some hundreds.")
        if not 0 < self.p < 1:
            raise BadInput(
                f"p={self.p}: each node is in a subset with a probability between 0 and 1. Give 0.02 for hundreds of "
                "nodes, more for few."
            )


@dataclass(frozen=True, eq=False)
class Subsets:
    """Sampled subsets and what patching each of them did.

    `packed` holds who is in each subset, a bit a node; nodes that the sample's pair lacks are in none. `effects` are
    metric(patched) − metric(base), NaN where a run was interrupted. `designs` are the samplings that were joined.
    """

    ground: Ground
    packed: UInt8[np.ndarray, "sample byte"]
    effects: Float64[np.ndarray, " sample"]
    pairs: Int64[np.ndarray, " sample"]
    designs: tuple[Sampling, ...]

    def __len__(self) -> int:
        return len(self.effects)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The nodes, in the order of all arrays over nodes."""
        return self.ground.sites

    @property
    def membership(self) -> Bool[np.ndarray, "sample node"]:
        """Who is in each subset, unpacked: eight times the memory."""
        return self.members(slice(None))

    @property
    def complete(self) -> bool:
        """Whether every sample was run."""
        return not np.isnan(self.effects).any()

    @property
    def spent(self) -> float:
        """What the samples cost, in forward passes over all pairs: an empty subset counts too."""
        return len(self) / len(self.ground.present)

    @cached_property
    def still(self) -> Bool[np.ndarray, " node"]:
        """Nodes whose patch changes nothing on any pair, whatever else is patched: their effect is known to be zero."""
        return np.asarray(~self.ground.live.any(axis=0))

    def members(self, part: slice) -> Bool[np.ndarray, "sample node"]:
        """Unpack some samples' membership."""
        return np.unpackbits(self.packed[part], axis=1, count=len(self.sites)).astype(np.bool_)

    def parts(self) -> list[slice]:
        """Cut the samples so that an unpacked part fits in memory."""
        step = max(1, _AT_ONCE // len(self.sites))
        return [slice(start, start + step) for start in range(0, len(self), step)]

    def joined(self, other: "Subsets") -> "Subsets":
        """Add the samples of another sampling of the same question, with another seed.

        Raises:
            BadInput: other sites, model, pairs, metric, `p` or skipped nodes; or a seed that was used.
        """
        mine, theirs = self.ground, other.ground
        if mine.sites != theirs.sites or mine.question != theirs.question:
            raise BadInput("these subsets are of other sites, another model, task or metric: sample the same question.")
        if {(d.p, d.skip) for d in self.designs} != {(d.p, d.skip) for d in other.designs}:
            raise BadInput(
                "these subsets were drawn with another p or other skipped nodes, so their means are of something else. "
                "Sample with the same design and a new seed."
            )
        used = {d.seed for d in self.designs} & {d.seed for d in other.designs}
        if used:
            raise BadInput(f"seed {min(used)} was sampled already: the same samples say nothing new. Give another.")
        return replace(
            self,
            packed=np.concatenate([self.packed, other.packed]),
            effects=np.concatenate([self.effects, other.effects]),
            pairs=np.concatenate([self.pairs, other.pairs]),
            designs=(*self.designs, *other.designs),
        )


def sample_subsets(
    model: Model, task: Task, sites: Sites, *, design: Sampling, options: Options | None = None
) -> Subsets:
    """Draw subsets of the nodes and patch each jointly and exactly, in one run on one uniformly drawn pair.

    The diagnostic sampling of Kramár et al. 2024 (arXiv 2403.00745, AtP*). Samples on the same pair share
    its two runs; an empty subset has effect 0 and no run. Members that overlap act as `Joint` says. With a journal each
    pair has a folder of its own in it. Ctrl-C ends early: what is missing is NaN.

    Raises:
        UnknownName, BadInput: as `patch` does; no site, a group, a skipped site that is none of the nodes, or noise and
            mean corruption of several pairs (a pair's corrupt run would depend on the others).
        NotFinite, MemoryShortage: as `patch` does.

    >>> subsets = sample_subsets(model, task, "attn.head", design=Sampling(1000, 0.05))  # doctest: +SKIP
    """
    ground = Ground.of(model, task, sites, asked=design.asked)
    packed, pairs = drawn(ground, design)
    subsets = Subsets(ground, packed, np.full(len(pairs), np.nan), pairs, (design,))
    joint = Joint(model, task, ground, design.asked, options or Options())
    for pair in np.unique(pairs):
        chosen = np.flatnonzero(pairs == pair)
        sets = np.unpackbits(packed[chosen], axis=1, count=len(ground.sites)).astype(np.bool_)
        subsets.effects[chosen] = joint.on_pair(int(pair), sets)
        if np.isnan(subsets.effects[chosen]).any():
            break  # interrupted: the user wants no more runs
    return subsets


def drawn(ground: Ground, design: Sampling) -> tuple[UInt8[np.ndarray, "sample byte"], Int64[np.ndarray, " sample"]]:
    """Draw who is in each subset, packed, and each sample's pair, from the design's seed.

    Raises:
        BadInput: a skipped site that is none of the nodes.
    """
    rng, nodes = np.random.default_rng(design.seed), len(ground.sites)
    pairs = rng.integers(0, len(ground.present), size=design.samples)
    allowed = np.ones(nodes, dtype=np.bool_)
    allowed[ground.indices(design.skip, role="skipped")] = False
    step, packed = max(1, _AT_ONCE // nodes), []
    for start in range(0, design.samples, step):
        part = pairs[start : start + step]
        chosen = rng.random((len(part), nodes)) < design.p
        packed.append(np.packbits(chosen & allowed & ground.present[part], axis=1))
    return np.concatenate(packed), pairs
