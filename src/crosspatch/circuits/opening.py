"""From a model and a task to machines: one for each chunk of pairs whose runs are held together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from crosspatch.circuits.graph import Graph
from crosspatch.circuits.machine import KINDS, Machine, open_machine
from crosspatch.circuits.method import Method
from crosspatch.core.errors import BadInput
from crosspatch.engine import Ablation, Options
from crosspatch.engine.patching import Question, prepare
from crosspatch.engine.sweep import Sweep
from crosspatch.metrics import Metric
from crosspatch.models.model import Model
from crosspatch.models.runs import Bench, Running
from crosspatch.sites import resolve_position
from crosspatch.tasks import Task

ELSEWHERE = "elsewhere"  # the place of tokens that have no name


@dataclass
class EdgeSweep(Sweep):
    """The runs that circuits are run between: clean as base, and what stands in the place of absent edges."""

    graph: Graph = field(default_factory=lambda: Graph(0, 0, 0))
    method: Method | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kinds = self.base_kinds = KINDS

    def bytes_per_pair(self) -> int:
        """Return the memory that a pair holds: its runs, and what every sender adds at each token."""
        return super().bytes_per_pair() + 4 * max(self.extents.lengths) * self.model.anatomy.d_model * self.graph.nodes

    def how(self) -> str:
        """Say what sets this search apart from others of the same pairs."""
        return f"circuit {self.graph.places} {self.method}"

    @property
    def plain_options(self) -> Options:
        """The options without the journal, which belongs to the search itself."""
        return replace(self.options, journal=None)

    @property
    def room(self) -> int:
        """Return the bytes that one pass of circuits may take beside the runs."""
        return self._budget() // 2

    @contextmanager
    def machine(self, numbers: Sequence[int]) -> Iterator[Machine]:
        """Run the two runs of some pairs and hold them for running circuits, while the block lasts.

        Raises:
            NotFinite: the metric of a run is not a number.
            NotProved: what heads add cannot be told apart.
        """
        with self.opened(numbers) as this:
            for store, values in ((self.base, this.before), (self.source, this.after)):
                store[:, list(numbers)] = values.cpu().numpy()
            lane = self.changed(this.bench, numbers)
            places = self.places(lane, numbers)
            is_run = self.ablation is None or self.ablation.by == "resample"
            yield open_machine(self.model, self.graph, this, lane, places, is_run=is_run)

    def changed(self, bench: Bench, numbers: Sequence[int]) -> Running:
        """Return the clean prompts' tokens from the first on at which the two runs may differ."""
        starts = [self.extents.differ[n] for n in numbers] if self.model.anatomy.packed else None
        return Running.begin(bench, replace(self.lane("base", numbers), starts=starts), keys=False)

    def places(self, lane: Running, numbers: Sequence[int]) -> list[Int[Tensor, " _"]]:
        """Return the tokens of each place of the graph; without places, all tokens are one."""
        if not self.graph.places:
            return [torch.arange(lane.tokens)]
        where = torch.full((lane.tokens,), len(self.graph.places) - 1)
        for place, name in enumerate(self.graph.places[:-1]):
            for row, number in enumerate(numbers):
                pair = self.pairs[number]
                position = resolve_position(name, pair.names, len(pair.clean))
                where[(lane.pairs.cpu() == row) & (lane.positions.cpu() == position)] = place
        return [(where == place).nonzero().flatten().to(lane.pairs.device) for place in range(len(self.graph.places))]


def edge_sweep(
    model: Model,
    task: Task,
    graph: Graph,
    metrics: Sequence[str | Metric | None],
    *,
    ablation: Ablation | None = None,
    options: Options | None = None,
) -> EdgeSweep:
    """Check everything that can be wrong before the model runs, and set up the runs.

    Raises:
        UnknownName, BadInput: a metric, ablation or place that this model or task does not have; a model that several
            processes hold together.
    """
    if model.together:
        raise BadInput(
            "this model is held by several processes together, and circuits are not run on such models. Open it on one "
            "device (or with device_map)."
        )
    question = Question("embed", "noise", tuple(metrics), ablation)
    plain = prepare(model, task, question, options=options or Options())
    for name in graph.places[:-1]:
        for pair in plain.pairs:
            resolve_position(name, pair.names, len(pair.clean))
    given = (plain.model, plain.pairs, plain.sites, plain.metrics, plain.direction, plain.options, plain.corruption)
    return EdgeSweep(*given, ablation, graph=graph)


def graph_of(model: Model, places: Sequence[str] = ()) -> Graph:
    """Return the graph of a model; with places, tokens without a name are one more.

    Raises:
        BadInput: the model does not offer what edges need, or a place is named twice.
    """
    if len(set(places)) < len(places) or ELSEWHERE in places:
        raise BadInput(f"places {', '.join(places)}: give each once; {ELSEWHERE!r} is there in any case.")
    return Graph.of(model.anatomy, (*places, ELSEWHERE) if places else ())
