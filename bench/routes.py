"""Time routes found top-down against building the full graph, in the same process and on the same prompts.

    python bench/routes.py                           # the shape of Gemma-3-270M, random weights: 32, 128, 256 tokens
    python bench/routes.py --real                    # its real weights, on text repeated up to the length
    python bench/routes.py --shape tiny --lengths 8  # in a moment

Ways, each from token ids to edges: one plain forward of the model's own module, the unit; `routes` with each kind of
pruning; `full_graph`, which works out every part of every token as `routes` does, batched; and the published scheme,
the tensor [target, source, head, d_model] of a layer and its proximities at once, layer by layer. "Apart" are the
median CPU seconds less those of the plain forward. Ways run in turns; a ratio is the median over repetitions of a way's
seconds over those of `routes`. On a shared machine CPU seconds, of all threads, say more. Routes must be the same, edge
by edge, as the full graph's edges over the threshold at the nodes on the route; otherwise the exit status is 3.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from crosspatch.engine.measure import in_turns, ratio
from crosspatch.flow import Route, Routes, full_graph, routes
from crosspatch.flow.proximity import EPSILON
from crosspatch.flow.reading import read
from crosspatch.models.model import Model
from machine import describe
from shapes import REAL, SHAPES, Build, open_shape
from tables import factor, make_table, spread

FORWARD, ROUTES, FULL, PUBLISHED = "plain forward", "routes", "full graph", "published scheme"
PRUNED = {"routes, no pruning": "none", ROUTES: "exact", "routes, by threshold": "route"}
SAME = 1e-4
TEXT = (
    "The old lighthouse keeper walked down to the harbour, where the boats of the village lay in the evening sun. "
    "He had promised his daughter that he would bring back the letters which the captain kept for them, and the "
    "small brass compass that her mother had lost there many years before. "
)


@dataclass(frozen=True)
class Row:
    """One way at one length: seconds in each repetition, CPU seconds too, times those of `routes`, its work."""

    length: int
    way: str
    seconds: list[float]
    cpu: list[float]
    ratio: float
    cpu_ratio: float
    apart: float
    nodes: int | None
    parts: int | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables and write JSON."""
    given = _parse(arguments)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    model = open_shape(Build(given.shape, given.device, given.dtype, given.seed, real=given.real))
    rows: list[Row] = []
    errors: dict[int, float] = {}
    for length in given.lengths:
        prompts = _prompts(model, given, length)
        found, measured = measure(model, prompts, length, given)
        errors[length] = error_of(found)
        rows += measured
    Console(width=140).print(table(f"{model.name}, {given.prompts} prompts, threshold {given.threshold:g}", rows))
    settings = vars(given) | {"out": given.out.name}
    document = {**describe(given), "settings": settings, "rows": [asdict(row) for row in rows], "errors": errors}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    told = document["machine"]
    print(f"{told['threads']} threads, load {told['load']:.1f} at the end; edges off by {max(errors.values()):.0e}")
    print(f"written: {given.out}")
    if not all(error <= SAME for error in errors.values()):
        sys.exit(3)


