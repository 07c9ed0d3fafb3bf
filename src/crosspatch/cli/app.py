"""The verbs put together, and what an error or Ctrl-C becomes: a message and an exit code."""

import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from crosspatch.cli.attribute import attribute
from crosspatch.cli.audit import audit
from crosspatch.cli.bench import bench
from crosspatch.cli.circuit import circuit_app
from crosspatch.cli.demo import demo
from crosspatch.cli.doctor import doctor
from crosspatch.cli.knockout import knockout
from crosspatch.cli.lens import lens
from crosspatch.cli.options import ResumableVerb
from crosspatch.cli.patch import patch
from crosspatch.cli.path import path
from crosspatch.cli.report import report
from crosspatch.cli.runs import runs_app
from crosspatch.cli.say import BAD_INPUT, INTERRUPTED, error
from crosspatch.cli.sites import sites
from crosspatch.cli.study import study_app
from crosspatch.cli.tasks import tasks
from crosspatch.cli.work import work
from crosspatch.cli.workbench import workbench
from crosspatch.core.errors import CrosspatchError

ABOUT = """Find which parts of a neural network cause a behaviour, by exact activation patching.

\b
crosspatch demo
crosspatch patch gemma-3-270m --task ioi
crosspatch patch gemma-3-270m --task ioi --sites attn.head@end
crosspatch audit gemma-3-270m --task ioi
crosspatch circuit find gemma-3-270m --task ioi
crosspatch workbench gemma-3-270m
crosspatch runs
"""
EXITS = (
    "Exit codes: 0 all well, 2 bad input, 3 it ran but a check failed, 130 interrupted (patch: --resume goes on). "
    "Results go to standard output, progress and messages to standard error. "
    "CROSSPATCH_TRACEBACK=1 shows where an error comes from; CROSSPATCH_CACHE moves the cache."
)


class Verbs(TyperGroup):
    """The group of verbs: errors meant for the user become one block of text and an exit code, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb and turn what it raises into an exit code."""
        try:
            return super().invoke(ctx)
        except CrosspatchError as problem:
            if os.environ.get("CROSSPATCH_TRACEBACK") == "1":
                sys.stderr.write(traceback.format_exc())
            error(str(problem))
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt:
            error("what was not saved yet is lost.", label="interrupted")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Verbs,
    help=ABOUT,
    epilog=EXITS,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: the same in a pipe, in a log and on a narrow screen
    pretty_exceptions_enable=False,
)


def _version(asked: bool | None) -> None:
    if asked:
        from crosspatch import __version__

        typer.echo(f"crosspatch {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = None,
) -> None:
    """Take the options that stand before the verb."""
    del version


app.command(cls=ResumableVerb)(demo)
app.command(cls=ResumableVerb)(patch)
app.command(cls=ResumableVerb)(path)
app.command(cls=ResumableVerb)(knockout)
app.command()(audit)
app.command(cls=ResumableVerb)(attribute)
app.add_typer(circuit_app, name="circuit")
app.command()(lens)
app.command()(sites)
app.command()(tasks)
app.command()(doctor)
app.command()(bench)
app.command()(work)
app.command()(workbench)
app.add_typer(runs_app, name="runs")
app.add_typer(study_app, name="study")
app.command()(report)


def run() -> None:
    """Run the command line on this process's arguments, and exit."""
    # Threads that wait by spinning take the cores from whatever else runs here: with one busy neighbour a sweep took
    # ten times as long. Sleeping ones cost nothing that could be measured. It must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot write → or × shall get a question mark, not a crash.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app(prog_name="crosspatch")
