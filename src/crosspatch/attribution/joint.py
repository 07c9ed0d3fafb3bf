"""Joint patches of sets of nodes: which nodes each pair has, and the exact effect of patching a set in one run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int

from crosspatch.core.errors import BadInput
from crosspatch.engine.cells import cells_of
from crosspatch.engine.effects import Effects
from crosspatch.engine.keeping import task_hash
from crosspatch.engine.patching import Question, Sites, patch, prepare
from crosspatch.engine.select import select_single
from crosspatch.engine.sweep import Options
from crosspatch.metrics import Metric
from crosspatch.models.model import Model
from crosspatch.sites import Group, Site
from crosspatch.tasks import Task
from crosspatch.tasks.pair import take

_OF_ALL_PAIRS = ("gaussian", "mean")  # corrupt runs that depend on a pair's place among the pairs, or on the others


@dataclass(frozen=True)
class Asked:
    """Say which way is patched and by which metric it is read; the task's own metric unless given."""

    direction: str = "denoise"
    metric: str | Metric | None = None


@dataclass(frozen=True, eq=False)
class Ground:
    """The nodes of a question on each pair, as `[pair, node]`.

    `present` tells whether the pair has the node's position; `live`, whether a patch there can change what the metric
    reads: before the first differing token, and past the last read, the effect is exactly zero in every joint patch.
    `question` tells model, data, direction and metric apart.
    """

    sites: tuple[Site, ...]
    present: Bool[np.ndarray, "pair node"]
    live: Bool[np.ndarray, "pair node"]
    question: tuple[str, ...]

    @classmethod
    def of(cls, model: Model, task: Task, sites: Sites, *, asked: Asked) -> "Ground":
        """Check the question and find which pairs have which nodes, without running the model.

        Raises:
            UnknownName, BadInput: as `patch` does; no site; a group among the sites.
        """
        nodes = select_single(model, task, sites)
        if not nodes:
            raise BadInput("there are no sites to patch together: give one at least, such as 'attn.head'.")
        sweep = prepare(model, task, Question(nodes, asked.direction, (asked.metric,)), options=Options())
        draws = task.corruption.draws
        present, live = (np.zeros((len(task.pairs), len(nodes)), dtype=np.bool_) for _ in range(2))
        for node, number, cell in cells_of(nodes, sweep.pairs, sweep.extents, model.anatomy):
            present[number // draws, node] = True
            live[number // draws, node] |= cell is not None
        named = (model.fingerprint, task_hash(task), asked.direction, sweep.metrics[0].name)
        return cls(nodes, present, live, named)

    def indices(self, sites: Iterable[Site], *, role: str) -> Int[np.ndarray, " node"]:
        """Find sites among the nodes, sorted; `role` says in the error what they are for. Raises BadInput."""
        place = {site: number for number, site in enumerate(self.sites)}
        return np.array(sorted({_place(place, site, role) for site in sites}), dtype=np.int64)


def _place(place: dict[Site, int], site: Site, role: str) -> int:
    if site not in place:
        few = ", ".join(str(each) for each in list(place)[:4])
        raise BadInput(
            f"{site} is to be {role}, and it is none of the {len(place)} nodes ({few}, …). Give nodes as they stand in "
            "`sites`, their position included."
        )
    return place[site]


@dataclass(frozen=True)
class Joint:
    """Patches sets of nodes jointly, each set in one run a pair.

    Members of a set that overlap act as in one forward pass: the later in the pass is written last, on the run as
    patched so far. All hold values of the same source run, so overlapping writes of one kind agree.
    """

    model: Model
    task: Task
    ground: Ground
    asked: Asked
    options: Options

    def on_pair(self, pair: int, sets: Bool[np.ndarray, "set node"]) -> Float64[np.ndarray, " set"]:
        """Give the effect of each set on one pair, NaN for what an interruption left out; equal sets run once.

        Nodes that the pair lacks, or where nothing can change, are not written; a set of no others is exactly zero.

        Raises:
            BadInput: a corrupt run that depends on other pairs than this one; else as `patch` does.
        """
        self._require_alone()
        acting = np.packbits(sets & self.ground.live[pair], axis=1)
        distinct, which = np.unique(acting, axis=0, return_inverse=True)
        rows = np.unpackbits(distinct, axis=1, count=len(self.ground.sites)).astype(np.bool_)
        groups, effects = [*self._groups(rows)], np.zeros(len(rows))
        if groups:
            found = self._patched(take(self.task, [pair]), groups, folder=f"pair {pair}")
            effects[rows.any(axis=1)] = found.raw[:, 0]
        return effects[which.reshape(-1)]

    def on_all(self, sets: Bool[np.ndarray, "set node"]) -> Float64[np.ndarray, "set pair"]:
        """Give the effect of each set on each pair; NaN where the pair has none of its nodes."""
        ground = self.ground
        if ground.present.all():
            found = np.zeros((len(sets), len(ground.present)))
            groups = [*self._groups(sets)]
            if groups:
                found[sets.any(axis=1)] = self._patched(self.task, groups, folder="").raw
        else:
            found = np.stack([self.on_pair(pair, sets) for pair in range(len(ground.present))], axis=1)
        there = sets.astype(np.int64) @ ground.present.T.astype(np.int64) > 0
        return np.where(there, found, np.nan)

    def _groups(self, rows: Bool[np.ndarray, "set node"]) -> Iterable[Group]:
        for number, row in enumerate(rows):
            if row.any():
                yield Group(f"set {number}", tuple(self.ground.sites[i] for i in np.flatnonzero(row)))

    def _patched(self, task: Task, groups: Sequence[Group], *, folder: str) -> Effects:
        journal = self.options.journal
        # A journal belongs to one question, and each pair is a question of its own.
        options = replace(self.options, journal=journal / folder) if journal and folder else self.options
        asked = self.asked
        return patch(self.model, task, sites=groups, direction=asked.direction, metric=asked.metric, options=options)

    def _require_alone(self) -> None:
        by = self.task.corruption.by
        if by in _OF_ALL_PAIRS and len(self.task.pairs) > 1:
            raise BadInput(
                f"corruption {by!r} with {len(self.task.pairs)} pairs: sets of nodes are patched pair by pair, and "
                "such a corrupt run depends on the other pairs. Corrupt by other tokens, by 'zero', or give one pair."
            )
