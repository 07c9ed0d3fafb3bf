"""Circuits beside other libraries: scores of all edges, a masked forward, the faithfulness of one circuit.

    python bench/circuits.py                    # GPT-2-small shape, 8 pairs of 15 tokens, about 1,000 edges
    python bench/circuits.py --quick --no-own   # a tiny GPT-2, peers only

Each peer runs in an environment of its own (bench/envs, made on the first run from bench/requirements-*.txt), on the
same weights (random), prompts and answers. All numbers are compared with plain torch in double precision first
(bench/edges.py): a peer that differs gets no ratio, one that fails is listed with its error. Jobs:

- eap: edge attribution patching of all edges;
- masked: the logits of a circuit, other edges carrying what the corrupt run writes, which is run, too;
- masked again: the same with the corrupt run kept;
- faithfulness: the peer's own call, or its idiom, for the share of the metric that the circuit keeps.

Units are plain forwards of the same batch: the peer's own model as it is, and the transformers module in the same
process; "cpu" counts the process's own work alone, which other work on the machine disturbs less than the clock on the
wall. Peers take and give back hundreds of MiB a pass, and where the system's allocator hands each back to the kernel,
that is half of their time: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 before the command keeps it, here and
in their processes alike. TransformerLens takes one pair at a time and scores edges at each position; it is timed once.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits_child import CLOCKS, turns
from crosspatch.circuits.circuit import prune, top_edges
from crosspatch.circuits.graph import Graph
from crosspatch.engine.measure import ratio
from crosspatch.models.model import Model
from crosspatch.tasks import Task
from edges import ByHand, Edges
from machine import describe
from peers import python
from shapes import SHAPES, TEXTS, Build, make_task, open_shape
from tables import factor, spread

HERE = Path(__file__).resolve().parent
PEERS = {"auto-circuit": "auto-circuit", "circuitkit": "circuitkit", "transformer-lens": "peers"}  # to environments
SINGLE = ("transformer-lens",)  # peers that take one pair at a time
GPT2 = [name for name, shape in SHAPES.items() if shape.family == "gpt2"]
Spent = Mapping[str, Mapping[str, Sequence[float]]]  # seconds of each repetition, by way and clock
JOBS = ("eap", "masked", "masked again", "faithfulness")
PLAIN = "plain"
# Largest difference of numbers that count as equal: relative to the largest score of edges to the same kind of
# receiver, to the largest change of a logit, and of a share.
SAME = {"eap": 1e-3, "masked": 1e-3, "masked again": 1e-3, "faithfulness": 1e-3}


@dataclass(frozen=True)
class Question:
    """Pairs, a circuit `[receiver, sender]`, and what plain torch says of them.

    `logits` are those of the masked run; `metrics` are right − wrong `[pair]` of the circuit, the clean and the corrupt
    run; `reach` is the largest change of a logit that the masks make.
    """

    texts: str
    task: Task
    edges: Edges
    kept: np.ndarray
    scores: np.ndarray
    logits: np.ndarray
    metrics: tuple[np.ndarray, np.ndarray, np.ndarray]
    reach: float

    @property
    def recovered(self) -> float:
        """The share of the gap between the corrupt and the clean run that the circuit closes, of means over pairs."""
        circuit, clean, corrupt = (float(side.mean()) for side in self.metrics)
        return (circuit - corrupt) / (clean - corrupt)

    @property
    def share(self) -> float:
        """The circuit's metric over the clean run's, of means over pairs: auto-circuit's faithfulness."""
        return float(self.metrics[0].mean() / self.metrics[1].mean())


def question(hand: ByHand, task: Task, texts: str, *, size: int = 0, kept: np.ndarray | None = None) -> Question:
    """Work a task out in plain torch; without a circuit, take `size` edges by their scores, less those on no path."""
    clean, corrupt = (ids(task, side) for side in ("clean", "corrupt"))
    scores = hand.scores(clean, corrupt, partial(metric, task))
    if kept is None:
        graph = Graph(hand.edges.layers, hand.edges.heads, hand.edges.heads)
        kept = prune(graph, top_edges(graph, scores[None], size, absolute=True))[0]
    sides = [hand.masked(clean, corrupt, kept), hand.logits(clean), hand.logits(corrupt)]
    metrics = tuple(metric(task, logits).numpy() for logits in sides)
    reach = float((sides[0] - sides[1]).abs().max())
    return Question(texts, task, hand.edges, kept, scores, sides[0].numpy(), metrics, reach)


