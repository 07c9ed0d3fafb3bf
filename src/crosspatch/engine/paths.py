"""Path patching, exact: what a sender changes at chosen receivers alone, along paths without other heads."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from crosspatch.core.errors import BadInput
from crosspatch.engine.cells import Cell, Part, patched_positions
from crosspatch.engine.effects import Effects
from crosspatch.engine.keeping import run_kept
from crosspatch.engine.local import Local, Pass
from crosspatch.engine.patching import Question, effects_of, patch, prepare
from crosspatch.engine.plan import row_work
from crosspatch.engine.relay import Relay
from crosspatch.engine.select import select_single, selection_text
from crosspatch.engine.sweep import Options, Sweep
from crosspatch.engine.walk import Walk
from crosspatch.metrics import Metric
from crosspatch.models.model import Model
from crosspatch.sites import Site
from crosspatch.tasks import Pair, Task

LOGITS = "logits"
SENDERS = ("embed", "resid.pre", "attn.head", "attn.out", "mlp.in", "mlp.hidden", "mlp.out")
RECEIVERS = ("attn.in", "attn.q", "attn.k", "attn.v", "mlp.in")
THROUGH = ("mlps", "nothing")


@dataclass(frozen=True)
class Paths:
    """Say which paths are patched: from each sender, one at a time, to all receivers together.

    `senders` and `to` are selections of sites; `to="logits"` asks for what reaches the final stream. A path goes
    through MLPs, which are recomputed (`through="mlps"`, Wang et al. 2022), or is the one edge from sender to receiver
    (`through="nothing"`); other heads are always held. A receiver without a position receives at all of them.
    `local=False` runs all positions from the sender's on, as published; the numbers are the same, the work is not.
    """

    senders: str | Sequence[Site] = "attn.head"
    to: str | Sequence[Site] = LOGITS
    direction: str = "noise"
    through: str = "mlps"
    local: bool = True


def path_patch(
    model: Model, task: Task, *, paths: Paths, metric: str | Metric | None = None, options: Options | None = None
) -> Effects:
    """Patch the paths from each sender to the receivers; exactly, by running the model.

    Algorithm 1 of Wang et al. 2022 (appendix B): run the base prompt with every head held at the base run's output,
    except the sender, which has the source's; keep what each receiver would read; run the base prompt again with only
    the receivers written. With heads held, positions do not mix, so the first run is one token for each changed
    position. By default the base run is the clean one ("noise").

    Raises:
        UnknownName, BadInput: a site, direction or metric that this model or task does not have, a kind that cannot
            send or receive, or senders that were given as groups.
        NotFinite, MemoryShortage: as `patch` does.

    >>> to = "attn.q[9, 6|9]@end"
    >>> effects = path_patch(model, task, paths=Paths("attn.head@end", to=to))  # doctest: +SKIP
    """
    began = time.perf_counter()
    sweep = path_sweep(model, task, paths, metric=metric, options=options)
    plan = sweep.plan()
    run_kept(sweep, task)
    words = {
        "senders": selection_text(paths.senders),
        "to": selection_text(paths.to),
        "through": paths.through,
        "seconds": time.perf_counter() - began,
    }
    return effects_of(sweep, task, plan, words)


def split_effects(
    model: Model,
    task: Task,
    *,
    sites: str | Sequence[Site] = "attn.head, mlp.out",
    direction: str = "noise",
    metric: str | Metric | None = None,
    options: Options | None = None,
) -> dict[str, Effects]:
    """Split each site's effect: "total" (a patch), "direct" (its edge to the logits alone), "indirect" (the rest).

    Raises:
        UnknownName, BadInput, NotFinite, MemoryShortage: as `path_patch` does.
    """
    total = patch(model, task, sites=sites, direction=direction, metric=metric, options=options)
    edges = Paths(tuple(site for site in total.sites if isinstance(site, Site)), LOGITS, direction, "nothing")
    direct = path_patch(model, task, paths=edges, metric=metric, options=options)
    return {"total": total, "direct": direct, "indirect": replace(total, raw=total.raw - direct.raw)}


def path_sweep(
    model: Model, task: Task, paths: Paths, *, metric: str | Metric | None = None, options: Options | None = None
) -> "PathSweep":
    """Check everything that can be wrong before the model runs, and set up the sweep. Raises as `path_patch` does."""
    if paths.through not in THROUGH:
        raise BadInput(f"through={paths.through!r}: a path goes through {' or through '.join(map(repr, THROUGH))}.")
    model.anatomy.require("attn.head")
    if paths.through == "nothing":
        model.anatomy.require("mlp.out")
    plain = prepare(model, task, Question(paths.senders, paths.direction, (metric,)), options=options or Options())
    to = () if paths.to == LOGITS else select_single(model, task, paths.to)
    for site in plain.sites:
        if not isinstance(site, Site) or site.kind not in SENDERS:
            raise BadInput(f"{site} cannot send a path: senders are sites of {', '.join(SENDERS)}.")
    for site in to:
        if site.kind not in RECEIVERS:
            raise BadInput(f"{site} cannot receive a path: receivers are sites of {', '.join(RECEIVERS)}, or 'logits'.")
    asked = (plain.model, plain.pairs, plain.sites, plain.metrics, plain.direction, plain.options, plain.corruption)
    return PathSweep(*asked, paths=paths, receivers=to)


@dataclass
class PathSweep(Sweep):
    """A sweep whose rows are paths instead of patches."""

    paths: Paths = field(default_factory=Paths)
    receivers: Sequence[Site] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.held = ("attn.head", "mlp.out") if self.paths.through == "nothing" else ("attn.head",)
        self.base_kinds = tuple(sorted({*self.held, *(site.kind for site in self.receivers)}))
        self.alone = self.paths.local and self.model.anatomy.packed

    @property
    def steps(self) -> bool:
        """Whether packs can be run in step with other processes' packs: a relay calls blocks as its senders need."""
        return False

    def how(self) -> str:
        """Name the paths."""
        to = [str(site) for site in self.receivers]
        return f"paths to {to or LOGITS} through {self.paths.through}, {'alone' if self.alone else 'in rows'}"

    def work(self, pack: Sequence[Cell], local: Local) -> int:
        """Return the token-blocks of a pack: single tokens to the receivers, then whole rows from there on."""
        anatomy, extents, total = self.model.anatomy, local.extents, 0
        pairs = [self.pairs[number] for number in local.numbers]
        for cell in pack:
            top = max((site.layer or 0 for site in self.receivers), default=anatomy.layers - 1) + 1
            tokens = len(cell.parts[0].positions) if self.alone else extents.lengths[cell.pair] - cell.start
            total += max(top - cell.layer, 0) * tokens
            parts = self._receiving(cell, pairs)
            total += row_work(Cell(cell.site, cell.pair, parts), extents, anatomy) if parts else 0
        return total

    def walk(self, pack: Sequence[Cell], this: Pass) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yield indices into `pack` and the final streams of their last runs; paths that lead nowhere stay at base."""
        relay = Relay(this.bench, this.base, this.written, pack, self.alone, self.held)
        reads = torch.tensor(this.local.extents.reads)
        if not self.receivers:
            yield range(len(pack)), relay.to_the_end(this.local.extents)
            return
        pairs = [self.pairs[number] for number in this.local.numbers]
        cells = [replace(cell, parts=self._receiving(cell, pairs), row=row) for row, cell in enumerate(pack)]
        running = [row for row, cell in enumerate(cells) if cell.parts]
        idle = [row for row, cell in enumerate(cells) if not cell.parts]
        if idle:
            own = torch.tensor([pack[row].pair for row in idle])
            yield idle, this.base.stream[-1][own[:, None], reads[own]]
        if running:
            received = relay.to_receivers(self.receivers)
            walk = Walk(this.bench, this.base, received, this.local.extents, [cells[row] for row in running])
            for indices, stream in walk.run():
                yield [running[i] for i in indices], stream

    def _receiving(self, cell: Cell, pairs: Sequence[Pair]) -> tuple[Part, ...]:
        """Return what the receivers write in a sender's row; nothing if what it changes reaches none of them.

        Receivers that read nothing new are written too, with the base run's own: what other receivers change may not
        reach them.
        """
        pair, changed, found = pairs[cell.pair], cell.parts[0].positions, []
        for site in self.receivers:
            places = patched_positions("all" if site.position is None else site.position, pair, len(pair.clean)) or ()
            positions = tuple(p for p in places if p >= changed[0] or not self.model.anatomy.causal)
            if positions and (site.layer or 0) >= cell.layer:
                found.append(Part(site.kind, site.layer or 0, site.unit, positions))
        return tuple(found) if any(set(part.positions) & set(changed) for part in found) else ()
