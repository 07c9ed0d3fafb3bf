"""The options of the verbs about circuits, each spelled once."""

from enum import StrEnum
from typing import Annotated

import typer

from crosspatch.core.errors import BadInput

BY_HELP = (
    "acdc (takes --threshold); eap, eap-ig, eap-ig-activations, eap-clean-corrupted, exact, edge-masks, node-masks, "
    "nodes, hisp, routes (take --size)."
)


class Absent(StrEnum):
    """What absent edges carry."""

    corrupt = "corrupt"
    zero = "zero"
    mean = "mean"
    resample = "resample"


class Select(StrEnum):
    """How edges are taken by their scores."""

    top = "top"
    greedy = "greedy"


class Order(StrEnum):
    """In which order ACDC tests the senders of a receiver."""

    reverse = "reverse"
    forward = "forward"


class Grain(StrEnum):
    """What is ablated."""

    edge = "edge"
    node = "node"


class Side(StrEnum):
    """Which part of the model runs: the circuit, or all but the circuit."""

    keep = "keep"
    cut = "cut"


By = Annotated[str, typer.Option("--by", metavar="METHOD", help=BY_HELP)]
Threshold = Annotated[
    float | None,
    typer.Option("--threshold", metavar="X", help="acdc: an edge goes if that costs less, in the metric's unit."),
]
Size = Annotated[
    str | None,
    typer.Option("--size", metavar="N", help="Edges to take: a number, or a share as 0.05 or 5%.  [default: 5%]"),
]
AblateAbsent = Annotated[Absent, typer.Option("--ablate", help="What absent edges carry.")]
MaybeAblate = Annotated[
    Absent | None, typer.Option("--ablate", help="What absent edges carry.  [default: as when it was found]")
]
Places = Annotated[
    str | None, typer.Option("--places", metavar="NAMES", help="Tell edges apart by the token they are at, as S2,end.")
]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, metavar="N", help="Steps of the integral (5) or of training (400).")
]
SelectOption = Annotated[Select, typer.Option("--select", help="The best edges, or grow the circuit from the logits.")]
OrderOption = Annotated[
    Order, typer.Option("--order", help="acdc: senders of a receiver, the last or the first first.")
]
Absolute = Annotated[bool, typer.Option("--absolute", help="acdc: keep edges whose cut moves the metric either way.")]
Sequential = Annotated[bool, typer.Option("--sequential", help="acdc: one edge a pass, as published; slow.")]
HeldOut = Annotated[
    float | None,
    typer.Option(
        "--held-out",
        min=0.0,
        max=0.99,
        metavar="SHARE",
        help="Share of the pairs to score on and not to search on; 0: the same ones.  [default: 0.5]",
    ),
]
ScoreOption = Annotated[bool, typer.Option("--score/--no-score", help="Score the circuit when it is found.")]
TopEdges = Annotated[int, typer.Option("--top", min=1, metavar="K", help="Edges to list.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="CIRCUIT",
        help="A run folder, a .json file of EAP-IG, or ioi, greater-than, docstring.",
        show_default=False,
    ),
]
GrainOption = Annotated[Grain, typer.Option("--grain", help="What is ablated: edges, or all edges of absent nodes.")]
Parts = Annotated[
    str | None,
    typer.Option("--parts", metavar="NAMES", help="What is ablated at all: embed, heads, mlps.  [default: all]"),
]
Positions = Annotated[
    str | None, typer.Option("--positions", metavar="NAMES", help="Tokens at which edges are ablated, as S2,end.")
]
SideOption = Annotated[Side, typer.Option("--direction", help="Run the circuit, or all but the circuit.")]
Random = Annotated[int, typer.Option("--random", min=0, metavar="N", help="Random circuits to compare with.")]
Knockouts = Annotated[
    int, typer.Option("--knockouts", min=0, metavar="N", help="Random sets of nodes taken out; 0: no completeness.")
]
Minimality = Annotated[bool, typer.Option("--minimality/--no-minimality", help="Take out each node in turn.")]
CurveOption = Annotated[bool, typer.Option("--curve/--no-curve", help="Run circuits of growing size by the scores.")]


def read_count(text: str | None) -> int | float | None:
    """Read a number of edges, or a share of them such as `0.05` or `5%`; None stays None. Raises BadInput."""
    if text is None:
        return None
    word = text.strip()
    try:
        if word.endswith("%"):
            return float(word[:-1]) / 100
        return int(word) if word.isdecimal() else float(word)
    except ValueError:
        raise BadInput(
            f"--size {text!r}: write a number of edges such as 200, or a share such as 0.05 or 5%."
        ) from None
