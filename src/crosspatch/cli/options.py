"""The options that verbs share, each spelled once; light, so that `--help` starts at once."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

SITES = "resid.pre, attn.out, mlp.out"
METRICS = (
    *("logit_diff", "prob", "logprob", "kl", "logit_diff_sum", "prob_diff"),
    *("kl_reverse", "stolfo", "accuracy", "rank", "right_logit"),
)
PAIRS = 16  # of a generated task, if nobody says how many
DEFAULT_FOLDER = Path("-")  # what a bare --resume stands for


class Direction(StrEnum):
    """Which run is patched: the corrupt one with clean activations, or the reverse."""

    denoise = "denoise"
    noise = "noise"


class Ablate(StrEnum):
    """What is written in the place of activations."""

    zero = "zero"
    mean = "mean"
    resample = "resample"


class Through(StrEnum):
    """What a path may pass: MLPs, which are recomputed, or nothing."""

    mlps = "mlps"
    nothing = "nothing"


class Executor(StrEnum):
    """Who runs the units of a plan."""

    auto = "auto"
    inline = "inline"
    local = "local"
    ray = "ray"
    ranks = "ranks"
    slurm = "slurm"


class ResumableVerb(TyperCommand):
    """A verb whose `--resume` may stand alone, meaning the folder that the question has by default."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a bare `--resume` its value, then parse."""
        return super().parse_args(ctx, name_default_folder(args))


def name_default_folder(args: Iterable[str]) -> list[str]:
    """Put the default folder's sign behind each `--resume` that is followed by no value."""
    given = list(args)
    named: list[str] = []
    for place, word in enumerate(given):
        named.append(word)
        follower = given[place + 1] if place + 1 < len(given) else "-"
        if word == "--resume" and follower.startswith("-"):
            named.append(str(DEFAULT_FOLDER))
    return named


def _option(*names: str, help: str, metavar: str | None = None, show_default: bool = True) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, show_default=show_default)


