"""How much two circuits of one graph share, and how likely that would be by chance."""

from dataclasses import dataclass
from functools import cached_property
from math import exp, fsum, inf, isnan, lgamma, log, log1p, nan

import numpy as np
from jaxtyping import Bool

from crosspatch.circuits.circuit import Circuit
from crosspatch.core.errors import BadInput
from crosspatch.draw import Display, Displayed, number


@dataclass(frozen=True)
class Shared:
    """Sizes of two sets drawn from `of` candidates, and of what is in both."""

    first: int
    second: int
    both: int
    of: int

    @property
    def jaccard(self) -> float:
        """Share of what is in either that is in both; NaN if nothing is in either."""
        return _share(self.both, self.first + self.second - self.both)

    @property
    def of_first(self) -> float:
        """Share of the first set that is in the second; NaN if the first is empty."""
        return _share(self.both, self.first)

    @property
    def of_second(self) -> float:
        """Share of the second set that is in the first: its recall by the first; NaN if the second is empty."""
        return _share(self.both, self.second)

    @property
    def expected(self) -> float:
        """How many two sets of these sizes share on average if each is drawn at random."""
        return self.first * self.second / self.of

    @cached_property
    def log_p(self) -> float:
        """Natural logarithm of `p`, for chances too small for a float."""
        return log_hypergeometric_tail(self.both, first=self.first, second=self.second, of=self.of)

    @property
    def p(self) -> float:
        """Chance that two sets of these sizes, drawn at random, share as much or more; 0 below 1e-323.

        Random sets are no circuits: those hang together and favour the same busy nodes, so a small chance says that
        the sets are alike, not that both found a mechanism.
        """
        return exp(self.log_p)


@dataclass(frozen=True, eq=False, repr=False)
class Overlap(Displayed):
    """What two circuits share: `edges` among the edges that the graph has, `nodes` among its senders.

    A node is in a circuit if an edge leaves it, at whatever place. `included` marks the shared edges.
    """

    edges: Shared
    nodes: Shared
    included: Bool[np.ndarray, "place receiver sender"]

    def display(self) -> Display:
        """Show what is shared of edges and nodes, beside what chance would give."""
        rows = [
            (name, str(each.both), str(each.first), str(each.second), number(each.expected, 1), number(each.jaccard, 3))
            for name, each in (("edges", self.edges), ("nodes", self.nodes))
        ]
        return Display("Overlap of two circuits", ("of", "shared", "first", "second", "by chance", "Jaccard"), rows)

    def __str__(self) -> str:
        lines = [_line(name, shared) for name, shared in (("edges", self.edges), ("nodes", self.nodes))]
        return "\n".join(lines)


def compare_circuits(first: Circuit, second: Circuit) -> Overlap:
    """Compare two circuits edge by edge and node by node.

    Raises:
        BadInput: they are circuits of two graphs.
    """
    if first.graph != second.graph:
        raise BadInput(f"the circuits are of two graphs, {first.graph} and {second.graph}: compare what is alike.")
    both = first.included & second.included
    nodes = [np.asarray(circuit.included.any((0, 1))) for circuit in (first, second)]
    return Overlap(
        edges=Shared(first.size, second.size, int(both.sum()), first.graph.size),
        nodes=Shared(int(nodes[0].sum()), int(nodes[1].sum()), int((nodes[0] & nodes[1]).sum()), len(nodes[0])),
        included=both,
    )


def log_hypergeometric_tail(both: int, *, first: int, second: int, of: int) -> float:
    """Return the natural logarithm of the chance that two random sets share `both` members or more.

    The sets have `first` and `second` members, drawn without replacement from `of`. Every term is summed, on the side
    with fewer than the mean of them where that is nearer 0, so the result is exact to rounding (about 1e-10 relative
    for graphs of 1e5 edges) however small it is. -inf where it cannot happen.

    Raises:
        BadInput: a set is larger than the whole, or a size negative.
    """
    if not (0 <= first <= of and 0 <= second <= of):
        raise BadInput(f"sets of {first} and {second} members cannot be drawn from {of}.")
    least, most = max(0, first + second - of), min(first, second)
    if both <= least:
        return 0.0
    if both > most:
        return -inf
    if both * of > first * second:
        return min(0.0, _log_sum(range(both, most + 1), first, second, of))
    rest = _log_sum(range(least, both), first, second, of)  # below the mean the other tail is the smaller one
    return log1p(-exp(rest)) if rest < 0 else _log_sum(range(both, most + 1), first, second, of)


def _log_sum(shared: range, first: int, second: int, of: int) -> float:
    whole = _log_choose(of, second)
    terms = [_log_choose(first, k) + _log_choose(of - first, second - k) - whole for k in shared]
    top = max(terms)
    return top + log(fsum(exp(term - top) for term in terms))


def _log_choose(of: int, chosen: int) -> float:
    return lgamma(of + 1) - lgamma(chosen + 1) - lgamma(of - chosen + 1)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else nan


def _line(name: str, shared: Shared) -> str:
    jaccard = "–" if isnan(shared.jaccard) else f"{shared.jaccard:.3f}"
    power = shared.log_p / log(10)
    chance = f"{shared.p:.2g}" if power > -300 else f"1e{power:.0f}"
    return (
        f"{name}: {shared.both} shared of {shared.first} and {shared.second} (by chance {shared.expected:.1f} of "
        f"{shared.of}, p = {chance}), Jaccard {jaccard}"
    )
