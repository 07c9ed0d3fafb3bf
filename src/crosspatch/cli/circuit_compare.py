"""`circuit compare`: what two circuits share, how likely by chance, and what each does on one model's pairs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import circuit_options as about
from crosspatch.cli import options as given
from crosspatch.cli.circuit_find import check_metric
from crosspatch.cli.circuit_folder import open_circuit
from crosspatch.cli.question import check_words, make_task, open_model, parse_size
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput

if TYPE_CHECKING:
    from crosspatch.circuits import Circuit, Graph, Overlap
    from crosspatch.circuits.overlap import Shared
    from crosspatch.models import Model
    from crosspatch.tasks import Task

First = Annotated[str, typer.Argument(metavar="FIRST", help="A circuit: as in `circuit score`.", show_default=False)]
Second = Annotated[str, typer.Argument(metavar="SECOND", help="Another of the same graph.", show_default=False)]
FEW = 4  # nodes named of each side


def compare(
    first: First,
    second: Second,
    model: given.MaybeModel = None,
    *,
    task: given.MaybeTask = None,
    metric: given.Metric = None,
    ablate: about.AblateAbsent = about.Absent.corrupt,
    n: given.Pairs = None,
    seed: given.Seed = 0,
    settings: given.Settings = None,
    memory: given.Memory = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    layout: given.LayoutOption = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Compare two circuits edge by edge; with a model, by what they do.

    \b
    crosspatch circuit compare runs/circuit-a runs/circuit-b
    crosspatch circuit compare runs/circuit-a runs/circuit-b gemma-3-270m --task ioi
    """
    from crosspatch.circuits import compare_circuits

    voice, room = Voice(json, quiet), parse_size(memory)
    if (model is None) != (task is None):
        raise BadInput("circuits are run on a model and a task: give MODEL and --task, or neither.")
    if task is not None:
        check_metric(check_words(task, settings or (), sites="embed", metric=metric))
    names = (first, second)
    for name in names:
        if not Path(name).is_file():
            open_circuit(name)  # what is no circuit is found before a model is opened
    opened = None if model is None else open_model(model, voice, device=device, dtype=dtype, layout=layout)
    pair = _both(names, opened)
    overlap = compare_circuits(*pair)
    shares: dict[str, dict[str, float]] = {}
    if opened is not None and task is not None:
        made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
        shares = _shares(pair, overlap, opened, made, metric=metric, ablate=ablate.value, memory=room)
    only = [_only(pair[0], pair[1]), _only(pair[1], pair[0])]
    voice.document(_document(names, overlap, shares, only))
    voice.show(*_lines(names, overlap, shares, only))


def _both(names: tuple[str, str], model: "Model | None") -> "tuple[Circuit, Circuit]":
    """Open two circuits; a file takes the graph of the model, or else of the other circuit."""
    from crosspatch.circuits import graph_of

    graph: Graph | None = None if model is None else graph_of(model)
    if graph is None:
        graph = next((open_circuit(name).graph for name in names if not Path(name).is_file()), None)
    first, second = (open_circuit(name, graph if Path(name).is_file() else None) for name in names)
    return first, second


def _shares(
    pair: "tuple[Circuit, Circuit]",
    overlap: "Overlap",
    model: "Model",
    task: "Task",
    *,
    metric: str | None,
    ablate: str,
    memory: int | None,
) -> dict[str, dict[str, float]]:
    """Return the faithfulness of both circuits and of what they share, each alone and with all else instead."""
    from crosspatch.circuits import Regime, measure_circuits
    from crosspatch.core.stats import bootstrap_ratio
    from crosspatch.engine import Options

    circuits = {"first": pair[0], "second": pair[1]}
    if overlap.edges.both:
        circuits["shared"] = pair[0].with_edges(overlap.included)
    found: dict[str, dict[str, float]] = {name: {} for name in circuits}
    metric = metric or task.metric
    for way in ("keep", "cut"):
        regime = Regime(value=ablate, direction=way)
        given_ones = {"metric": metric, "regime": regime, "options": Options(memory=memory)}
        measured = measure_circuits(list(circuits.values()), model, task, **given_ones)
        raw, gap = (measured.values[0] - measured.empty[0]), (measured.full[0] - measured.empty[0])
        if not gap.mean():
            raise BadInput(f"{metric} is the same with all edges and with none: faithfulness has no scale.")
        low, high = bootstrap_ratio(raw.astype("float64"), gap.astype("float64"))
        for name, value, below, above in zip(circuits, raw.mean(1) / gap.mean(), low, high, strict=True):
            found[name] |= {way: float(value), f"{way}_low": float(below), f"{way}_high": float(above)}
    return found


def _only(one: "Circuit", other: "Circuit") -> list[str]:
    """List the nodes of one circuit that another does not have."""
    there = set(other.nodes)
    return [str(node) for node in one.nodes if node not in there]


def _document(names: tuple[str, str], overlap: "Overlap", shares: Any, only: list[list[str]]) -> dict[str, Any]:
    return {
        "first": names[0],
        "second": names[1],
        "edges": _shared(overlap.edges),
        "nodes": _shared(overlap.nodes),
        "only_first": only[0],
        "only_second": only[1],
        "faithfulness": shares,
    }


def _shared(shared: "Shared") -> dict[str, Any]:
    plain = {name: getattr(shared, name) for name in ("first", "second", "both", "of", "jaccard", "expected", "p")}
    return plain | {"log_p": shared.log_p, "of_first": shared.of_first, "of_second": shared.of_second}


def _lines(names: tuple[str, str], overlap: "Overlap", shares: Any, only: list[list[str]]) -> list[Any]:
    from crosspatch.draw import rich_table, with_interval

    lines: list[Any] = [f"first   {names[0]}", f"second  {names[1]}", ""]
    if shares:
        rows = [
            (name, *(with_interval(each[way], each[f"{way}_low"], each[f"{way}_high"]) for way in ("keep", "cut")))
            for name, each in shares.items()
        ]
        lines.append(rich_table(("circuit", "alone", "without it"), rows))
    for word, nodes in zip(("first", "second"), only, strict=True):
        more = f" and {len(nodes) - FEW:,} more" if len(nodes) > FEW else ""
        lines.append(f"only in the {word}: {', '.join(nodes[:FEW]) or 'no node'}{more}")
    return [*lines, str(overlap)]
