"""`circuit find`: from a model and a task to a circuit, its scores on held-out pairs, and its page."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from crosspatch.cli import circuit_options as about
from crosspatch.cli import options as given
from crosspatch.cli.circuit_folder import Found, Kept, circuit_key, find_folder, keep
from crosspatch.cli.circuit_text import circuit_text, ending
from crosspatch.cli.folder import JOURNAL, META, ROOT, writable
from crosspatch.cli.question import check_words, make_task, open_model, parse_size, read_list
from crosspatch.cli.running import accuracy_check, resume_command
from crosspatch.cli.say import CHECK_FAILED, INTERRUPTED, Voice, error
from crosspatch.core.errors import BadInput
from crosspatch.core.names import plain_name

if TYPE_CHECKING:
    from crosspatch.circuits import Circuit, Method, Scorecard
    from crosspatch.circuits.opening import EdgeSweep
    from crosspatch.engine import Options
    from crosspatch.models import Model
    from crosspatch.tasks import Task

BY, HELD_OUT = "eap-ig", 0.5


@dataclass(frozen=True)
class Hunt:
    """One search: on which pairs, how, by which metric; and the pairs that the circuit is scored on (None: none)."""

    model: "Model"
    task: "Task"
    scored_on: "Task | None"
    how: "Method"
    metric: str | None
    ablation: str
    places: tuple[str, ...]
    memory: int | None

    @property
    def options(self) -> "Options":
        """How its runs are run."""
        from crosspatch.engine import Options

        return Options(memory=self.memory)

    def sweep(self) -> "EdgeSweep":
        """Set up the runs without running the model. Raises BadInput or UnknownName for what does not fit."""
        from crosspatch.circuits import graph_of
        from crosspatch.circuits.finding import ablation_of
        from crosspatch.circuits.opening import edge_sweep

        ablation, graph = ablation_of(self.ablation), graph_of(self.model, self.places)
        return edge_sweep(self.model, self.task, graph, [self.metric], ablation=ablation, options=self.options)

    def settings(self) -> dict[str, Any]:
        """Return what tells this search from others, as its circuit stores it."""
        from crosspatch.circuits.finding import described
        from crosspatch.core.provenance import here

        return here(**described(self.sweep(), self.task), method=self.how.settings())["settings"]

    def find(self, options: "Options") -> "Circuit":
        """Run the search, or what an interrupted one left of it."""
        from crosspatch.circuits import find

        circuit = find(
            self.model,
            self.task,
            by=self.how,
            metric=self.metric,
            ablation=self.ablation,
            places=self.places,
            options=options,
        )
        return replace(circuit, details={**circuit.details, "prompt": self.prompt()})

    def score(self, circuit: "Circuit", options: "Options") -> "Scorecard":
        """Score a circuit on the pairs that are held for it."""
        from crosspatch.circuits import Regime, score

        assert self.scored_on is not None
        return score(circuit, self.model, self.scored_on, regime=Regime(value=self.ablation), options=options)

    def prompt(self) -> dict[str, Any]:
        """Return the first prompt's tokens and named positions, over which other viewers draw the circuit."""
        from crosspatch.tasks.tokens import token_strings

        pair = self.task.pairs[0]
        return {"tokens": list(token_strings(self.model.tokenizer, pair.clean)), "names": dict(pair.names)}


