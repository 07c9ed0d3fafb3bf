"""Compare the memory that a plan foresees with what its sweep takes: `python bench/memory_model.py`.

Each case runs in a fresh process, in which a sweep of two layers of another model has run before: what libraries take
when they are first used is no part of a plan. Prints a table and writes JSON; the exit status is 3 if an estimate is
below the peak or more than 2.5 times as high.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from memory import MIB, peak_begin, peak_so_far

CASES = (
    # shape, sites, pairs, tokens, budget in MiB (0: the default), metric
    ("gpt2-small", "resid.pre", 1, 15, 0, "logit_diff"),
    ("gpt2-small", "resid.pre", 8, 15, 0, "logit_diff"),
    ("gpt2-small", "resid.pre[0|4|8]", 8, 128, 0, "logit_diff"),
    ("gpt2-small", "resid.pre[0|4|8]", 8, 128, 256, "logit_diff"),
    ("gpt2-small", "attn.head[10|11, *]@end", 8, 128, 0, "logit_diff"),
    ("gpt2-small", "attn.pattern[10|11, *]@end", 8, 128, 256, "logit_diff"),
    ("gpt2-small", "resid.pre[11]", 1, 512, 256, "logit_diff"),
    ("gpt2-small", "attn.pattern[11, *]@end", 1, 512, 0, "logit_diff"),
    ("gpt2-small", "resid.pre[10|11]", 8, 15, 0, "prob"),
    ("gemma-270m", "resid.pre[12:18]", 8, 15, 0, "logit_diff"),
    ("gemma-270m", "mlp.hidden[17, 0:256]@end", 8, 128, 256, "logit_diff"),
    ("gemma-270m", "attn.head[15:18, *]", 1, 512, 256, "logit_diff"),
    ("tiny", "resid.pre", 8, 512, 0, "logit_diff"),
    ("tiny", "attn.pattern", 8, 128, 256, "logit_diff"),
)


@dataclass(frozen=True)
class Found:
    """One case: the plan's estimate beside the bytes taken above the loaded model."""

    shape: str
    sites: str
    pairs: int
    length: int
    budget: int
    metric: str
    planned: int
    taken: int

    @property
    def ratio(self) -> float:
        """The estimate over what was taken."""
        return self.planned / max(self.taken, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cases, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="a word that cases must have in their shape or sites")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "memory_model.json")
    given = parser.parse_args(arguments)
    print(f"{'case':<58} {'planned':>9} {'taken':>9} {'ratio':>6}")
    found = []
    for each in measure(given):
        found.append(each)
        name = f"{each.shape} {each.sites} {each.metric}, {each.pairs} × {each.length}, {each.budget or 'default'}"
        print(f"{name:<58} {each.planned / MIB:>5.0f} MiB {each.taken / MIB:>5.0f} MiB {each.ratio:>5.2f}×", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps([asdict(each) | {"ratio": each.ratio} for each in found], indent=1), "utf-8")
    if any(not 1 <= each.ratio <= 2.5 for each in found):
        sys.exit(3)


def measure(given: argparse.Namespace) -> Iterator[Found]:
    """Run each case in a process of its own."""
    for case in CASES:
        if given.only in f"{case[0]} {case[1]}":
            command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps([*case, given.device])]
            threads = {"OMP_NUM_THREADS": str(given.threads)}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | threads)
            if done.returncode:
                sys.exit(f"measuring {case} failed:\n{done.stderr[-3000:]}")
            planned, taken = json.loads(done.stdout.splitlines()[-1])
            yield Found(*case, planned, taken)


def child(case: str) -> tuple[int, int]:
    """Return the plan's bytes and the bytes taken, in this process."""
    import crosspatch
    from crosspatch.engine.sweep import Options
    from shapes import Build, make_task, open_shape

    shape, sites, pairs, length, budget, metric, device = json.loads(case)
    first = open_shape(Build("tiny", device))
    crosspatch.patch(first, make_task("third", pairs=1, length=9, vocab=first.vocab_size), sites="resid.pre")
    model = open_shape(Build(shape, device))
    task = make_task("third", pairs=pairs, length=length, vocab=model.vocab_size)
    options = Options(memory=budget * MIB or None)
    loaded = peak_begin(device)
    planned = crosspatch.plan_patch(model, task, sites=sites, metric=metric, options=options).peak_bytes
    crosspatch.patch(model, task, sites=sites, metric=metric, options=options)
    return planned, peak_so_far(device) - loaded


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2])))
    else:
        main()
