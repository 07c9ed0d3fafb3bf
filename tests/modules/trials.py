"""Trials of the zoo's models and of odd modules."""

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

from torch import Tensor

from crosspatch import Trial
from zoo_any import TRANSFORMERS
from zoo_any_nets import NETS
from zoo_any_parts import Case

CASES = {case.name: case for case in (*TRANSFORMERS, *NETS)}


def metric_of(case: Case) -> Callable[..., Tensor]:
    """Return the case's metric; one that can be told which examples it sees asks for that."""
    if len(signature(case.metric).parameters) == 1:
        return case.metric

    def metric(output: Any, rows: Tensor) -> Tensor:
        return case.metric(output, rows)

    return metric


@cache
def trial(name: str) -> Trial:
    """Return a case as a trial whose clean run is the case's source."""
    case = CASES[name]
    return Trial(case.build(), dict(case.source), dict(case.base), metric_of(case), 2, name=name)
