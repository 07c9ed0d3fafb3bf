"""Routes: for each prompt the tokens, heads and MLPs through which information flows to a prediction."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int

from crosspatch.core.errors import CorruptFile, MissingExtra, UnknownName
from crosspatch.core.store import read_result, write_result
from crosspatch.draw import Display, Displayed, number
from crosspatch.flow.walk import KINDS, NONE

if TYPE_CHECKING:
    import pandas as pd

EDGE = {"kind": np.int64, "layer": np.int64, "unit": np.int64, "stage": np.int64, "target": np.int64}
EDGE |= {"source": np.int64, "importance": np.float64, "weight": np.float64, "flow": np.float64}
NODE = {"stage": np.int64, "position": np.int64, "importance": np.float64, "clipped": np.float64}
NODE |= {"dropped": np.float64, "slack": np.float64, "evaluated": np.int64, "skipped": np.int64}
META = ("model", "task", "threshold", "renormalise", "prune", "layers", "heads", "sequential", "components")
MOST = 12  # edges in a notebook or shell


def node_name(stage: int, position: int) -> str:
    """Return the site of a node of a stage: `resid.pre[0]@3`, `resid.mid[2]@3`, `resid.post[2]@3`."""
    if stage == 0:
        return f"resid.pre[0]@{position}"
    return f"resid.{'mid' if stage % 2 else 'post'}[{(stage - 1) // 2}]@{position}"


@dataclass(frozen=True, slots=True)
class RouteEdge:
    """One edge: what `component` carries from the stream at a source token to that at a target token.

    `component` is `attn.head[l, h]` (`attn.out[l]` where heads were summed), `mlp.out[l]`, `resid` (the stream itself)
    or `attn.bias[l]` (the output projection's bias, which comes from no token: `source` is None). `importance` is its
    share of the target before thresholding, `weight` that among the edges that are kept (where shares are
    renormalised), `flow` the weight times the target's own importance.
    """

    component: str
    source: str | None
    target: str
    importance: float
    weight: float
    flow: float


@dataclass(frozen=True, eq=False, repr=False)
class Route(Displayed):
    """The route of one prompt, edges from the last layer down, each column one array.

    Edges: `kind` (an index of `KINDS`), `layer`, `unit` (the head, −1 for none), `stage` of the target, positions
    `target` and `source` (−1: none), `importance`, `weight`, `flow`. Nodes: `stage`, `position`, `importance` (how much
    of the end's importance of 1 reaches it top-down), `clipped` (the share of its parts that lead away from it, which
    have proximity ε each), `dropped` (the share of parts under the threshold), `slack` (by how much, relatively, true
    importances may exceed those given: 0 but for prune="route"), and how many parts of attention were `evaluated` and
    `skipped`. Stages count half blocks: 2l enters block l, 2l + 1 follows its attention. The stream that enters the
    first block is not split: its `clipped`, `dropped` and `slack` are NaN.
    """

    tokens: tuple[str, ...]
    end: int
    edges: Mapping[str, Any]
    nodes: Mapping[str, Any]
    sequential: bool = True

    def __len__(self) -> int:
        return len(self.edges["kind"])

    def __iter__(self) -> Iterator[RouteEdge]:
        columns = [self.edges[name].tolist() for name in EDGE]
        for kind, layer, unit, stage, target, source, *shares in zip(*columns, strict=True):
            begin = None if source == NONE else node_name(self._below(kind, layer, stage), source)
            yield RouteEdge(component_name(kind, layer, unit), begin, node_name(stage, target), *shares)

    def _below(self, kind: int, layer: int, stage: int) -> int:
        """Return the stage that an edge comes from: heads read what enters the block."""
        return stage - 1 if self.sequential and kind != KINDS.index("attn.head") else 2 * layer

    @cached_property
    def reached(self) -> dict[str, float]:
        """The nodes on the route by name, with the importance that reaches each."""
        rows = zip(*(self.nodes[name].tolist() for name in ("stage", "position", "importance")), strict=True)
        return {node_name(stage, position): importance for stage, position, importance in rows}

    def edge_list(self) -> list[tuple[str, str, dict[str, Any]]]:
        """List (source, target, attributes), as graph libraries take them; a bias comes from `attn.bias[l]` itself."""
        return [
            (
                edge.source or edge.component,
                edge.target,
                {"component": edge.component, "importance": edge.importance, "weight": edge.weight, "flow": edge.flow},
            )
            for edge in self
        ]

    def heads_summed(self) -> "Route":
        """Add up the heads' edges of each pair of tokens. Edges were chosen by head before, so none is found so."""
        edges = {name: np.asarray(column) for name, column in self.edges.items()}
        unit = np.where(edges["kind"] == KINDS.index("attn.head"), NONE, edges["unit"])
        ends = np.stack([edges["kind"], edges["layer"], unit, edges["stage"], edges["target"], edges["source"]])
        _, first, place = np.unique(ends, axis=1, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        summed = {name: np.bincount(place.ravel(), edges[name])[order] for name in ("importance", "weight", "flow")}
        kept = {name: edges[name][first[order]] for name in EDGE if name not in (*summed, "unit")}
        return replace(self, edges={**kept, "unit": unit[first[order]], **summed})

    def top(self, k: int = MOST) -> list[RouteEdge]:
        """List the edges other than the stream's own with the largest flow."""
        return sorted((edge for edge in self if edge.component != "resid"), key=lambda edge: -edge.flow)[:k]

    def display(self) -> Display:
        """Say where the route ends and how large it is, and list the edges with the largest flow."""
        skipped, all_parts = int(self.nodes["skipped"].sum()), int((self.nodes["evaluated"]).sum())
        head = (
            f"Route to token {self.end} ({self.tokens[self.end]!r}): {len(self)} edges, {len(self.nodes['stage'])} "
            f"nodes; {skipped:,} of {skipped + all_parts:,} parts of attention needed no working out"
        )
        rows = [
            (edge.component, edge.source or "", edge.target, number(edge.weight, 3), number(edge.flow, 3))
            for edge in self.top()
        ]
        return Display(head, ("component", "from", "to", "weight", "flow"), rows)


def component_name(kind: int, layer: int, unit: int = NONE) -> str:
    """Return the name of what carries an edge."""
    if KINDS[kind] == "resid":
        return "resid"
    if KINDS[kind] == "attn.head":
        return f"attn.out[{layer}]" if unit == NONE else f"attn.head[{layer}, {unit}]"
    return f"{KINDS[kind]}[{layer}]"


@dataclass(frozen=True, eq=False, repr=False)
class Routes(Displayed, Sequence[Route]):
    """The routes of some prompts of one model, in the order given: `routes[0]` is a `Route`.

    `components` names all heads, MLPs and biases that could be on a route.
    """

    found: tuple[Route, ...]
    model: str
    task: str
    threshold: float
    renormalise: bool
    prune: str
    layers: int
    heads: int
    sequential: bool
    components: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return replace(self, found=self.found[place])
        if not -len(self) <= place < len(self):
            raise UnknownName(f"route {place}: there are routes of {len(self)} prompts, 0..{len(self) - 1}.")
        return self.found[place]

    def __iter__(self) -> Iterator[Route]:
        return iter(self.found)

    def heads_summed(self) -> "Routes":
        """Add up heads in every route: see `Route.heads_summed`."""
        return replace(self, found=tuple(route.heads_summed() for route in self))

    def to_frame(self) -> "pd.DataFrame":
        """Make a pandas table, one row an edge. Raises MissingExtra without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise MissingExtra("to_frame needs pandas: pip install 'crosspatch[pandas]'") from None
        names = ("component", "source", "target", "importance", "weight", "flow")
        rows = [(prompt, *(getattr(edge, n) for n in names)) for prompt, route in enumerate(self) for edge in route]
        return pd.DataFrame(rows, columns=["prompt", *names])

    def save(self, folder: str | Path) -> Path:
        """Write a result folder (safetensors and JSON); give it. Raises BadInput if it cannot."""
        arrays: dict[str, np.ndarray] = {}
        for what, columns in (("edges", EDGE), ("nodes", NODE)):
            parts = [getattr(route, what) for route in self]
            arrays |= {f"{what}.{name}": np.concatenate([part[name] for part in parts]) for name in columns}
            arrays[f"{what}.count"] = np.array([len(part["stage"]) for part in parts])
        meta = {name: getattr(self, name) for name in META}
        prompts = {"tokens": [list(route.tokens) for route in self], "ends": [route.end for route in self]}
        return write_result(folder, arrays, {"what": "routes", **prompts, **meta})

    @classmethod
    def load(cls, folder: str | Path) -> "Routes":
        """Read what `save` wrote. Raises BadInput without such a folder, CorruptFile if its content is damaged."""
        arrays, meta = read_result(folder)
        try:
            if meta["what"] != "routes":
                raise KeyError("what")
            edges, nodes = (_split(arrays, what, columns) for what, columns in (("edges", EDGE), ("nodes", NODE)))
            rows = zip(meta["tokens"], meta["ends"], edges, nodes, strict=True)
            found = tuple(Route(tuple(t), end, e, n, meta["sequential"]) for t, end, e, n in rows)
            fields: dict[str, Any] = {name: meta[name] for name in META}
            fields["components"] = tuple(fields["components"])
            return cls(found, **fields)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{str(folder)!r} holds no saved routes ({error} is missing or damaged).") from None

    def display(self) -> Display:
        """Say what was asked and how many edges there are, and show the first route."""
        edges = sum(map(len, self))
        rule = f"threshold {self.threshold:g}" + (", renormalised" if self.renormalise else "")
        title = f"Routes: {self.model} · {self.task} · {len(self)} prompts, {edges:,} edges, {rule}"
        if not self.found:
            return Display(title)
        first = self.found[0].display()
        return replace(first, title=title, notes=[f"The first: {first.title}"])


def _split(
    arrays: Mapping[str, np.ndarray], what: str, columns: Mapping[str, Any]
) -> list[dict[str, Float64[np.ndarray, " row"] | Int[np.ndarray, " row"]]]:
    ends = np.cumsum(arrays[f"{what}.count"])[:-1]
    split = {name: np.split(arrays[f"{what}.{name}"], ends) for name in columns}
    return [dict(zip(split, each, strict=True)) for each in zip(*split.values(), strict=True)]
