"""Time the one-pass sweep beside the usual ways and the peers: same weights, same pairs, equal numbers checked first.

    python bench/sweep.py                                  # everything: an hour on two cores; installs the peers once
    python bench/sweep.py --quick --no-peers               # about a minute
    python bench/sweep.py --no-peers --device cuda --dtype bfloat16 --shape llama-8b --pairs 8 64
    python bench/sweep.py --shape gemma-270m --real        # the real Gemma-3-270M in the place of random weights

Ways: one pass (crosspatch's public API), one forward a site (plain hooks, all logits), one batch a layer (plain hooks,
last logits only), TransformerLens and nnsight. The slow ways run a random sample of sites (`--cells`), and the seconds
of all are extrapolated. Each repetition runs every way once, in turns. A way whose numbers differ gets no ratio, and
the exit status is 3. Results go to tables and to JSON. Memory is read from /proc, on Linux only (else: --no-memory).
Beside other work set OMP_WAIT_POLICY=PASSIVE: threads that spin while they wait slow every way, short calls most.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

import crosspatch
from crosspatch.engine.measure import ONE_BATCH, ONE_PASS, Row, compare, sample
from crosspatch.models.model import Model
from growth import AXES, Curve, Sweeps, curve
from machine import describe
from memory import Footprint, footprint
from peers import PEERS, PeerCase, PeerRow, peer_row, ratios, run_peer, save
from shapes import SHAPES, TEXTS, Build, make_task, open_shape
from tables import show

FULL = {
    "shape": ["gpt2-small", "gemma-270m"],
    "sites": ["resid.pre", "attn.head"],
    "pairs": [1, 8],
    "texts": list(TEXTS),
    "cells": 12,
    "repeat": 5,
}
QUICK = {**FULL, "sites": ["resid.pre"], "pairs": [1], "texts": ["second", "one"], "cells": 4, "repeat": 2}
GROWTH = {"pairs": [1, 2, 4, 8, 16, 32], "length": [15, 30, 60, 120, 240], "layers": [6, 12, 18, 24]}
QUICK_GROWTH = {"pairs": [1, 4], "length": [15, 30], "layers": [6, 12]}
# A GPU is not full before this many pairs.
CUDA_GROWTH = {**GROWTH, "pairs": [1, 4, 16, 64, 256]}


@dataclass(frozen=True)
class Case:
    """One comparison: a sweep of some sites on some pairs at one model shape."""

    shape: str
    sites: str
    pairs: int
    texts: str
    patches_run: int
    forwards: float
    rows: tuple[Row, ...]
    peers: tuple[PeerRow, ...] = ()


@dataclass
class Results:
    """All that was measured."""

    cases: list[Case]
    memory: dict[str, list[Footprint]]
    growth: list[Curve]
    versions: dict[str, dict[str, str]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables and write JSON."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    results = Results([], {}, [], {})
    for shape in given.shape:
        measure(Build(shape, given.device, given.dtype, given.seed, given.real), given, into=results)
        document = write(results, given)
    show(results, document)
    print(f"written: {given.out}")
    if any(differ(case) for case in results.cases):
        sys.exit(3)


def write(results: Results, given: argparse.Namespace) -> dict[str, Any]:
    """Write what has been measured so far as JSON, and return it."""
    document = {**describe(given), "settings": vars(given) | {"out": given.out.name}, **as_json(results)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return document


def differ(case: Case) -> bool:
    """Tell whether some way's numbers are not the sweep's, NaN included."""
    return any(row.ratio is None for row in case.rows) or any(None in ratios(row, case.rows) for row in case.peers)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what is not given comes from the full or the quick preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions, about a minute")
    parser.add_argument("--shape", nargs="+", choices=SHAPES)
    parser.add_argument("--sites", nargs="+", help="selections, each a sweep of its own")
    parser.add_argument("--pairs", nargs="+", type=int)
    parser.add_argument("--texts", nargs="+", choices=TEXTS, help="where clean and corrupt prompts differ")
    parser.add_argument("--length", type=int, default=15, help="tokens of a prompt")
    parser.add_argument("--cells", type=int, help="sites that the slow ways run")
    parser.add_argument("--repeat", type=int)
    parser.add_argument("--real", action="store_true", help="real weights where crosspatch knows them (gemma-270m)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "sweep.json")
    given = parser.parse_args(arguments)
    for name, value in (QUICK if given.quick else FULL).items():
        setattr(given, name, value if getattr(given, name) is None else getattr(given, name))
    if not given.no_peers and (given.device, given.dtype) != ("cpu", "float32"):
        parser.error("peers are compared on the CPU in float32: add --no-peers")
    return given


def measure(build: Build, given: argparse.Namespace, into: Results) -> None:
    """Measure one shape: all cases, then memory, then growth."""
    print(f"{build.shape}: building …", flush=True)
    model = open_shape(build)
    cases = list(measure_cases(model, build, given))
    if not given.no_peers:
        cases = list(with_peers(model, cases, given, into.versions))
    into.cases += cases
    # A quick run knows growth and memory at its first shape only.
    rest = not given.quick or build.shape == given.shape[0]
    if rest and not given.no_growth:
        into.growth += list(grow(model, build, given))
    del model
    if rest and not given.no_memory:
        into.memory[build.shape] = list(footprints(build, given))


def measure_cases(model: Model, build: Build, given: argparse.Namespace) -> Iterator[Case]:
    """Compare the three ways of this repository on every combination asked for."""
    for sites, pairs, texts in product(given.sites, given.pairs, given.texts):
        task = make_task(texts, pairs=pairs, length=given.length, vocab=model.vocab_size, seed=given.seed)
        rows = compare(model, task, sites=sites, cells=given.cells, repeat=given.repeat, seed=given.seed)
        plan = crosspatch.plan_patch(model, task, sites=sites)
        case = Case(build.shape, sites, pairs, texts, plan.rows, plan.forwards, tuple(rows))
        print(f"{name_of(case)}: {', '.join(f'{row.way} {median(row.seconds):.2f} s' for row in rows)}", flush=True)
        yield case


def name_of(case: Case) -> str:
    """Describe a case in a few words."""
    where = {"second": "from token 2 on", "third": "in the last third", "one": "in one token"}[case.texts]
    return f"{case.shape} {case.sites}, {case.pairs} pair{'s' * (case.pairs > 1)}, differing {where}"


def with_peers(
    model: Model, cases: Sequence[Case], given: argparse.Namespace, versions: dict[str, dict[str, str]]
) -> Iterator[Case]:
    """Yield the cases with the peers' rows; a peer runs all cases of a model in one child process."""
    asked = []
    for case in cases:
        task = make_task(case.texts, pairs=case.pairs, length=given.length, vocab=model.vocab_size, seed=given.seed)
        effects = crosspatch.patch(model, task, sites=case.sites)
        asked.append(PeerCase(task, effects, sample(effects, given.cells, given.seed)))
    found: list[list[PeerRow]] = [[] for _ in cases]
    with TemporaryDirectory() as folder:
        save(model, Path(folder))
        for peer in PEERS:
            print(f"{cases[0].shape}: {peer} …", flush=True)
            answer = run_peer(peer, Path(folder), asked, repeat=given.repeat, threads=given.threads)
            versions[peer] = answer["versions"]
            for rows, case, result in zip(found, asked, answer["cases"], strict=True):
                rows.append(peer_row(peer, case, result))
    for case, rows in zip(cases, found, strict=True):
        yield Case(**{**vars(case), "peers": tuple(rows)})