def ids(task: Task, side: str) -> Tensor:
    """Return the prompts of one side `[pair, pos]`."""
    return torch.tensor([getattr(pair, side) for pair in task.pairs])


def answers(task: Task, side: str) -> list[int]:
    """Return each pair's right or wrong token."""
    return [getattr(pair, side)[0][0] for pair in task.pairs]


def metric(task: Task, logits: Tensor) -> Tensor:
    """Return right − wrong `[pair]` of the last position's logits `[pair, vocab]`."""
    rows = torch.arange(len(task.pairs))
    return logits[rows, answers(task, "right")] - logits[rows, answers(task, "wrong")]


def ours_eap(model: Model, asked: Question) -> np.ndarray:
    """Score all edges here `[receiver, sender]`: (corrupt − clean) · gradient at clean, summed over pairs."""
    from crosspatch.circuits import find

    circuit = find(model, asked.task, by="eap")
    told, scores = circuit.settings["settings"], circuit.scores
    assert scores is not None
    # What is found are mean losses, positive where the metric moves towards the corrupt run.
    return -np.sign(told["clean"] - told["corrupt"]) * len(asked.task.pairs) * scores[0]


@contextmanager
def opened(model: Model, asked: Question) -> Iterator[Callable[[], np.ndarray]]:
    """Run the clean and the corrupt prompts, and give what runs the circuit: the last position's logits."""
    from crosspatch.circuits import graph_of
    from crosspatch.circuits.opening import edge_sweep
    from crosspatch.circuits.variants import Variants

    sweep = edge_sweep(model, asked.task, graph_of(model), ["kl"])  # a metric that reads the whole vocabulary
    with sweep.machine(range(len(asked.task.pairs))) as machine:
        right = machine.local.targets.right[:, 0]

        def run() -> np.ndarray:
            final = Variants.of(machine, machine.clean, asked.kept[None, None]).run()[0, :, 0]
            logits = machine.scorer.logits(final, right)[0]
            assert logits is not None
            return logits.numpy()

        yield run


def ours_masked(model: Model, asked: Question) -> np.ndarray:
    """Return the last position's logits `[pair, vocab]` of the circuit here, both plain runs included."""
    with opened(model, asked) as run:
        return run()


def ours_faithfulness(model: Model, asked: Question) -> float:
    """Return the share of the gap that the circuit closes here."""
    from crosspatch.circuits import Circuit, graph_of, measure_circuits

    circuit = Circuit(graph_of(model), asked.kept[None])
    found = measure_circuits([circuit], model, asked.task)
    none = found.empty[0].mean()
    return float((found.values[0, 0].mean() - none) / (found.full[0].mean() - none))


OURS: dict[str, Callable[[Model, Question], Any]] = {
    "eap": ours_eap,
    "masked": ours_masked,
    "faithfulness": ours_faithfulness,
}


def own(model: Model, asked: Question, repeat: int) -> list[dict[str, Any]]:
    """Run the jobs here, in turns with plain forwards; then the circuit again on runs that are kept."""
    runs = {job: partial(run, model, asked) for job, run in OURS.items()}
    found = {job: run() for job, run in runs.items()}  # which warms up, too
    spent = turns({PLAIN: partial(plain, model, ids(asked.task, "clean")), **runs}, repeat)
    with opened(model, asked) as again:
        found["masked again"] = again()
        spent |= turns({"masked again": again}, repeat)
    return [row("crosspatch", asked, job, error_of(asked, job, found[job]), spent) for job in JOBS]


@torch.no_grad()
def plain(model: Model, prompts: Tensor) -> Tensor:
    """Run the transformers module as it is."""
    return model.module(prompts, use_cache=False).logits


def error_of(asked: Question, job: str, found: Any, expected: float | None = None) -> float:
    """Return how far numbers are from plain torch's, as `SAME` measures it."""
    if job == "faithfulness":
        expected = asked.recovered if expected is None else expected
        return abs(found - expected) / max(1.0, abs(expected))
    if job != "eap":
        return float(np.abs(np.asarray(found) - asked.logits).max()) / asked.reach
    return float(np.max(list(errors_by_kind(asked, found).values())))


