"""The surface of the command line is frozen: a new or lost option is a decision, written here too."""

import pytest
import typer
from typer.main import get_command

from crosspatch.cli.app import app
from crosspatch.cli.options import DEFAULT_FOLDER, METRICS, SITES, Ablate, Through, name_default_folder
from crosspatch.cli.report import Format

TALK = {"--json", "--quiet"}
MACHINE = {"--device", "--dtype"}
TASK = {"--task", "--n", "--seed", "--set"}

KEPT = {"--top", "--out", "--report", "--no-report", "--require-accuracy", "--dry-run"}
LAYOUT = {"--layout"}
NOISE = {"--corrupt", "--draws", "--sigma"}

CREW = {"--executor", "--workers", "--threads", "--cluster"}
SWEEP = {"--resume", "--memory", "--tokens", "--layout"} | CREW

SURFACE = {
    "demo": {"--n", "--seed", "--out", "--open", "--no-open", "--device"} | TALK,
    "patch": {"MODEL", "--sites", "--window", "--direction", "--ablate", "--metric"}
    | SWEEP
    | NOISE
    | KEPT
    | TASK
    | MACHINE
    | TALK,
    "path": {"MODEL", "--senders", "--to", "--through", "--direction", "--metric"}
    | SWEEP
    | KEPT
    | TASK
    | MACHINE
    | TALK,
    "knockout": {"MODEL", "--query", "--key", "--heads", "--width", "--metric"} | SWEEP | KEPT | TASK | MACHINE | TALK,
    "audit": {
        "MODEL",
        "--sites",
        "--draws",
        "--windows",
        "--corruptions",
        "--metrics",
        "--out",
        "--report",
        "--dry-run",
    }
    | CREW
    | LAYOUT
    | TASK
    | MACHINE
    | TALK,
    "attribute": {"MODEL", "--by", "--parts", "--run", "--answer"}
    | {"--sites", "--direction", "--metric", "--preset", "--steps", "--points", "--verify", "--checkpoint"}
    | (SWEEP - {"--tokens"})
    | KEPT
    | TASK
    | MACHINE
    | TALK,
    "study": set(),
    "study speech": {"[MODEL]", "--parts", "--small", "--seed", "--out"} | MACHINE | TALK,
    "circuit": set(),
    "circuit find": {"MODEL", "--by", "--threshold", "--size", "--metric", "--ablate", "--places", "--steps"}
    | {"--select", "--order", "--absolute", "--sequential", "--held-out", "--score", "--no-score"}
    | {"--resume", "--memory"}
    | LAYOUT
    | KEPT
    | TASK
    | MACHINE
    | TALK,
    "circuit score": {"CIRCUIT", "MODEL", "--metric", "--ablate", "--grain", "--parts", "--positions", "--direction"}
    | {"--random", "--knockouts", "--minimality", "--no-minimality", "--curve", "--no-curve", "--memory"}
    | LAYOUT
    | KEPT
    | TASK
    | MACHINE
    | TALK,
    "circuit compare": {"FIRST", "SECOND", "MODEL", "--metric", "--ablate", "--memory"}
    | LAYOUT
    | TASK
    | MACHINE
    | TALK,
    "circuit show": {"DIR", "--top", "--export", "--report", "--no-report"} | TALK,
    "lens": {"MODEL", "--view", "--at", "--lens", "--heads", "--weighting", "--run", "--repeated", "--out"}
    | TASK
    | MACHINE
    | TALK,
    "sites": {"MODEL"} | MACHINE | TALK,
    "tasks": {"NAME", "--check", "--model", "--preview", "--no-preview", "--n", "--seed", "--set"} | MACHINE | TALK,
    "doctor": {"MODEL"} | LAYOUT | MACHINE | TALK,
    "bench": {"MODEL", "--sites"} | TASK | MACHINE | TALK,
    "runs": set(),
    "runs list": TALK,
    "runs show": {"DIR", "--top"} | TALK,
    "runs remove": {"DIR", "--yes"} | TALK,
    "runs verify": {"DIR", "--again", "--device"} | TALK,
    "runs merge": {"DIR…", "--out"} | TALK,
    "work": {"DIR", "--share", "--device"} | TALK,
    "workbench": {"MODEL", "--port", "--open", "--no-open", "--out", "--memory", "--device", "--dtype", "--layout"}
    | {"--quiet"},
    "report": {"DIR…", "--format", "--out"} | TALK,
}


