"""Time path patching: single tokens, whole rows, plain hooks; same weights, same pairs, equal numbers checked first.

    python bench/paths.py                                     # GPT-2 small and Gemma-3-270M shapes, a few minutes
    python bench/paths.py --shape llama-8b --device cuda --dtype bfloat16 --length 57 --cells 4

Senders are all heads, at the last token or at all of them together (`--at all`), receivers the logits, then the queries
of two heads. Plain hooks run a sample of the senders (`--cells`), one after the other, as the published code does: a
forward that holds all heads, and, for receivers inside the model, one more; the runs that they keep are made once and
not timed. A way whose numbers differ gets no ratio, and the exit status is 3.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from crosspatch import Effects, Paths, Site, path_patch
from crosspatch.engine.measure import allowed_error, in_turns
from crosspatch.models.blocks import block_list
from crosspatch.models.hooks import attach
from crosspatch.models.model import Model
from crosspatch.tasks import Task
from machine import describe
from shapes import SHAPES, TEXTS, Build, make_task, open_shape

LOCAL, ROWS, HOOKS = "single tokens", "whole rows", "plain hooks"


@dataclass(frozen=True)
class Row:
    """One way on one case: seconds of the whole job, how much longer than single tokens, the largest difference."""

    shape: str
    to: str
    way: str
    seconds: float
    ratio: float | None
    error: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write JSON."""
    given = _parse(arguments)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    rows: list[Row] = []
    for shape in given.shape:
        model = open_shape(Build(shape, given.device, given.dtype, given.seed))
        sizes = {"pairs": given.pairs, "length": given.length, "vocab": model.vocab_size, "seed": given.seed}
        task = make_task(given.texts, **sizes)
        for to in ("logits", receivers(model)):
            rows += measure(model, task, to, given)
    table = Table("shape", "receivers", "way", "seconds", "ratio", "difference")
    for row in rows:
        ratio = "differs" if row.ratio is None else f"{row.ratio:.1f}"
        table.add_row(row.shape, row.to, row.way, f"{row.seconds:.2f}", ratio, f"{row.error:.0e}")
    Console(width=120).print(table)
    document = {**describe(given), "settings": vars(given) | {"out": given.out.name}, "rows": [asdict(r) for r in rows]}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    print(f"written: {given.out}")
    if any(row.ratio is None for row in rows):
        sys.exit(3)


def receivers(model: Model) -> str:
    """Name the queries of two heads, two thirds up."""
    layer = 2 * model.anatomy.layers // 3
    return f"attn.q[{layer}, 0|1]@end"


def measure(model: Model, task: Task, to: str, given: argparse.Namespace) -> list[Row]:
    """Time the three ways in turns."""
    paths = [Paths(f"attn.head@{given.at}", to, local=local) for local in (True, False)]
    effects = path_patch(model, task, paths=paths[0])
    rng = np.random.default_rng(given.seed)
    some = [effects.sites[i] for i in rng.choice(len(effects.sites), given.cells, replace=False)]
    held = held_runs(model, task)
    ways: dict[str, Callable[[], Any]] = {
        LOCAL: lambda: path_patch(model, task, paths=paths[0]),
        ROWS: lambda: path_patch(model, task, paths=paths[1]),
        HOOKS: lambda: [by_hooks(model, task, sender, to, held) for sender in some],
    }
    errors = {LOCAL: 0.0, ROWS: error_of(effects, ways[ROWS]().raw, effects.sites)}
    errors[HOOKS] = error_of(effects, np.array(ways[HOOKS]()), some)
    spent = in_turns(ways, given.repeat, model.device)
    spent[HOOKS] = [seconds * len(effects.sites) / len(some) for seconds in spent[HOOKS]]
    allowed = allowed_error(model)
    found = []
    for way, seconds in spent.items():
        ratio = median(a / b for a, b in zip(seconds, spent[LOCAL], strict=True)) if errors[way] <= allowed else None
        found.append(Row(given_shape(model), to, way, median(seconds), ratio, errors[way]))
    return found


def given_shape(model: Model) -> str:
    """Name a model by its family and layers."""
    return f"{model.anatomy.family}, {model.anatomy.layers} layers"


