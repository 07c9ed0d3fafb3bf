"""`patch`: the main job, from a model and a task to a finding and a run folder."""

import typer

from crosspatch.cli import options as given
from crosspatch.cli.crew import crew_of, sweep_options
from crosspatch.cli.folder import default_folder, find_places
from crosspatch.cli.planning import show_plan
from crosspatch.cli.question import (
    EMBEDDINGS,
    Ask,
    check_noise,
    check_words,
    corrupted,
    make_task,
    open_model,
    parse_size,
    pose,
)
from crosspatch.cli.running import Keeping, run_and_keep, tell
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput


def patch(
    model: given.Model,
    *,
    task: given.Task,
    sites: given.Sites = given.SITES,
    window: given.Windows = None,
    direction: given.DirectionOption = None,
    corrupt: given.Corrupt = None,
    draws: given.Draws = None,
    sigma: given.Sigma = None,
    ablate: given.AblateOption = None,
    n: given.Pairs = None,
    seed: given.SeedOfAll = 0,
    settings: given.Settings = None,
    metric: given.Metrics = None,
    top: given.Top = 10,
    out: given.Out = None,
    report: given.Report = True,
    resume: given.Resume = None,
    require_accuracy: given.RequireAccuracy = 0.5,
    memory: given.Memory = None,
    tokens: given.Tokens = None,
    executor: given.ExecutorOption = given.Executor.auto,
    workers: given.Workers = None,
    threads: given.Threads = None,
    cluster: given.Cluster = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    layout: given.LayoutOption = None,
    dry_run: given.DryRun = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Patch each site of a selection; show which carry the behaviour.

    \b
    crosspatch patch gemma-3-270m --task ioi
    crosspatch patch gemma-3-270m --task ioi --sites attn.head@end
    crosspatch patch gemma-3-270m --task ioi --corrupt gaussian --window 5
    crosspatch patch gemma-3-270m --task ioi --ablate mean --metric prob
    """
    voice, room, crew = Voice(json, quiet), parse_size(memory), crew_of(executor, workers, cluster)
    metrics = check_words(task, settings or (), sites=sites, metric=metric)
    check_noise(corrupt, draws=draws, sigma=sigma)
    _check_ablation(ablate, direction, corrupt, several=len(metrics) > 1)
    opened = open_model(model, voice, device=device, dtype=dtype, layout=layout)
    made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
    made = corrupted(made, corrupt, draws=draws, sigma=sigma, seed=seed)
    chosen = direction.value if direction else "noise" if ablate else "denoise"
    how = ablate.value if ablate else ""
    question = pose(opened, made, Ask(sites, chosen, metrics, tuple(window or ()), how, seed))
    how_run = sweep_options(memory=room, tokens=tokens, threads=threads, crew=crew)
    if dry_run:
        show_plan(question, voice, out or default_folder(question), options=how_run)
        return
    places = find_places(question, out=out, resume=resume, voice=voice)
    keeping = Keeping(top, report, require_accuracy, how_run)
    outcomes = run_and_keep(question, places, voice, how=keeping)
    raise typer.Exit(tell(outcomes, places, voice, top=top))


def _check_ablation(
    ablate: given.Ablate | None, direction: given.Direction | None, corrupt: str | None, *, several: bool
) -> None:
    """Refuse what makes no sense with --ablate. Raises BadInput."""
    if ablate is None:
        return
    if direction is given.Direction.denoise:
        raise BadInput(
            f"--ablate {ablate.value} with --direction denoise: an ablation writes into the clean run. Leave "
            "--direction out, or patch without --ablate."
        )
    if corrupt in EMBEDDINGS:
        raise BadInput(
            f"--ablate {ablate.value} with --corrupt {corrupt}: an ablation takes its reference from corrupt prompts, "
            "and this corruption changes embeddings. Choose one of them, or --corrupt resample, ABC, …"
        )
    if several:
        raise BadInput(f"--ablate {ablate.value} is measured by one --metric: run it once for each.")
