"""Time estimates in units of one plain forward and backward of the same prompts, and exact patching beside them.

    python bench/estimates.py                          # Gemma-3-270M, IOI (one late word differs) and capitals (early)
    python bench/estimates.py --shape tiny --pairs 2   # random weights of a shape of bench/shapes.py, in its own texts

The unit is the user's own module on the base prompts, `module(input_ids, logits_to_keep=1)`, and `backward` of the
summed logit difference with respect to the embeddings; weights ask for no gradient, which makes it the cheapest that
there is. All ways run in turns; a ratio is the median over repetitions. Memory is the peak beside the loaded model. AtP
is checked against change · gradient of that plain backward at the embedding; else the exit status is 3.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import crosspatch as xp
from crosspatch.engine.measure import in_turns
from crosspatch.models.model import Model
from crosspatch.tasks import Task
from machine import describe
from memory import MIB, peak_begin, peak_so_far
from shapes import SHAPES, Build, make_task, open_shape

UNIT, EXACT = "forward + backward", "exact patching"
SITES = "attn.q@*, attn.k@*, attn.v@*, attn.head@*, mlp.out@*, resid.pre@*"
WAYS: dict[str, dict] = {
    "AtP": {"by": "atp"},
    "AtP, checkpoint": {"by": "atp", "checkpoint": True},
    "AtP + QK fix": {"by": "atp-qk"},
    "AtP + GradDrop": {"by": "atp-drop"},
    "AtP*": {"by": "atp*"},
    "IG, 5 steps": {"by": "ig", "steps": 5},
    "RelP": {"by": "relp"},
}


@dataclass(frozen=True)
class Row:
    """One way on one task: median seconds, how many units they are, and the bytes at the peak beside the model."""

    task: str
    way: str
    seconds: float
    units: float
    peak: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write JSON."""
    given = _parse(arguments)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    rows: list[Row] = []
    model, tasks = _questions(given)
    errors = [error_of(model, task) for task in tasks]
    for task in tasks:
        rows += measure(model, task, given)
    document = {**describe(given), "rows": [asdict(row) for row in rows], "errors": errors}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1))
    Console(width=110).print(table(rows, model, given.pairs))
    if max(errors) > 1e-3:
        sys.exit(3)


def _questions(given: argparse.Namespace) -> tuple[Model, list[Task]]:
    if given.shape:
        model = open_shape(Build(given.shape, given.device, given.dtype, given.seed))
        sizes = {"pairs": given.pairs, "length": given.length, "vocab": model.vocab_size}
        return model, [make_task(texts, **sizes) for texts in ("one", "second")]
    model = xp.open_model(given.model, device=given.device, dtype=given.dtype)
    names = {"ioi": {"template": 0}, "capitals": {"template": 0}}
    return model, [xp.tasks.get_task(name, model, n=given.pairs, **how) for name, how in names.items()]


def measure(model: Model, task: Task, given: argparse.Namespace) -> list[Row]:
    """Time all ways in turns on one task."""
    ways: dict[str, Callable[[], object]] = {UNIT: partial(plain, model, task)}
    ways |= {name: partial(xp.attribute, model, task, sites=SITES, **how) for name, how in WAYS.items()}
    if given.exact:
        ways[EXACT] = partial(xp.patch, model, task, sites=SITES)
    peaks = {}
    for name, run in ways.items():
        run()  # whatever is made once
        before = peak_begin(given.device)
        run()
        peaks[name] = peak_so_far(given.device) - before
    spent = in_turns(ways, given.repeat, model.device)
    return [
        Row(
            task.name,
            name,
            median(seconds),
            median(a / b for a, b in zip(seconds, spent[UNIT], strict=True)),
            peaks[name],
        )
        for name, seconds in spent.items()
    ]


def plain(model: Model, task: Task) -> torch.Tensor:
    """Run the corrupt prompts, of one length at a time, and pull the logit difference back to the embeddings."""
    found = []
    asked = [weight for weight in model.module.parameters() if weight.requires_grad]
    for weight in asked:
        weight.requires_grad_(False)
    try:
        for length in sorted({len(pair.corrupt) for pair in task.pairs}):
            pairs = [pair for pair in task.pairs if len(pair.corrupt) == length]
            found += _backward(model, pairs)
    finally:
        for weight in asked:
            weight.requires_grad_(True)
    return torch.cat([each.flatten() for each in found])


def _backward(model: Model, pairs: Sequence) -> list[torch.Tensor]:
    ids = torch.tensor([pair.corrupt for pair in pairs], device=model.device)
    seen: list[torch.Tensor] = []

    def keep(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[0]

    handle = model.module.get_submodule(model.anatomy.embedding).register_forward_hook(keep)
    try:
        logits = model.module(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    finally:
        handle.remove()
    sides = [[[answer[0] for answer in getattr(pair, side)] for pair in pairs] for side in ("right", "wrong")]
    means = [[row[answers].mean() for row, answers in zip(logits, each, strict=True)] for each in sides]
    score = torch.stack(means[0]).sum() - torch.stack(means[1]).sum()
    return list(torch.autograd.grad(score, seen)[0])


def error_of(model: Model, task: Task) -> float:
    """Compare AtP at the embedding with change · gradient of the plain backward, relative to the largest."""
    found = xp.attribute(model, task, sites="embed@all").raw[0]
    slopes = plain(model, task)
    embed = model.module.get_submodule(model.anatomy.embedding)
    expected, first = np.zeros(len(task.pairs)), 0
    order = sorted(range(len(task.pairs)), key=lambda i: len(task.pairs[i].corrupt))
    with torch.no_grad():
        for i in order:
            pair = task.pairs[i]
            clean, corrupt = (embed(torch.tensor(ids, device=model.device)) for ids in (pair.clean, pair.corrupt))
            change = (clean - corrupt).flatten()
            expected[i] = float((change * slopes[first : first + len(change)]).sum())
            first += len(change)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def table(rows: Sequence[Row], model: Model, pairs: int) -> Table:
    """Lay the rows out."""
    out = Table(title=f"{model.name}, {pairs} pairs: estimates of {SITES}")
    for name in ("task", "way", "seconds", "× forward + backward", "peak beside the model"):
        out.add_column(name, justify="left" if name in ("task", "way") else "right")
    for row in rows:
        out.add_row(row.task, row.way, f"{row.seconds:.2f}", f"{row.units:.2f}", f"{row.peak / MIB:,.0f} MiB")
    return out


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape, in place of --model")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--length", type=int, default=15, help="tokens of a prompt, for --shape")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-exact", dest="exact", action="store_false", help="leave exact patching out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "estimates.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
