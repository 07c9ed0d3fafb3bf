"""Estimate: effects that were estimated instead of measured, and how far they were verified."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from crosspatch.attribution.agreement import Agreement, compare_estimate, scores
from crosspatch.core.errors import CorruptFile
from crosspatch.draw import number
from crosspatch.engine import Effects

if TYPE_CHECKING:
    from rich.console import Group as Stack

EXACT = "exact"  # folder of the exact effects inside a result's own


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(Effects):
    """Estimated effects of patching each site on each pair, with the exact effects of some of them.

    `exact` are the sites that were verified: the `verified` first ones because their estimates are largest, the others
    drawn at random from the rest. Where an estimator gives magnitudes only (GradDrop) `raw` is along the mean gap.
    """

    exact: Effects | None = None

    @property
    def estimator(self) -> str:
        """Name the estimator."""
        return str(self._settings.get("estimator", ""))

    @property
    def title(self) -> str:
        """Name the estimator with its settings, as a reader knows it."""
        return str(self._settings.get("estimator_title", self.estimator))

    @property
    def signed(self) -> bool:
        """Tell whether estimates have a sign."""
        return bool(self._settings.get("signed", True))

    @property
    def scores(self) -> Float[np.ndarray, " site"]:
        """Give E|estimate| of each site, in the metric's unit: what sites are ranked by."""
        return scores(self)

    def order(self) -> list[int]:
        """List the places of `sites` from the largest score to the smallest; those without a score are left out."""
        size = self.scores
        return [int(i) for i in np.argsort(-np.nan_to_num(size, nan=-np.inf), kind="stable") if not np.isnan(size[i])]

    @cached_property
    def agreement(self) -> Agreement | None:
        """Compare with what was verified; None where nothing was."""
        if self.exact is None:
            return None
        return compare_estimate(self, self.exact, top=range(int(self._settings.get("verified", 0))))

    def finding(self) -> str:
        """Say what the estimate points to, that it is an estimate, and how the verified sites came out."""
        estimated = super().finding() if self.signed else self._largest()
        if self.exact is None or self.agreement is None:
            return f"{estimated} None of it was verified: patch the top sites exactly (verify=20)."
        found, drawn = self.agreement, int((~self.agreement.top).sum())
        missed = f"; of {drawn} drawn at random {len(found.false_negatives)} had been missed" if drawn else ""
        wrong = f", {len(found.sign_errors)} wrong signs" if self.signed else ""
        return (
            f"{estimated} Patched exactly, {len(found.sites)} sites correlate with it at {number(found.pearson)} "
            f"(Pearson){wrong}{missed}."
        )

    def _largest(self) -> str:
        order = self.order()
        if not order:
            return "No site was run, so nothing is known."
        size = float(self.mean()[order[0]])
        unit = "of the gap" if self.scale == "normalised" else self.metric_unit
        return (
            f"By estimate ({self.title}, magnitudes without sign), {self.sites[order[0]]} matters most: "
            f"{number(size)} {unit} ({self.n} pairs, {self.direction})."
        )

    def p_values(self) -> Float[np.ndarray, " site"]:
        """Test each site by flipping signs, as for exact effects; NaN for magnitudes, which have no signs to flip."""
        return super().p_values() if self.signed else np.full(len(self.sites), np.nan)

    def save(self, folder: str | Path) -> Path:
        """Write a result folder, the exact effects in a folder inside. Raises BadInput if it cannot."""
        folder = super().save(folder)
        if self.exact is not None:
            self.exact.save(folder / EXACT)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Estimate":
        """Read what `save` wrote. Raises BadInput without such a folder, CorruptFile if its content is damaged."""
        found = super().load(folder)
        if not isinstance(found, cls) or "estimator" not in found._settings:
            raise CorruptFile(f"{str(folder)!r} holds no estimate: load it with crosspatch.load.")
        # The folder may still hold what an earlier estimate in its place was verified by.
        return replace(found, exact=Effects.load(Path(folder) / EXACT)) if found._settings.get("verified") else found

    @property
    def _settings(self) -> dict[str, Any]:
        return dict(self.provenance.get("settings", {}))

    def __rich__(self) -> "Stack":
        from rich.console import Group as Stack
        from rich.text import Text

        head = Text(f"Estimated by {self.title}", style="bold")
        return Stack(head, super().__rich__())