def find(
    model: given.Model,
    *,
    task: given.Task,
    by: about.By = BY,
    threshold: about.Threshold = None,
    size: about.Size = None,
    metric: given.Metric = None,
    ablate: about.AblateAbsent = about.Absent.corrupt,
    places: about.Places = None,
    steps: about.Steps = None,
    select: about.SelectOption = about.Select.top,
    order: about.OrderOption = about.Order.reverse,
    absolute: about.Absolute = False,
    sequential: about.Sequential = False,
    held_out: about.HeldOut = None,
    score: about.ScoreOption = True,
    n: given.Pairs = None,
    seed: given.Seed = 0,
    settings: given.Settings = None,
    top: about.TopEdges = 10,
    out: given.Out = None,
    report: given.Report = True,
    resume: given.Resume = None,
    require_accuracy: given.RequireAccuracy = 0.5,
    memory: given.Memory = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    layout: given.LayoutOption = None,
    dry_run: given.DryRun = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Find the edges that a behaviour needs, and score them.

    The circuit is found on one half of the pairs and scored on the other.

    \b
    crosspatch circuit find gemma-3-270m --task ioi --size 200
    crosspatch circuit find gemma-3-270m --task ioi --by acdc --metric kl --threshold 0.06
    """
    from crosspatch.circuits.method import Method

    voice, room = Voice(json, quiet), parse_size(memory)
    if by == "acdc" and threshold is None:
        raise BadInput("--by acdc needs --threshold, in the metric's unit: --metric kl --threshold 0.06, say.")
    how = Method(
        by,
        threshold,
        about.read_count(size),
        steps,
        select.value,
        absolute=absolute,
        order=order.value,
        speculate=not sequential,
    )
    names = read_list(places, "--places")
    check_metric(check_words(task, settings or (), sites="embed", metric=metric))
    opened = open_model(model, voice, device=device, dtype=dtype, layout=layout)
    made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
    share = (HELD_OUT if score else 0.0) if held_out is None else held_out
    found_on, scored_on = halves(made, share, seed=seed, score=score)
    hunt = Hunt(opened, found_on, scored_on, how, metric, ablate.value, names, room)
    now = hunt.settings()
    folder = folder_of(hunt, now, out=out, resume=resume)
    if dry_run:
        from crosspatch.cli.circuit_plan import show_hunt

        show_hunt(hunt, folder, voice)
        return
    place = find_folder(now, folder, resume, voice)
    kept = run_hunt(hunt, place, voice, top=top, report=report, required=require_accuracy)
    raise typer.Exit(tell(kept, voice, top=top))


def check_metric(metrics: tuple[str, ...]) -> None:
    """Refuse several metrics. Raises BadInput."""
    if len(metrics) > 1:
        raise BadInput(f"--metric {','.join(metrics)}: a circuit is found and scored by one metric.")


def halves(made: "Task", share: float, *, seed: int, score: bool) -> "tuple[Task, Task | None]":
    """Part a task's pairs: to find a circuit on, and to score it on. Raises BadInput for too few."""
    from crosspatch.circuits import split

    if not share:
        return made, made if score else None
    if not 0 < round((1 - share) * len(made)) < len(made):
        raise BadInput(
            f"--held-out {share} of {len(made)} pairs leaves none to search or to score on: raise --n, or give "
            "--held-out 0 to score on the pairs that are searched on."
        )
    found_on, scored_on = split(made, 1 - share, seed=seed)
    return found_on, scored_on if score else None


def folder_of(hunt: Hunt, now: dict[str, Any], *, out: Path | None, resume: Path | None) -> Path:
    """Return where a search goes. Raises BadInput if two folders are named."""
    if out is not None and resume not in (None, given.DEFAULT_FOLDER, out):
        raise BadInput(f"--out {out} and --resume {resume}: a run is continued where it is, so leave --out out.")
    if resume not in (None, given.DEFAULT_FOLDER) and resume is not None:
        return resume
    name = f"circuit-{plain_name(hunt.task.name)}-{plain_name(hunt.model.name)}-{circuit_key(now)}"
    return out or ROOT / name


def run_hunt(hunt: Hunt, place: Found, voice: Voice, *, top: int, report: bool, required: float) -> Kept:
    """Search, keep the circuit at once, score it and keep the scores. Ctrl-C ends it with what is done kept.

    Raises BadInput if something cannot be written.
    """
    with writable(place.folder):
        circuit = place.circuit if place.resume else None
        if circuit is None:
            circuit = _searched(hunt, place, voice)
            done = {"complete": hunt.scored_on is None, "resume": resume_command(sys.argv[1:])}
            if place.score is None:  # else a whole run is there until there is another
                keep(circuit, None, place.folder, report=False, top=top, **done)
        score = place.score if place.resume and place.circuit is not None else None
        if score is not None or (hunt.scored_on is None and place.resume and place.circuit is not None):
            voice.say(f"{place.folder} is complete already: nothing is left to run.")
        if score is None and hunt.scored_on is not None:
            score = _scored(hunt, circuit, place, voice)
        check = accuracy_check(_accuracy(hunt), required)
        return keep(circuit, score, place.folder, report=report, top=top, checks=[check])


def _searched(hunt: Hunt, place: Found, voice: Voice) -> "Circuit":
    sweep = hunt.sweep()
    voice.say(f"{hunt.how.title}, {sweep.metrics[0].name}: {sweep.graph.size:,} edges on {len(hunt.task)} pairs")
    options = replace(hunt.options, progress=voice.progress(), journal=place.folder / JOURNAL)
    try:
        return hunt.find(options)
    except KeyboardInterrupt:
        _tell_stopped(place, voice)
        raise typer.Exit(INTERRUPTED) from None


def _scored(hunt: Hunt, circuit: "Circuit", place: Found, voice: Voice) -> "Scorecard | None":
    assert hunt.scored_on is not None
    if not circuit.size:
        error("no edge was kept: there is nothing to score. Lower the threshold.", label="empty circuit")
        return None
    progress = voice.progress()
    voice.say(f"scoring the {circuit.size:,} edges on {len(hunt.scored_on)} pairs")
    try:
        return hunt.score(circuit, replace(hunt.options, progress=progress))
    except KeyboardInterrupt:
        command = resume_command(sys.argv[1:])
        voice.document({"complete": False, "folder": place.folder, "resume": command})
        if place.score is not None and not place.resume:
            error(f"{place.folder} still holds the complete run that was there before.", label="interrupted")
        else:
            error(f"the circuit is found and kept in {place.folder}. Score it with:", label="interrupted")
            sys.stderr.write(f"  {command}\n")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        progress.close()


def _tell_stopped(place: Found, voice: Voice) -> None:
    """Say what is kept of a search that Ctrl-C stopped, and the command that continues it."""
    kept, command = (place.folder / JOURNAL).is_dir(), resume_command(sys.argv[1:])
    voice.document({"complete": False, "folder": place.folder if kept else None, "resume": command})
    if kept:
        error(f"what was finished is kept in {place.folder}. Continue with:", label="interrupted")
    elif (place.folder / META).exists():
        error(f"{place.folder} still holds the circuit that was there before. Start anew with:", label="interrupted")
    else:
        error("this method keeps nothing before its end. Start anew with:", label="interrupted")
    sys.stderr.write(f"  {command}\n")


def _accuracy(hunt: Hunt) -> float:
    from crosspatch.tasks import check

    return check(hunt.model, hunt.task).accuracy


def tell(kept: Kept, voice: Voice, *, top: int) -> int:
    """Show a circuit with its scores and the finding; give the exit code."""
    voice.document(kept.summary)
    voice.show(*circuit_text(kept.circuit, kept.score, top=top))
    failed = [check for check in kept.summary.get("checks", ()) if not check["ok"]]
    for check in failed:
        error(
            f"{check['detail']}. A circuit explains a behaviour only where the model shows it: choose another task or "
            "model, or set the bar with --require-accuracy.",
            label="check failed",
        )
    voice.show(*ending(kept.circuit, kept.score, kept.folder, kept.page))
    return CHECK_FAILED if failed else 0
