"""Every method on every planted model: the area under the ROC curve of its scores, against the edges that matter.

`python tests/circuits/test_methods.py` prints the table.
"""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from builders_circuits import BUILDERS, circuit_of, names_of, planted_model
from crosspatch.circuits import find, recovery_of
from crosspatch.circuits.method import METHODS

SETTINGS: Mapping[str, dict[str, Any]] = {
    "acdc": {"threshold": 0.3},
    "edge-masks": {"steps": 100},
    "node-masks": {"steps": 100},
}
# In these, each edge that matters has a slope in the clean run. In the others attention is so hard that which token is
# looked at has none on either side of a change: there gradients may miss edges.
SLOPED = ("AND", "OR", "ADDER", "negative", "fraction", "reverse")


@cache
def area(by: str, name: str) -> float:
    """Return a method's area; ACDC's is against what a search that cuts in turn may be left with."""
    planted, model, task = planted_model(name)
    size = {} if by == "acdc" else {"size": len(planted.edges)}
    found = find(model, task, by=by, **size, **SETTINGS.get(by, {}))
    if by == "acdc":
        assert names_of(found) in planted.kept()
    truth = found if by == "acdc" else circuit_of(found.graph, planted.edges)
    return recovery_of(found, truth, absolute=found.signed and by != "acdc").area


def table() -> str:
    """Lay all areas out, a row a method."""
    rows = [["", *BUILDERS], *([by, *(f"{area(by, name):.3f}" for name in BUILDERS)] for by in METHODS)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("by", ["acdc", "exact"])
def test_searches_that_cut_edges_are_never_wrong(by: str, name: str) -> None:
    assert area(by, name) == 1


@pytest.mark.parametrize("name", SLOPED)
@pytest.mark.parametrize("by", [by for by in METHODS if by.startswith("eap")])
def test_gradients_find_what_has_a_slope(by: str, name: str) -> None:
    assert area(by, name) == 1


def test_gradients_miss_what_has_none() -> None:
    """The table would be of no use if all were 1."""
    assert all(area("eap", name) < 0.95 for name in set(BUILDERS) - set(SLOPED))


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