def found_surface():
    """Read each verb's arguments and options off the program itself."""
    surface = {}

    def walk(command, name):
        if name:
            surface[name] = {
                word
                for one in command.params
                for word in ([one.metavar] if one.param_type_name == "argument" else [*one.opts, *one.secondary_opts])
            } - {"--help"}
        for verb, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {verb}".strip())

    walk(get_command(app), "")
    return surface


def test_surface_is_frozen():
    """Each verb takes exactly the options listed here."""
    assert found_surface() == SURFACE


def test_forms_of_a_report_are_frozen():
    """A run can be written as these."""
    assert [each.value for each in Format] == ["html", "csv", "json", "parquet", "md", "latex", "svg", "png", "pdf"]


def test_every_verb_has_help(call):
    """Each verb and each of its options says what it does."""
    command = get_command(app)
    for inner in command.commands.values():
        assert inner.help
        assert all(one.help for one in inner.params if one.name not in ("help", "ctx"))


def test_words_repeated_in_the_light_module_are_the_engines():
    """The default sites and the metrics named in the help are those that the engine has."""
    from crosspatch.circuits.finding import CORRUPT
    from crosspatch.circuits.method import METHODS, ORDERS, SELECTIONS
    from crosspatch.circuits.regime import DIRECTIONS, GRAINS
    from crosspatch.cli import circuit_options
    from crosspatch.cli.audit import METRICS as AUDITED
    from crosspatch.cli.folder import AUDIT
    from crosspatch.cli.question import EMBEDDINGS
    from crosspatch.engine.ablation import ABLATIONS
    from crosspatch.engine.patching import SITES as ENGINE_SITES
    from crosspatch.engine.paths import THROUGH
    from crosspatch.metrics import METRICS as ALL
    from crosspatch.referee.grid import METRICS_READ
    from crosspatch.referee.result import INDEX
    from crosspatch.tasks import pair

    assert SITES == ENGINE_SITES
    assert tuple(ALL) == METRICS
    assert tuple(Ablate) == ABLATIONS
    assert tuple(Through) == THROUGH
    assert EMBEDDINGS == pair.EMBEDDINGS
    assert tuple(AUDITED.split(",")) == METRICS_READ
    assert AUDIT == INDEX
    assert tuple(circuit_options.Absent) == (CORRUPT, *ABLATIONS)
    assert (tuple(circuit_options.Select), tuple(circuit_options.Order)) == (SELECTIONS, ORDERS)
    assert (tuple(circuit_options.Grain), tuple(circuit_options.Side)) == (GRAINS, DIRECTIONS)
    assert all(method in circuit_options.BY_HELP for method in METHODS)


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["m", "--resume"], ["m", "--resume", str(DEFAULT_FOLDER)]),
        (["m", "--resume", "--json"], ["m", "--resume", str(DEFAULT_FOLDER), "--json"]),
        (["m", "--resume", "runs/a"], ["m", "--resume", "runs/a"]),
        (["m", "--resume=runs/a"], ["m", "--resume=runs/a"]),
        (["m"], ["m"]),
    ],
)
def test_resume_may_stand_alone(given, parsed):
    """A bare --resume means the default folder; one with a folder keeps it."""
    assert name_default_folder(given) == parsed


def test_program_is_a_typer_app():
    """The program is one typer app, as shell completion expects."""
    assert isinstance(app, typer.Typer)