MODEL_HELP = "A known name (gemma-3-270m), a hub id, a folder, or a .gguf file."
METRIC_HELP = f"What is measured: {', '.join(METRICS)}.  [default: the task's own]"
METRICS_HELP = METRIC_HELP.replace("measured:", "measured, one or several as a,b:")
TASK_HELP = "The behaviour: see `crosspatch tasks`; or a .csv or .jsonl file of prompts."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
MaybeModel = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Task = Annotated[str, _option("--task", metavar="NAME", help=TASK_HELP, show_default=False)]
MaybeTask = Annotated[str | None, _option("--task", metavar="NAME", help=TASK_HELP, show_default=False)]
TaskOfBench = Annotated[str, _option("--task", metavar="NAME", help=TASK_HELP)]
Settings = Annotated[
    list[str] | None,
    _option("--set", metavar="KEY=VALUE", help="An option of the task, such as corrupt=ABC; may be repeated."),
]
Sites = Annotated[str, _option("--sites", metavar="SITES", help='What to patch, such as "attn.head[5:9, *]@S2|end".')]
SitesOfBench = Annotated[str, _option("--sites", metavar="SITES", help="What to patch.")]
DIRECTION_HELP = "denoise: clean activations into the corrupt run. noise: the other way."
DirectionOption = Annotated[
    Direction | None,
    _option("--direction", help=f"{DIRECTION_HELP}  [default: denoise; noise with --ablate]", show_default=False),
]
DirectionOfPaths = Annotated[Direction, _option("--direction", help=DIRECTION_HELP)]
Corrupt = Annotated[
    str | None,
    _option(
        "--corrupt",
        metavar="NAME",
        help="How the corrupt run is made: replace, resample (another pair's tokens), gaussian, zero, mean (of "
        "embeddings), or the task's own such as ABC.  [default: replace]",
    ),
]
Draws = Annotated[int | None, typer.Option("--draws", min=1, metavar="N", help="Noise draws a pair.  [default: 10]")]
Sigma = Annotated[float | None, _option("--sigma", metavar="S", help="Standard deviations of noise.  [default: 3]")]
AblateOption = Annotated[
    Ablate | None,
    _option("--ablate", help="Write zero, the mean or another prompt's activations into the clean run, not patches."),
]
Windows = Annotated[
    list[int] | None,
    typer.Option("--window", min=2, metavar="W", help="Also patch W adjacent layers together; may be repeated."),
]
Pairs = Annotated[
    int | None,
    typer.Option(
        "--n", min=1, metavar="N", help=f"Number of pairs.  [default: {PAIRS}; of a file all]", show_default=False
    ),
]
FixedPairs = Annotated[int, typer.Option("--n", min=1, metavar="N", help="Number of pairs.")]
Seed = Annotated[int, _option("--seed", metavar="N", help="Seed of the pairs.")]
SeedOfAll = Annotated[int, _option("--seed", metavar="N", help="Seed of the pairs, of noise and of what is drawn.")]
Metric = Annotated[str | None, _option("--metric", metavar="NAME", help=METRIC_HELP)]
Metrics = Annotated[str | None, _option("--metric", metavar="NAMES", help=METRICS_HELP)]
Memory = Annotated[
    str | None,
    _option("--memory", metavar="SIZE", help="Memory beside the weights, such as 2GiB.  [default: 2GiB; 60% of a GPU]"),
]
Tokens = Annotated[int | None, typer.Option("--tokens", min=1, metavar="N", help="Most tokens run at once.")]
ExecutorOption = Annotated[
    Executor,
    _option(
        "--executor",
        help="Who runs the work: this process (inline), more of this machine (local), a Ray cluster, the ranks of a "
        "launcher such as torchrun, or a SLURM job array. auto: ranks under a launcher, local with --workers, else "
        "inline.",
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, metavar="N", help="Workers of the executor.  [default: it chooses]")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", help="Processor threads of a worker.  [default: shared out evenly]"),
]
Cluster = Annotated[
    list[str] | None,
    _option("--cluster", metavar="KEY=VALUE", help="A setting of SLURM, such as slurm_partition=gpu; may be repeated."),
]
Top = Annotated[int, typer.Option("--top", min=1, metavar="K", help="Sites to list.")]
RequireAccuracy = Annotated[
    float,
    typer.Option(
        "--require-accuracy", min=0.0, max=1.0, metavar="SHARE", help="Share of clean prompts to be right, else exit 3."
    ),
]
Device = Annotated[str | None, _option("--device", metavar="NAME", help="cpu, cuda, mps or auto.  [default: cpu]")]
Dtype = Annotated[
    str | None,
    _option("--dtype", metavar="NAME", help="float32, bfloat16, …  [default: float32; on cuda the checkpoint's own]"),
]
LayoutOption = Annotated[
    list[str] | None,
    _option(
        "--layout",
        metavar="KEY=VALUE",
        help="How a model that does not fit is laid out: device_map=auto, offload=DIR, bits=8 or 4; under torchrun "
        "tp=N or fsdp=N. May be repeated.",
    ),
]
Out = Annotated[
    Path | None,
    _option("--out", metavar="DIR", help="Run folder.  [default: runs/TASK-MODEL-HASH]", show_default=False),
]
Report = Annotated[bool, _option("--report/--no-report", help="Write report.html into the run folder.")]
Resume = Annotated[
    Path | None,
    _option("--resume", metavar="[DIR]", help="Continue an interrupted run, of DIR or of the default folder."),
]
DryRun = Annotated[bool, _option("--dry-run", help="Print the plan with memory and time, and run nothing.")]
Json = Annotated[bool, _option("--json", help="Print one JSON document and nothing else on standard output.")]
Quiet = Annotated[bool, _option("--quiet", help="No progress and no messages, only results and errors.")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.", show_default=False)]
RunFolders = Annotated[
    list[Path], typer.Argument(metavar="DIR…", help="A run folder, or several to compare.", show_default=False)
]
