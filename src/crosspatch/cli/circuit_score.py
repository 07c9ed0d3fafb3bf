"""`circuit score`: how well a saved, read or published circuit does a behaviour alone, on pairs of one's choice."""

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from crosspatch.cli import circuit_options as about
from crosspatch.cli import options as given
from crosspatch.cli.circuit_find import check_metric, tell
from crosspatch.cli.circuit_folder import CIRCUIT, keep, open_circuit
from crosspatch.cli.folder import ROOT, read_summary, what_in, writable
from crosspatch.cli.question import check_words, make_task, open_model, parse_size, question_key, read_list
from crosspatch.cli.running import accuracy_check
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput
from crosspatch.core.names import plain_name

if TYPE_CHECKING:
    from crosspatch.circuits import Circuit, Regime
    from crosspatch.models import Model
    from crosspatch.tasks import Task


def score(
    circuit: about.Source,
    model: given.Model,
    *,
    task: given.Task,
    metric: given.Metric = None,
    ablate: about.MaybeAblate = None,
    grain: about.GrainOption = about.Grain.edge,
    parts: about.Parts = None,
    positions: about.Positions = None,
    direction: about.SideOption = about.Side.keep,
    random: about.Random = 10,
    knockouts: about.Knockouts = 10,
    minimality: about.Minimality = True,
    curve: about.CurveOption = True,
    n: given.Pairs = None,
    seed: given.Seed = 0,
    settings: given.Settings = None,
    top: about.TopEdges = 10,
    out: given.Out = None,
    report: given.Report = True,
    require_accuracy: given.RequireAccuracy = 0.5,
    memory: given.Memory = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    layout: given.LayoutOption = None,
    dry_run: given.DryRun = False,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Score a circuit: what it does alone, and what is left without it.

    Take pairs that it was not found on: another --seed, or a file.

    \b
    crosspatch circuit score runs/circuit-ioi-gemma-3-270m-7f3a2c gemma-3-270m --task ioi --seed 1
    crosspatch circuit score ioi gpt2 --task ioi
    """
    voice, room = Voice(json, quiet), parse_size(memory)
    check_metric(check_words(task, settings or (), sites="embed", metric=metric))
    from crosspatch.circuits import score as run_score
    from crosspatch.engine import Options

    if Path(circuit).is_dir():
        open_circuit(circuit)  # what is no circuit is found before a model is opened
    choices = {"grain": grain.value, "direction": direction.value, "value": ablate and ablate.value}
    regime = _regime(choices, parts=parts, positions=positions)
    opened = open_model(model, voice, device=device, dtype=dtype, layout=layout)
    found = _opened(circuit, opened)
    if ablate is None:
        regime = _regime(choices | {"value": _own_ablation(found)}, parts=parts, positions=positions)
    made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
    how = {"metric": metric, "random": random, "knockouts": knockouts, "minimality": minimality, "curve": curve}
    key = score_key(found, opened, made, [regime.settings(found), *how.values()])
    folder = out or ROOT / f"score-{plain_name(made.name)}-{plain_name(opened.name)}-{key}"
    if dry_run:
        _show_plan(found, made, how, voice, folder)
        return
    _refuse_loss(folder, key, source=circuit)
    options = Options(memory=room, progress=voice.progress())
    with writable(folder):
        voice.say(f"scoring {found.size:,} of {found.graph.size:,} edges on {len(made)} pairs …")
        card = run_score(found, opened, made, options=options, regime=regime, seed=seed, **how)
        check = accuracy_check(_accuracy(opened, made), require_accuracy)
        kept = keep(found, card, folder, report=report, top=top, checks=[check], key=key)
    raise typer.Exit(tell(kept, voice, top=top))


def _regime(choices: dict[str, Any], *, parts: str | None, positions: str | None) -> "Regime":
    from crosspatch.circuits import Regime

    given_ones = {name: value for name, value in choices.items() if value is not None}
    if parts is not None:
        given_ones["parts"] = read_list(parts, "--parts")
    if positions is not None:
        given_ones["positions"] = read_list(positions, "--positions")
    return Regime(**given_ones)


def _own_ablation(circuit: "Circuit") -> str:
    """Return what absent edges carried when a circuit was found; the corrupt run where that is not known."""
    from crosspatch.circuits.telling import about as told

    found = told(circuit).get("ablation") or {}
    return str(found.get("by", about.Absent.corrupt.value))


def _opened(name: str, model: "Model") -> "Circuit":
    from crosspatch.circuits import graph_of

    return open_circuit(name, graph_of(model) if Path(name).is_file() else None)


def score_key(circuit: "Circuit", model: "Model", task: "Task", how: list[Any]) -> str:
    """Give the key of a scoring: of which edges, on which pairs and model, and how."""
    from crosspatch.engine.patching import task_hash

    edges = sha256(circuit.included.tobytes()).hexdigest()
    return question_key(edges, circuit.graph, model.fingerprint, task_hash(task), how)


def _refuse_loss(folder: Path, key: str, *, source: str) -> None:
    """Refuse a folder that holds anything but these scores. Raises BadInput."""
    what = what_in(folder)
    if what is None:
        return
    if Path(source).is_dir() and folder.resolve() == Path(source).resolve():
        raise BadInput(f"--out {folder} is the circuit's own folder, with its own scores: give another one.")
    if what != CIRCUIT or read_summary(folder).get("key") != key:
        raise BadInput(
            f"{folder} holds another run: give another --out, or remove it first: crosspatch runs remove {folder}"
        )


def _show_plan(circuit: "Circuit", task: "Task", how: dict[str, Any], voice: Voice, folder: Path) -> None:
    """Show what would be run: circuits on pairs."""
    from crosspatch.circuits.areas import MIB_FRACTIONS

    ways = 0 if circuit.scores is None or not how["curve"] else 1 + circuit.signed
    counts = {
        "the circuit, all but it, all edges, none": 4,
        "random circuits": how["random"],
        "circuits of growing size": ways * len(MIB_FRACTIONS),
        "each node taken out": len(circuit.nodes) if how["minimality"] else 0,
        "sets of nodes taken out, at least": 2 * how["knockouts"],
    }
    total = sum(counts.values())
    voice.document(
        {"dry_run": True, "edges": circuit.size, "of": circuit.graph.size, "n": len(task), "circuits": counts}
        | {"total": total, "folder": folder}
    )
    rows = [("run", f"{circuit.size:,} of {circuit.graph.size:,} edges on {len(task)} pairs of {task.name}")]
    rows += [("", f"{count:,} {name}") for name, count in counts.items() if count]
    rows += [("work", f"{total:,} circuits, many a pass"), ("folder", str(folder))]
    voice.show("\n".join(f"{name:<9}{text}" for name, text in rows))


def _accuracy(model: "Model", task: "Task") -> float:
    from crosspatch.tasks import check

    return check(model, task).accuracy
