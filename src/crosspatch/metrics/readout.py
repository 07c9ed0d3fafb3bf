"""What a metric is handed (`Readout`), what a metric is (`Metric`), and how a user's function becomes one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosspatch.core.errors import BadInput

Needs = Literal["answers", "vocab"]


@dataclass(frozen=True)
class Readout:
    """Hold what the model said at the last token of each row: logits of the answers, of the vocabulary if asked for.

    A row's answers may be fewer than the columns; the masks say which columns are real. `reference` holds the
    log-probabilities of the clean run for the same example, `base` those of the run that was patched.
    """

    right: Float[Tensor, "row right"]
    wrong: Float[Tensor, "row wrong"]
    right_mask: Bool[Tensor, "row right"]
    wrong_mask: Bool[Tensor, "row wrong"]
    right_ids: Int[Tensor, "row right"]
    logits: Float[Tensor, "row vocab"] | None = None
    reference: Float[Tensor, "row vocab"] | None = None
    wrong_ids: Int[Tensor, "row wrong"] | None = None
    base: Float[Tensor, "row vocab"] | None = None

    @cached_property
    def logprobs(self) -> Float[Tensor, "row vocab"]:
        """Log-probabilities of the vocabulary in float32, worked out once for all metrics.

        Raises:
            BadInput: the vocabulary was not asked for.
        """
        if self.logits is None:
            raise BadInput("this metric reads the whole vocabulary, but Readout.logits is missing: say needs='vocab'.")
        return self.logits.float().log_softmax(-1)


Score = Callable[[Readout], Tensor]


@dataclass(frozen=True)
class Metric:
    """Name one way to turn a `Readout` into one number a row.

    `needs` says whether the answers' logits are enough or the whole vocabulary must be computed; `needs_wrong` that
    the task must give wrong answers; `needs_reference` that the clean run's log-probabilities must be there,
    `needs_base` those of the base run; `sums_over_answer_tokens` that answers of several tokens may be scored by adding
    over their tokens.
    """

    name: str
    needs: Needs
    score: Score
    unit: str
    note: str
    sums_over_answer_tokens: bool = False
    needs_reference: bool = False
    needs_wrong: bool = False
    needs_base: bool = False


def metric_from(
    function: Score,
    *,
    name: str,
    needs: str = "answers",
    unit: str = "",
    note: str = "",
    needs_reference: bool = False,
    needs_wrong: bool = False,
) -> Metric:
    """Make a metric of your own function: it takes a `Readout` and returns one number a row, as a tensor [row].

    Say `needs="vocab"` if it reads `Readout.logits`. Raises BadInput if `function` is not callable or `needs` is
    neither "answers" nor "vocab", and, when the metric is used, if the function returns another shape.

    >>> margin = metric_from(lambda out: out.right[:, 0] - out.logits.mean(-1), name="margin", needs="vocab")
    """
    if not callable(function):
        raise BadInput(f"metric {name!r} needs a function that takes a Readout, but got {type(function).__name__}.")
    if not name:
        raise BadInput("a metric needs a name: give name='…', it labels every result.")
    allowed = get_args(Needs)
    if needs not in allowed:
        raise BadInput(f"metric {name!r}: needs={needs!r} is not one of {', '.join(map(repr, allowed))}.")
    return Metric(
        name=name,
        needs="vocab" if needs == "vocab" else "answers",
        score=_checked(function, name),
        unit=unit,
        note=note or "user's function",
        needs_reference=needs_reference,
        needs_wrong=needs_wrong,
    )


def _checked(function: Score, name: str) -> Score:
    def score(out: Readout) -> Float[Tensor, " row"]:
        given = function(out)
        rows = out.right.shape[0]
        if not isinstance(given, Tensor) or tuple(given.shape) != (rows,):
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise BadInput(
                f"metric {name!r} returned {shape}, but one number a row is needed: a tensor of shape ({rows},). "
                "Reduce over the last axis only."
            )
        return given.float()

    return score