def grow(model: Model, build: Build, given: argparse.Namespace) -> Iterator[Curve]:
    """Time the residual sweep at growing sizes; texts differ in one token, as in most tasks."""
    sizes = QUICK_GROWTH if given.quick else CUDA_GROWTH if given.device.startswith("cuda") else GROWTH
    sweeps = Sweeps(given.sites[0], "one", given.pairs[0], given.length, min(given.repeat, 3))
    for axis in AXES:
        found = curve(model, build, axis, sizes[axis], sweeps)
        print(f"{build.shape}: seconds grow with {axis}^{found.exponent:.2f}", flush=True)
        yield found


def footprints(build: Build, given: argparse.Namespace) -> Iterator[Footprint]:
    """Measure peak memory of the sweep and of batches a layer, at the largest number of pairs."""
    job = {"build": asdict(build), "sites": given.sites[0], "texts": given.texts[0]}
    job |= {"pairs": max(given.pairs), "length": given.length, "threads": given.threads}
    for way in (ONE_PASS, ONE_BATCH):
        yield footprint(way, job)


def as_json(results: Results) -> dict[str, Any]:
    """Return everything measured as plain data, with the derived numbers beside the raw ones."""
    cases = []
    for case in results.cases:
        rows = [asdict(row) | {"limit_share": row.limit_share} for row in case.rows]
        peers = [
            asdict(row) | dict(zip(("direct", "chained"), ratios(row, case.rows), strict=True)) for row in case.peers
        ]
        cases.append(asdict(case) | {"rows": rows, "peers": peers})
    curves = [asdict(c) | {"exponent": c.exponent, "work_exponent": c.work_exponent} for c in results.growth]
    memory = {shape: [asdict(f) | {"above": f.above} for f in found] for shape, found in results.memory.items()}
    return {"cases": cases, "growth": curves, "memory": memory, "peer_versions": results.versions}


if __name__ == "__main__":
    main()
