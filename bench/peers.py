"""The peers' side of the comparison: their environment, the weights and prompts they get, and what comes back."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from crosspatch.engine.effects import Effects
from crosspatch.engine.measure import Row, error_of, ratio
from crosspatch.models.model import Model
from crosspatch.sites import Site
from crosspatch.tasks import Task

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / "envs" / "peers"
REQUIREMENTS = HERE / "requirements-peers.txt"
PEERS = ("transformer-lens", "nnsight")


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


def python() -> Path:
    """Return the peers' own python, after making their environment if it is missing or out of date."""
    binary, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed.txt"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return binary
    print(f"installing the peers into {ENVIRONMENT.relative_to(HERE.parent)} (minutes, once) …", flush=True)
    venv.create(ENVIRONMENT, with_pip=True)
    # Torch goes first, so that no peer's own requirement picks another build of it.
    torch = next(line for line in wanted.splitlines() if line.startswith("torch=="))
    for what in ([torch], ["-r", str(REQUIREMENTS)]):
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


def run_peer(peer: str, folder: Path, cases: Sequence[PeerCase], *, repeat: int, threads: int) -> dict[str, Any]:
    """Run one peer on all cases of one model in a child process, and return its answer."""
    request, answer = folder / "request.json", folder / "answer.json"
    listed = [_described(case) for case in cases]
    content = {"peer": peer, "folder": str(folder), "cases": listed, "repeat": repeat, "threads": threads}
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
    if not max(row.error, row.plain_error) <= one_pass.allowed or plain.ratio is None:
        return None, None
    return median(row.seconds) / median(one_pass.seconds), row.plain_ratio * plain.ratio
