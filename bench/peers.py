"""The same sweeps on other libraries: their environment, the weights and prompts they get, and what comes back.

python bench/peers.py [--shape gpt2-small] [--peer NAME …] [--job resid heads atp] [--repeat 3] [--json FILE]

Equal numbers are checked first; a peer whose numbers differ gets no ratio, one that fails is listed with its error.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import crosspatch
from crosspatch.engine.effects import Effects
from crosspatch.engine.measure import Row, compare, error_of, ratio, sample
from crosspatch.models.model import Model
from crosspatch.sites import Site
from crosspatch.tasks import Task
from machine import describe
from shapes import SHAPES, TEXTS, Build, make_task, open_shape

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / "envs"
PEERS = ("transformer-lens", "nnsight", "pyvene")


@dataclass(frozen=True)
class PeerCase:
    """A sweep that a peer repeats on a sample of sites, and the one-pass effects that it must reproduce."""

    task: Task
    effects: Effects
    sites: Sequence[Site]


@dataclass(frozen=True)
class PeerRow:
    """A peer's seconds for the whole sweep (extrapolated: cost a site × sites) and the ratios to the one-pass sweep.

    `plain_ratio` is the peer over plain hooks inside its own process. Chained with plain hooks over one pass inside the
    parent, it is free of what differs between two processes at two moments, as the direct ratio is not.
    """

    peer: str
    seconds: tuple[float, ...]
    timed: int
    error: float
    plain_error: float
    plain_ratio: float


@dataclass(frozen=True)
class PathCase:
    """A path-patching job: edges from all heads below to one head's query, here in `seconds`, on a peer by a sample."""

    case: PeerCase
    receiver: tuple[int, int]
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class EstimateCase:
    """Attribution patching of `selection`: the numbers that a peer must find."""

    case: PeerCase
    selection: str


