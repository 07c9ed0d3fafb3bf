"""`circuit`: find the edges that a behaviour needs, score them, compare two circuits, show one again."""

import typer

from crosspatch.cli.circuit_compare import compare
from crosspatch.cli.circuit_find import find
from crosspatch.cli.circuit_score import score
from crosspatch.cli.circuit_show import show
from crosspatch.cli.options import ResumableVerb

HELP = """Find, score, compare and show circuits: the edges between parts that a behaviour needs.

\b
crosspatch circuit find gemma-3-270m --task ioi --by eap-ig --size 200
crosspatch circuit score runs/circuit-ioi-gemma-3-270m-7f3a2c gemma-3-270m --task ioi --seed 1
crosspatch circuit show runs/circuit-ioi-gemma-3-270m-7f3a2c
"""

circuit_app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)
circuit_app.command("find", cls=ResumableVerb)(find)
circuit_app.command("score")(score)
circuit_app.command("compare")(compare)
circuit_app.command("show")(show)