def _prompts(model: Model, given: argparse.Namespace, length: int) -> list[list[int]]:
    if given.real and model.tokenizer is not None:
        ids = model.tokenizer.encode(TEXT)
        start, rest = ids[:1], ids[1:]
        long = rest * (1 + (length + given.prompts) // len(rest))
        return [[*start, *long[i : i + length - 1]] for i in range(given.prompts)]
    draw = torch.Generator().manual_seed(given.seed)
    return torch.randint(3, model.vocab_size, (given.prompts, length), generator=draw).tolist()


def measure(
    model: Model, prompts: list[list[int]], length: int, given: argparse.Namespace
) -> tuple[dict[str, Routes], list[Row]]:
    """Time all ways in turns; return what was found, and the rows."""
    found: dict[str, Routes] = {}

    def kept(way: str, **how: str) -> None:
        found[way] = (full_graph if way == FULL else routes)(model, prompts, threshold=given.threshold, **how)

    ways = {FORWARD: partial(forward, model, prompts)}
    ways |= {way: partial(kept, way, prune=prune) for way, prune in PRUNED.items()}
    ways |= {PUBLISHED: partial(published, model, prompts), FULL: partial(kept, FULL)}
    for way in (FORWARD, ROUTES):
        ways[way]()  # whatever is made once
    cpu: dict[str, list[float]] = {way: [] for way in ways}

    def metered(way: str) -> None:
        began = time.process_time()
        ways[way]()
        cpu[way].append(time.process_time() - began)

    spent = in_turns({way: partial(metered, way) for way in ways}, given.repeat, model.device)
    plain, rows = median(cpu[FORWARD]), []
    for way, seconds in spent.items():
        told = list(found.get(way, ()))
        nodes = sum(int((route.nodes["evaluated"] + route.nodes["skipped"] > 0).sum()) for route in told)
        parts = sum(int(route.nodes["evaluated"].sum()) for route in told)
        ratios = ratio(seconds, spent[ROUTES]), ratio(cpu[way], cpu[ROUTES])
        apart = median(cpu[way]) - plain
        rows.append(Row(length, way, seconds, cpu[way], *ratios, apart, nodes or None, parts or None))
    return found, rows


def forward(model: Model, prompts: list[list[int]]) -> None:
    """Run the model's own module on the prompts, all of one length."""
    with torch.inference_mode():
        model.module(input_ids=torch.tensor(prompts, device=model.device), use_cache=False, logits_to_keep=1)


def published(model: Model, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Work out all parts of a layer as one tensor `[target, source, head, d_model]`, prompt by prompt."""
    found = []
    with read(model, prompts) as reading:
        length = len(prompts[0])
        for row in range(len(prompts)):
            for layer in range(model.anatomy.layers):
                output, value = reading.output(layer), reading.values(layer)[row]
                pattern = reading.pattern(
                    layer, torch.arange(length, device=value.device)[None].expand(len(prompts), -1)
                )
                value = value.repeat_interleave(pattern.shape[2] // len(value), 0)
                written = torch.einsum("hjc,hcd->jhd", value, output.weight)
                parts = torch.einsum("ihj,jhd->ijhd", pattern[row], written)
                added = reading.added("attn.out", layer)[row]
                if output.gain is not None:
                    parts = parts * (added / parts.sum((1, 2)))[:, None, None]
                total = reading.stream(layer)[row] + added
                distance = (parts - total[:, None, None]).abs().sum(-1)
                proximity = (total.abs().sum(-1)[:, None, None] - distance).clamp_min(EPSILON)
                found.append(proximity / proximity.sum((1, 2), keepdim=True))
    return found


def error_of(found: dict[str, Routes]) -> float:
    """Return how far importances on the routes are from the full graph's; infinite where edges differ."""
    pairs = zip(found[ROUTES], found[FULL], strict=True)
    return max(_difference(_importances(route), _importances(whole)) for route, whole in pairs)


def _importances(route: Route) -> dict[tuple[str, str | None, str], float]:
    return {(edge.component, edge.source, edge.target): edge.importance for edge in route}


def _difference(route: dict, every: dict) -> float:
    targets = {edge[2] for edge in route}
    expected = {edge: share for edge, share in every.items() if edge[2] in targets}
    if route.keys() != expected.keys():
        return float("inf")
    return max(abs(share - expected[edge]) for edge, share in route.items())


def table(title: str, rows: Sequence[Row]) -> Table:
    """Lay all rows out."""
    headers = ("tokens", "way", "seconds", "× routes", "CPU seconds", "× routes", "apart", "nodes", "parts")
    out = make_table(title, headers, left=2)
    for row in rows:
        counts = ["" if count is None else f"{count:,}" for count in (row.nodes, row.parts)]
        times = spread(row.seconds), factor(row.ratio), spread(row.cpu), factor(row.cpu_ratio), f"{row.apart:.3g}"
        out.add_row(str(row.length), row.way, *times, *counts)
    return out


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gemma-270m")
    parser.add_argument("--real", action="store_true", help=f"real weights, of {', '.join(REAL)}")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.04)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "routes.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