def error_of(effects: Effects, values: np.ndarray, sites: Sequence[Any]) -> float:
    """Return the largest difference, relative to the largest effect, or to a hundredth of the gap if that is larger."""
    own = effects.only([effects.sites.index(site) for site in sites]).raw
    return float(np.abs(own - values).max() / max(np.abs(effects.raw).max(), 0.01 * np.abs(effects.gap).max()))


@dataclass(frozen=True)
class Held:
    """What plain hooks keep of the clean and corrupt runs, once for all senders: heads by layer, clean logits."""

    ids: Tensor
    clean: dict[int, Tensor]
    corrupt: dict[int, Tensor]
    base: Tensor


@torch.inference_mode()
def held_runs(model: Model, task: Task) -> Held:
    """Run the clean and the corrupt prompts, all in one batch of one length."""
    blocks, point = block_list(model.module, model.anatomy), model.anatomy.points["attn.head"]
    seen: list[dict[int, Tensor]] = [{}, {}]
    ids, logits = [], []
    for side, kept in zip(("clean", "corrupt"), seen, strict=True):
        ids.append(torch.tensor([getattr(pair, side) for pair in task.pairs], device=model.device))
        with hooked([(block, point, partial(_keep, kept, layer)) for layer, block in enumerate(blocks)]):
            logits.append(forward(model, ids[-1]))
    return Held(ids[0], *seen, logits[0])


@torch.inference_mode()
def by_hooks(model: Model, task: Task, sender: Site, to: str, held: Held) -> list[float]:
    """Path patching as published: hooks on the model's own forwards."""
    blocks, point = block_list(model.module, model.anatomy), model.anatomy.points["attn.head"]
    columns, at = point.columns(sender.unit), -1 if sender.position == "end" else slice(None)
    heads = {layer: value.clone() for layer, value in held.clean.items()}
    heads[sender.layer or 0][:, at, columns] = held.corrupt[sender.layer or 0][:, at, columns]
    holds = [(block, point, partial(_put, heads[layer])) for layer, block in enumerate(blocks)]
    layer, units = 2 * model.anatomy.layers // 3, (0, 1)
    queries, seen = model.anatomy.points["attn.q"], {}
    looks = [] if to == "logits" else [(blocks[layer], queries, partial(_keep, seen, layer))]
    with hooked([*holds, *looks]):
        logits = forward(model, held.ids)
    if to != "logits":
        chosen = [c for unit in units for c in range(queries.starts[unit], queries.starts[unit] + queries.width)]
        with hooked([(blocks[layer], queries, partial(_put_last, seen[layer], chosen))]):
            logits = forward(model, held.ids)
    rows = zip(logits, held.base, task.pairs, strict=True)
    return [difference(row, pair) - difference(own, pair) for row, own, pair in rows]


def forward(model: Model, ids: Tensor) -> Tensor:
    """Return the last position's logits."""
    return model.module(input_ids=ids, use_cache=False).logits[:, -1].float()


def difference(logits: Tensor, pair: Any) -> float:
    """Return the logit difference of one row."""
    right, wrong = ([answer[0] for answer in side] for side in (pair.right, pair.wrong))
    return float(logits[right].mean() - logits[wrong].mean())


@contextmanager
def hooked(points: Sequence[tuple[Any, Any, Callable[[Tensor], Tensor | None]]]) -> Iterator[None]:
    """Keep hooks for a while."""
    handles = [attach(*point) for point in points]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(into: dict[int, Tensor], layer: int, value: Tensor) -> None:
    into[layer] = value.clone()


def _put(value: Tensor, _: Tensor) -> Tensor:
    return value


def _put_last(value: Tensor, columns: Sequence[int], present: Tensor) -> Tensor:
    out = present.clone()
    out[:, -1, columns] = value[:, -1, columns]
    return out


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["gpt2-small", "gemma-270m"])
    parser.add_argument("--texts", choices=TEXTS, default="third")
    parser.add_argument("--at", choices=("end", "all"), default="end", help="position of the senders")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--length", type=int, default=30)
    parser.add_argument("--cells", type=int, default=6, help="senders that plain hooks run")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("bench/out/paths.json"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