def python(name: str = "peers") -> Path:
    """Return the peers' own python, after making their environment if it is missing or out of date.

    The environment `name` has what requirements-`name`.txt lists.
    """
    environment, requirements = ENVIRONMENTS / name, HERE / f"requirements-{name}.txt"
    binary, stamp = environment / "bin" / "python", environment / "installed.txt"
    wanted = requirements.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return binary
    print(f"installing {name} into {environment.relative_to(HERE.parent)} (minutes, once) …", flush=True)
    venv.create(environment, with_pip=True)
    # Torch goes first, so that no peer's own requirement picks another build of it.
    torch = next(line for line in wanted.splitlines() if line.startswith("torch=="))
    for what in ([torch], ["-r", str(requirements)]):
        subprocess.run([str(binary), "-m", "pip", "install", "--quiet", *what], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return binary


def save(model: Model, folder: Path) -> None:
    """Write the weights (safetensors) and a stand-in tokenizer, without which TransformerLens opens no folder."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model.module.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="<end>"))
    names = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<end>")
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)


def run_peer(
    peer: str,
    folder: Path,
    cases: Sequence[PeerCase],
    *,
    repeat: int,
    threads: int,
    paths: "PathCase | None" = None,
    estimates: "EstimateCase | None" = None,
) -> dict[str, Any]:
    """Run one peer on all cases of one model in a child process, and return its answer."""
    request, answer = folder / "request.json", folder / "answer.json"
    listed = [_described(case) for case in cases]
    content = {"peer": peer, "folder": str(folder), "cases": listed, "repeat": repeat, "threads": threads}
    content["estimates"] = _described(estimates.case) | {"selection": estimates.selection} if estimates else None
    content["paths"] = _described(paths.case) | {"receiver": paths.receiver} if paths else None
    request.write_text(json.dumps(content), encoding="utf-8")
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
    here = {"PYTHONPATH": str(HERE.parent / "src"), "OMP_NUM_THREADS": str(threads)}
    command = [str(python()), str(HERE / "peer_child.py"), str(request), str(answer)]
    done = subprocess.run(command, env=os.environ | quiet | here, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{peer} failed:\n{done.stderr[-3000:]}")
    return json.loads(answer.read_text(encoding="utf-8"))


def _described(case: PeerCase) -> dict[str, Any]:
    pairs = case.task.pairs
    return {
        "clean": [pair.clean for pair in pairs],
        "corrupt": [pair.corrupt for pair in pairs],
        "right": [pair.right[0][0] for pair in pairs],
        "wrong": [pair.wrong[0][0] for pair in pairs],
        "sites": [(site.kind, site.layer, site.unit, site.position) for site in case.sites],
        "own": max(2, len(case.sites) // 3),
    }


def peer_row(peer: str, case: PeerCase, result: dict[str, Any]) -> PeerRow:
    """Compare a peer's numbers with the sweep's, and extrapolate its seconds."""
    own = len(result["plain_values"])
    cost = [spent / len(case.sites) for spent in result["seconds"]]
    plain = [spent / own for spent in result["plain_seconds"]]
    return PeerRow(
        peer=peer,
        seconds=tuple(each * len(case.effects.sites) for each in cost),
        timed=len(case.sites),
        error=error_of(np.array(result["values"]), case.sites, case.effects),
        plain_error=error_of(np.array(result["plain_values"]), case.sites[:own], case.effects),
        plain_ratio=ratio(cost, plain),
    )


def ratios(row: PeerRow, own: Sequence[Row]) -> tuple[float | None, float | None]:
    """Return the peer's seconds over the one-pass sweep's, direct and chained; None where numbers differ.

    `own` are the rows of one pass, one forward a site and so on, from this process.
    """
    one_pass, plain = own[0], own[1]
    if not np.max([row.error, row.plain_error]) <= one_pass.allowed or plain.ratio is None:
        return None, None
    return median(row.seconds) / median(one_pass.seconds), row.plain_ratio * plain.ratio


# Edges to queries of random weights move next to nothing, so numbers are compared to a hundredth of the gap at least.
SAME_PATHS, FAINT = 1e-3, 0.01
JOBS = {"resid": "resid.pre", "heads": "attn.head"}
ATP, ESTIMATED = "atp", ("resid.pre", "attn.out", "mlp.out", "attn.head")


def main() -> None:
    """Run the jobs on each peer, print a line each and write everything down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-small")
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--job", nargs="+", choices=[*JOBS, ATP], default=[*JOBS, ATP])
    parser.add_argument("--texts", choices=TEXTS, default="second", help="where prompts differ")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--length", type=int, default=15)
    parser.add_argument("--cells", type=int, default=3, help="sites that are timed; all cost alike")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=HERE / "out" / "peers.json")
    given = parser.parse_args()
    given.device, given.seed = "cpu", 0
    model = open_shape(Build(given.shape))
    cases, own = prepared(model, given)
    paths = path_case(model, given) if given.pairs == 1 else None
    estimates = estimate_case(model, given) if ATP in given.job else None
    found: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        save(model, Path(folder))
        for peer in given.peer:
            try:
                how = {"repeat": given.repeat, "threads": given.threads, "paths": paths, "estimates": estimates}
                answer = run_peer(peer, Path(folder), cases, **how)
            except SystemExit as failure:
                found.append({"peer": peer, "failed": str(failure).strip().splitlines()[-1]})
                print(f"{peer}: {found[-1]['failed']}", flush=True)
                continue
            for job, case, rows, result in zip(sweeps(given), cases, own, answer["cases"], strict=True):
                measured = told(peer_row(peer, case, result), rows, answer["versions"][peer])
                found.append({"peer": peer, "job": job, **measured})
                print(line(found[-1]), flush=True)
            if paths is not None and answer["paths"] is not None:
                found.append({"peer": peer, "job": "paths", **edges_told(paths, answer, answer["versions"][peer])})
                print(line(found[-1]), flush=True)
            if estimates is not None and answer["estimates"] is not None:
                for row in estimates_told(estimates, answer["estimates"], answer["versions"][peer]):
                    found.append({"peer": peer, **row})
                    print(line(found[-1]), flush=True)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(describe(given) | {"rows": found}, indent=1), encoding="utf-8")


def sweeps(given: argparse.Namespace) -> list[str]:
    """Return the jobs that patch exactly."""
    return [job for job in given.job if job in JOBS]


def prepared(model: Model, given: argparse.Namespace) -> tuple[list[PeerCase], list[list[Row]]]:
    """Run the jobs here: what peers must reproduce, and this repository's own ways in turns."""
    task = make_task(given.texts, pairs=given.pairs, length=given.length, vocab=model.vocab_size)
    cases, own = [], []
    for job in sweeps(given):
        effects = crosspatch.patch(model, task, sites=JOBS[job])
        cases.append(PeerCase(task, effects, sample(effects, given.cells, given.seed)))
        own.append(list(compare(model, task, sites=JOBS[job], cells=given.cells, repeat=given.repeat, seed=given.seed)))
    return cases, own


