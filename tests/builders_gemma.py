"""The real Gemma-3-270M, opened once for all tests of a process: opening proves its parts anew every time."""

from functools import cache

import pytest

from crosspatch.core.errors import MissingExtra
from crosspatch.models import Model, open_model

NAME = "gemma-3-270m"


@cache
def open_gemma() -> Model:
    """Return the model; leave its module as it is."""
    return open_model(NAME)


def gemma() -> Model:
    """Return the model, or skip the test where its weights are not installed."""
    try:
        return open_gemma()
    except MissingExtra as missing:
        pytest.skip(str(missing))