def errors_by_kind(asked: Question, found: np.ndarray) -> dict[str, float]:
    """Return the largest difference of scores by kind of receiver, relative to the kind's largest score."""
    kinds = np.array([kind_of(name) for name in asked.edges.receivers])
    errors = {}
    for kind in dict.fromkeys(kinds.tolist()):
        there = asked.edges.allowed & (kinds == kind)[:, None]
        errors[kind] = float(np.abs(found - asked.scores)[there].max() / np.abs(asked.scores[there]).max())
    return errors


def kind_of(receiver: str) -> str:
    """Return "q", "k", "v", "m" or "logits"."""
    return receiver[-2] if receiver.endswith(">") else receiver.rstrip("0123456789")


def request(peer: str, folder: Path, asked: Sequence[Question], given: argparse.Namespace) -> dict[str, Any]:
    """Say to a peer's script what to run."""
    cases = [
        {side: ids(one.task, side).tolist() for side in ("clean", "corrupt")}
        | {side: answers(one.task, side) for side in ("right", "wrong")}
        | {"circuit": one.edges.names(one.kept)}
        for one in asked
    ]
    how = {"repeat": given.repeat, "threads": given.threads}
    return {"peer": peer, "folder": str(folder), "cases": cases, **how}


def run_peer(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one peer in a child process, and return its answer.

    Raises:
        RuntimeError: the peer failed, or its environment could not be made.
    """
    asked, answer = folder / "request.json", folder / "answer.json"
    asked.write_text(json.dumps(content), encoding="utf-8")
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
    around = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    around |= quiet | {"OMP_NUM_THREADS": str(content["threads"])}
    try:
        binary = python(PEERS[content["peer"]])
    except subprocess.CalledProcessError as failure:
        raise RuntimeError(f"its environment could not be made: {failure}") from failure
    command = [str(binary), str(HERE / "circuits_child.py"), str(asked), str(answer)]
    done = subprocess.run(command, env=around, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-3000:])
    return json.loads(answer.read_text(encoding="utf-8"))


def rows_of(peer: str, asked: Question, told: dict[str, Any], arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compare a peer's numbers and describe its jobs."""
    found = {"eap": asked.edges.array(arrays["edges"].tolist(), arrays["scores"]), "faithfulness": told["recovered"]}
    found |= {job: arrays[job] for job in ("masked", "masked again") if job in arrays}
    share = asked.share if peer == "auto-circuit" else None
    return [
        row(peer, asked, job, error_of(asked, job, found[job], share), told["spent"])
        | {"forwards": told["forwards"][job]}
        for job in JOBS
        if job in told["forwards"]
    ]


def row(peer: str, asked: Question, job: str, error: float, spent: Spent) -> dict[str, Any]:
    """Describe one job: seconds, and how many plain forwards they are; numbers that differ get no units."""
    where = {"peer": peer, "texts": asked.texts, "pairs": len(asked.task.pairs), "edges": int(asked.kept.sum())}
    same = error <= SAME[job]
    units = {
        unit: {clock: per(spent[job][clock], spent[unit][clock]) for clock in CLOCKS}
        for unit in ("forward", PLAIN)
        if unit in spent and same
    }
    return where | {"job": job, "difference": error, "same": same, "seconds": spent[job], "units": units}


def per(seconds: Sequence[float], unit: Sequence[float]) -> float:
    """Return how many units a way takes, of the same repetition where both have one."""
    return ratio(seconds, unit) if len(seconds) == len(unit) else median(seconds) / median(unit)


def compared(peer: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add ratios to the same job here: of seconds, and of plain forwards of the same module in each process."""
    here = {(one["texts"], one["pairs"], one["job"]): one for one in ours if one["same"]}
    found = []
    for one in peer:
        own_one = here.get((one["texts"], one["pairs"], one["job"]))
        direct = chained = None
        if own_one and one["same"]:
            direct = median(one["seconds"]["wall"]) / median(own_one["seconds"]["wall"])
            chained = {clock: one["units"][PLAIN][clock] / own_one["units"][PLAIN][clock] for clock in CLOCKS}
        found.append(one | {"direct": direct, "chained": chained})
    return found


def line(row: Mapping[str, Any]) -> str:
    """Write a row for the terminal."""
    name = " ".join(filter(None, (row["peer"], row.get("version"))))
    where = f"{name}, {row['texts']}, {row['pairs']} pairs, {row['job']}"
    if not row["same"]:
        return f"{where}: other numbers (difference {row['difference']:.1e})"
    names = {"forward": "of its own forwards", PLAIN: "plain forwards"}
    told = [f"{spread(row['seconds']['wall'])} s"]
    told += [f"{each['wall']:.3g} {names[unit]} (cpu {each['cpu']:.3g})" for unit, each in row["units"].items()]
    if row.get("forwards"):
        told.append(f"{row['forwards']} made")
    if row.get("direct") is not None:
        wall, cpu = (factor(row["chained"][clock]) for clock in CLOCKS)
        told.append(f"{factor(row['direct'])} ours (chained {wall}, cpu {cpu})")
    return f"{where}: {', '.join(told)}, difference {row['difference']:.0e}"


def questions(model: Model, given: argparse.Namespace) -> tuple[list[Question], list[Question]]:
    """Make the tasks, with all pairs and with the first alone, and a circuit for each kind of texts."""
    hand, many, single = ByHand(model.module), [], []
    for texts in given.texts:
        sizes = {"length": given.length, "vocab": model.vocab_size}
        many.append(question(hand, make_task(texts, pairs=given.pairs, **sizes), texts, size=given.edges))
        first = make_task(texts, pairs=1, **sizes)
        first = replace(first, pairs=many[-1].task.pairs[:1])
        single.append(question(hand, first, texts, kept=many[-1].kept))
    error = max(float(np.abs(hand_error(model, hand, one)).max()) for one in many)
    print(f"plain torch: logits off by {error:.0e}; edges {[int(one.kept.sum()) for one in many]}", flush=True)
    return many, single


def hand_error(model: Model, hand: ByHand, asked: Question) -> np.ndarray:
    """Compare the logits that are written out with the module's."""
    clean = ids(asked.task, "clean")
    return (plain(model, clean)[:, -1] - hand.logits(clean)).numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the jobs here and on each peer, print a line each and write everything down."""
    given = _parse(arguments)
    torch.set_num_threads(given.threads)
    model = open_shape(Build(given.shape))
    many, single = questions(model, given)
    ours = (
        [each for asked in (many, single) for one in asked for each in own(model, one, given.repeat)]
        if given.own
        else []
    )
    found = list(ours)
    for each in ours:
        print(line(each), flush=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        model.module.config.n_ctx = model.module.config.n_positions  # as GPT-2's own file has it, and circuitkit reads
        model.module.save_pretrained(folder)
        for peer in given.peer:
            asked = single if peer in SINGLE else many
            try:
                told = run_peer(request(peer, folder, asked, given), folder)
            except RuntimeError as failure:
                found.append({"peer": peer, "failed": str(failure).splitlines()[-1]})
                print(f"{peer}: {found[-1]['failed']}", flush=True)
                continue
            for one, case in zip(asked, told["cases"], strict=True):
                rows = compared(rows_of(peer, one, case, np.load(folder / case["file"])), ours)
                more = {"version": told["versions"][peer], "versions": told["versions"], "loading": told["loading"]}
                found += [each | more for each in rows]
                for each in rows:
                    print(line(each | more), flush=True)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    allocator = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    document = {**describe(given), "allocator": allocator, "rows": found}
    given.json.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=GPT2, default="gpt2-small")
    parser.add_argument("--peer", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=["second", "one"], help="where prompts differ")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--length", type=int, default=15)
    parser.add_argument("--edges", type=int, default=1000, help="of the circuit, before those on no path are dropped")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-own", dest="own", action="store_false", help="run peers only")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to see that everything runs")
    parser.add_argument("--json", type=Path, default=HERE / "out" / "circuits.json")
    given = parser.parse_args(arguments)
    given.device, given.seed = "cpu", 0
    if given.quick:
        given.shape, given.pairs, given.length, given.edges, given.repeat = "gpt2-tiny", 2, 7, 80, 1
    return given


if __name__ == "__main__":
    main()