def path_case(model: Model, given: argparse.Namespace) -> PathCase:
    """Patch the edges from every head below the last block to the query of its first head, and sample senders.

    Senders in the block before the last have the fewest other receivers that a peer may run beside.
    """
    task = make_task(given.texts, pairs=1, length=given.length, vocab=model.vocab_size)
    last = model.anatomy.layers - 1
    ask = crosspatch.Paths(f"attn.head[0:{last}]", f"attn.q[{last}, 0]", "denoise", "nothing")
    spent = []
    for _ in range(given.repeat + 1):  # the first run warms up
        began = time.perf_counter()
        effects = crosspatch.path_patch(model, task, paths=ask)
        spent.append(time.perf_counter() - began)
    chosen = [site for site in effects.sites if isinstance(site, Site) and site.layer == last - 1][: given.cells]
    return PathCase(PeerCase(task, effects, chosen), (last, 0), tuple(spent[1:]))


def estimate_case(model: Model, given: argparse.Namespace) -> EstimateCase:
    """Estimate the stream, attention and MLP outputs and heads at each position by one gradient."""
    task = make_task(given.texts, pairs=given.pairs, length=given.length, vocab=model.vocab_size)
    selection = ", ".join(f"{kind}@*" for kind in ESTIMATED)
    return EstimateCase(PeerCase(task, crosspatch.attribute(model, task, sites=selection, by="atp"), ()), selection)


def estimates_told(own: EstimateCase, result: dict[str, Any], version: str) -> list[dict[str, Any]]:
    """Describe a peer's attribution patching, as by default and with weights that get no gradient.

    All ways ran in turns in the peer's process: ratios are of the same repetition.
    """
    found = []
    for way, job in (("peer", "AtP"), ("frozen", "AtP, weights frozen")):
        values = result["values"][way]
        error = float(np.max([_estimate_error(own.case.effects, kind, values[kind]) for kind in ESTIMATED]))
        seconds = result["seconds"][way]
        spread = [a / b for a, b in zip(seconds, result["seconds"]["own"], strict=True)] if error < SAME_PATHS else []
        row = {"job": job, "version": version, "difference": error, "chained": None, "seconds": seconds}
        row |= {"direct": median(spread) if spread else None, "own_seconds": result["seconds"]["own"]}
        found.append(row | {"least": min(spread, default=None), "most": max(spread, default=None)})
    return found


def _estimate_error(effects: Effects, kind: str, values: Sequence[Any]) -> float:
    """Return the largest difference of `values[layer][pair][pos][unit]`, relative to the kind's largest estimate."""
    table = np.array(values)
    sites = [(row, site) for row, site in enumerate(effects.sites) if isinstance(site, Site) and site.kind == kind]
    own = effects.raw[[row for row, _ in sites]]
    if own.size != table.size:
        return float("nan")  # a site is missing on one side
    theirs = np.stack([table[site.layer, :, site.position, site.unit or 0] for _, site in sites])
    return float(np.abs(own - theirs).max() / np.abs(own).max())


def edges_told(paths: PathCase, answer: dict[str, Any], version: str) -> dict[str, Any]:
    """Describe a peer's path patching: all paths at its cost of one, over the seconds taken here."""
    case, result, one = paths.case, answer["paths"], median(paths.seconds)
    effects, values = case.effects, np.array(result["values"])
    rows = [effects.sites.index(site) for site in case.sites]
    largest = max(float(np.abs(effects.raw).max()), FAINT * float(np.abs(effects.source - effects.base).mean()))
    error = float(np.abs(values - effects.base - effects.raw[rows]).max()) / largest
    spread = [each * len(case.effects.sites) / one for each in result["seconds"]] if error < SAME_PATHS else []
    found = {"version": version, "difference": error, "direct": median(spread) if spread else None, "chained": None}
    return found | {"least": min(spread, default=None), "most": max(spread, default=None)}


def told(row: PeerRow, own: Sequence[Row], version: str) -> dict[str, Any]:
    """Describe a peer's row: its ratios with their spread over repetitions, and how far its numbers are off."""
    direct, chained = ratios(row, own)
    one = median(own[0].seconds)
    spread = [second / one for second in row.seconds] if direct is not None else []
    return {
        "version": version,
        "difference": row.error,
        "direct": direct,
        "least": min(spread, default=None),
        "most": max(spread, default=None),
        "chained": chained,
        "seconds": list(row.seconds),
    }


def line(row: dict[str, Any]) -> str:
    """Write a row for the terminal."""
    if row["direct"] is None:
        return f"{row['peer']} {row['version']}, {row['job']}: other numbers (difference {row['difference']:.1e})"
    span = f"{digits(row['least'])}–{digits(row['most'])}"
    chained = "" if row["chained"] is None else f"chained {digits(row['chained'])}×, "
    told = f"{row['peer']} {row['version']}, {row['job']}: {digits(row['direct'])}× ({span}), {chained}"
    return f"{told}difference {row['difference']:.0e}"


def digits(ratio: float) -> str:
    """Write a ratio with as many digits as a noisy timing deserves."""
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


if __name__ == "__main__":
    main()
