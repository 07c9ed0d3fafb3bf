"""How a circuit is looked for: the methods by name, and their settings checked."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from crosspatch.core.errors import BadInput, UnknownName

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "acdc": "ACDC",
        "eap": "EAP",
        "eap-ig": "EAP-IG over inputs",
        "eap-ig-activations": "EAP-IG over activations",
        "eap-clean-corrupted": "EAP at both ends",
        "exact": "exact edges",
        "edge-masks": "edge masks",
        "node-masks": "node masks (subnetwork probing)",
        "nodes": "node attribution",
        "hisp": "head importance (HISP)",
        "routes": "information-flow routes",
    }
)
ORDERS = ("reverse", "forward")
SELECTIONS = ("top", "greedy")
SIZE = 0.05  # of the edges, unless a size is given


@dataclass(frozen=True)
class Method:
    """One way to look for a circuit. Settings that a method does not have are left at None or their default.

    `threshold` (ACDC) is in the metric's unit. `size` is the number of edges, or their share as a float. `steps` are
    those of an integral or of training. `select`: "top" takes the edges with the highest scores, "greedy" grows the
    circuit from the logits by them.
    """

    by: str
    threshold: float | None = None
    size: int | float | None = None
    steps: int | None = None
    select: str = "top"
    absolute: bool = False
    order: str = "reverse"
    speculate: bool = True
    estimator: str = "atp"
    rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in METHODS:
            raise UnknownName.of("method", self.by, METHODS)
        if self.select not in SELECTIONS:
            raise UnknownName.of("selection", self.select, SELECTIONS)
        if self.order not in ORDERS:
            raise UnknownName.of("order", self.order, ORDERS)
        self._check_acdc()
        if self.steps is not None and (self.steps < 1 or not self.stepped):
            raise BadInput(f"steps={self.steps} with by={self.by!r}: integrals and masks take a positive number.")
        if self.size is not None and not self._fits(self.size):
            raise BadInput(f"size={self.size}: give a number of edges (1, 2, …) or a share of them in (0, 1].")
        if not self.rate > 0:
            raise BadInput(f"rate={self.rate}: give a positive learning rate.")

    def _check_acdc(self) -> None:
        if self.by == "acdc":
            if self.threshold is None or not self.threshold > 0:
                raise BadInput(
                    f"threshold={self.threshold}: ACDC needs a positive one, in the metric's unit (0.06 for a "
                    "divergence, say): edges whose loss costs less are cut."
                )
            if self.size is not None:
                raise BadInput("ACDC finds its own size: give a threshold, not a size.")
        elif self.threshold is not None or self.absolute or not self.speculate or self.order != "reverse":
            raise BadInput(f"by={self.by!r} has no threshold, order, absolute or speculate: these are ACDC's.")

    @staticmethod
    def _fits(size: int | float) -> bool:
        return 0 < size <= 1 if isinstance(size, float) else size >= 1

    @property
    def stepped(self) -> bool:
        """Whether the method goes in steps."""
        return self.by in ("eap-ig", "eap-ig-activations", "edge-masks", "node-masks")

    @property
    def signed(self) -> bool:
        """Whether a score's sign says that an edge helps or hurts."""
        return self.by.startswith("eap") or self.by in ("acdc", "exact")

    @property
    def title(self) -> str:
        """The method's name as a reader knows it."""
        return METHODS[self.by]

    def count(self, edges: int) -> int:
        """Return how many of a graph's edges are taken."""
        size = SIZE if self.size is None else self.size
        return max(1, int(size * edges)) if isinstance(size, float) else min(size, edges)

    def settings(self) -> dict[str, Any]:
        """Return what a result stores."""
        return {name: value for name, value in asdict(self).items() if value is not None}
