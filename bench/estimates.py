"""Time estimates in units of one plain forward and backward of the same prompts, and exact patching beside them.

    python bench/estimates.py                          # Gemma-3-270M, IOI with a late word replaced, then early ones
    python bench/estimates.py --shape tiny --pairs 2   # random weights of a shape of bench/shapes.py, in its own texts

The unit is the user's own module on the base prompts, `module(inputs_embeds=…, logits_to_keep=1)`, and the gradient of
the summed logit difference with respect to the embeddings; weights ask for none, the cheapest that there is. The second
row is the same with gradients of all weights, which `loss.backward()` takes by default. Prompts of several lengths are
one call a length, which makes the unit dearer: the tasks that run by default have one. Ways run in turns; a ratio is
the median over repetitions. Exact patching runs once (`--no-exact`: never), between two units of its own. Memory is the
peak beside what the process held before, in a run that is not timed. AtP at the embedding is checked
against change · gradient of the unit; beyond a thousandth of the largest, the exit status is 3.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import crosspatch as xp
from crosspatch.engine.measure import in_turns, ratio, seconds_of
from crosspatch.models.model import Model
from crosspatch.tasks import Task
from machine import describe
from memory import MIB, peak_begin, peak_so_far
from shapes import SHAPES, Build, make_task, open_shape
from tables import make_table, spread

UNIT, WEIGHTS, EXACT = "forward + backward", "the same, weights too", "exact patching"
SITES = "attn.q@*, attn.k@*, attn.v@*, attn.head@*, mlp.out@*, resid.pre@*"
WAYS: dict[str, dict] = {
    "AtP": {"by": "atp"},
    "AtP, checkpoint": {"by": "atp", "checkpoint": True},
    "AtP + QK fix": {"by": "atp-qk"},
    "AtP + GradDrop": {"by": "atp-drop"},
    "AtP*": {"by": "atp*"},
    "IG, 5 steps": {"by": "ig", "steps": 5},
    "RelP ln": {"by": "relp", "preset": "ln"},
    "RelP relp": {"by": "relp", "preset": "relp"},
}
TASKS = {
    "ioi": ("ioi", {"template": 0}),  # the second subject is replaced: position 10 of 15
    "ioi-early": ("ioi", {"template": 0, "corrupt": "S1+IO"}),  # both first names: from position 2 of 15 on
    "capitals": ("capitals", {"template": 0}),  # the first word, in prompts of three lengths
}
TEXTS = ("one", "second")  # the same for random prompts
SAME = 1e-3


@dataclass(frozen=True)
class Row:
    """One way on one task: seconds in each repetition, how many units they are, bytes at the peak beside the rest."""

    task: str
    way: str
    seconds: list[float]
    units: float
    peak: int | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables and write JSON."""
    given = _parse(arguments)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    model, tasks = questions(given)
    rows: list[Row] = []
    errors = {name: error_of(model, task) for name, task in tasks.items()}
    for name, task in tasks.items():
        rows += measure(model, task, name, given)
        Console(width=110).print(table(f"{model.name}, {name}, {given.pairs} pairs", rows, name))
    settings = vars(given) | {"out": given.out.name}
    document = {**describe(given), "settings": settings, "rows": [asdict(row) for row in rows], "errors": errors}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    told = document["machine"]
    print(f"{told['threads']} threads, load {told['load']:.1f} at the end; AtP off by {max(errors.values()):.0e}")
    print(f"written: {given.out}")
    if not all(error <= SAME for error in errors.values()):
        sys.exit(3)


def questions(given: argparse.Namespace) -> tuple[Model, dict[str, Task]]:
    """Open the model and make the tasks."""
    if given.shape:
        model = open_shape(Build(given.shape, given.device, given.dtype, given.seed))
        sizes = {"pairs": given.pairs, "length": given.length, "vocab": model.vocab_size}
        return model, {texts: make_task(texts, **sizes) for texts in TEXTS}
    model = xp.open_model(given.model, device=given.device, dtype=given.dtype)
    return model, {
        name: xp.tasks.get_task(TASKS[name][0], model, n=given.pairs, **TASKS[name][1]) for name in given.task
    }


def measure(model: Model, task: Task, name: str, given: argparse.Namespace) -> list[Row]:
    """Time all ways in turns on one task, then exact patching once."""
    unit = partial(plain, model, task)
    ways: dict[str, Callable[[], object]] = {UNIT: unit, WEIGHTS: partial(plain, model, task, weights=True)}
    ways |= {way: partial(xp.attribute, model, task, sites=SITES, **how) for way, how in WAYS.items()}
    for run in ways.values():
        run()  # whatever is made once
    peaks = {way: peak_of(run, given.device) if given.memory else None for way, run in ways.items()}
    spent = in_turns(ways, given.repeat, model.device)
    rows = [Row(name, way, seconds, ratio(seconds, spent[UNIT]), peaks[way]) for way, seconds in spent.items()]
    if not given.exact:
        return rows
    exact = partial(xp.patch, model, task, sites=SITES)
    around, seconds = [seconds_of(unit, model.device)], []
    timed = lambda: seconds.append(seconds_of(exact, model.device))  # noqa: E731
    peak = peak_of(timed, given.device) if given.memory else timed()
    around.append(seconds_of(unit, model.device))
    return [*rows, Row(name, EXACT, seconds, seconds[0] / (sum(around) / 2), peak)]


def peak_of(run: Callable[[], object], device: str) -> int:
    """Run, and return the bytes at the peak beside what was held before."""
    before = peak_begin(device)
    run()
    return peak_so_far(device) - before


def plain(model: Model, task: Task, *, weights: bool = False) -> list[Tensor]:
    """Run the corrupt prompts, those of one length together, and return each pair's gradient `[pos, d_model]`."""
    found: dict[int, Tensor] = {}
    with asking(model, weights=weights):
        for length in sorted({len(pair.corrupt) for pair in task.pairs}):
            numbers = [i for i, pair in enumerate(task.pairs) if len(pair.corrupt) == length]
            found |= zip(numbers, slopes(model, [task.pairs[i] for i in numbers]), strict=True)
    return [found[i] for i in range(len(found))]


@contextmanager
def asking(model: Model, *, weights: bool) -> Iterator[None]:
    """Let all weights ask for a gradient, or none, for a while; give gradients back."""
    before = [(weight, weight.requires_grad) for weight in model.module.parameters()]
    try:
        for weight, _ in before:
            weight.requires_grad_(weights)
        yield
    finally:
        for weight, asked in before:
            weight.requires_grad_(asked).grad = None


def slopes(model: Model, pairs: Sequence) -> Tensor:
    """Return the gradient of the summed logit difference `[pair, pos, d_model]` at the embeddings of one batch."""
    embeds = embedded(model, [pair.corrupt for pair in pairs]).requires_grad_()
    logits = model.module(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits[:, -1]
    score = logits.new_zeros(())
    for row, pair in zip(logits, pairs, strict=True):
        right, wrong = ([answer[0] for answer in side] for side in (pair.right, pair.wrong))
        score = score + row[right].mean() - row[wrong].mean()
    score.backward()
    if embeds.grad is None:
        raise RuntimeError("the module does not pass gradients to inputs_embeds")
    return embeds.grad


@torch.no_grad()
def embedded(model: Model, ids: Sequence[Sequence[int]]) -> Tensor:
    """Return what enters the first block `[pair, pos, d_model]`, before positions are added."""
    return model.module.get_submodule(model.anatomy.embedding)(torch.tensor(ids, device=model.device)).detach()


def error_of(model: Model, task: Task) -> float:
    """Compare AtP at the embedding with change · gradient of the unit, relative to the largest."""
    found = xp.attribute(model, task, sites="embed@all").raw[0]
    changes = [embedded(model, [pair.clean])[0] - embedded(model, [pair.corrupt])[0] for pair in task.pairs]
    expected = np.array([float((a * b).sum()) for a, b in zip(changes, plain(model, task), strict=True)])
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def table(title: str, rows: Sequence[Row], task: str) -> Table:
    """Lay one task's rows out."""
    out = make_table(title, ("way", "seconds", "× forward + backward", "peak beside the rest"), left=1)
    for row in rows:
        if row.task == task:
            peak = "" if row.peak is None else f"{row.peak / MIB:,.0f} MiB"
            out.add_row(row.way, spread(row.seconds), f"{row.units:.2f}", peak)
    return out


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape, in place of --model and --task")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=["ioi", "ioi-early"])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--length", type=int, default=15, help="tokens of a prompt, for --shape")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-exact", dest="exact", action="store_false", help="leave exact patching out")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="measure no peaks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "estimates.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
