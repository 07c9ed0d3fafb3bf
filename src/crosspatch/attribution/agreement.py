"""How an estimate compares with exact patching at the same sites: correlation, order, signs, what it missed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from crosspatch.core.errors import BadInput
from crosspatch.core.stats import spearman
from crosspatch.draw import Display, Displayed, number
from crosspatch.engine import Effects
from crosspatch.sites import Address

Sites = Float[np.ndarray, " site"]
LEAST = 0.02  # share of the gap below which an exact effect has no sign worth missing


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Displayed):
    """Mean effects by estimate and exactly, site by site, as shares of the gap (raw where there is no gap).

    Of an estimate without signs both are magnitudes: means over pairs of the absolute value. `top` marks the sites that
    were verified because their estimate is largest; the others were drawn at random.
    """

    sites: tuple[Address, ...]
    estimate: Sites
    exact: Sites
    top: Bool[np.ndarray, " site"]
    signed: bool

    def display(self) -> Display:
        """Say how estimate and truth go together, and list both for the sites with the largest exact effects."""
        order = np.argsort(-np.abs(np.nan_to_num(self.exact)), kind="stable")
        rows = [(str(self.sites[i]), number(float(self.estimate[i])), number(float(self.exact[i]))) for i in order]
        title = (
            f"Estimate against exact patching on {len(self.sites)} sites: Spearman {number(self.spearman)}, Pearson "
            f"{number(self.pearson)}, {len(self.sign_errors)} wrong signs, {len(self.false_negatives)} missed"
        )
        return Display(title, ("site", "estimate", "exact"), rows)

    @cached_property
    def pearson(self) -> float:
        """Correlate both over all sites; NaN where one of them is constant."""
        return pearson(self.estimate, self.exact)

    @cached_property
    def spearman(self) -> float:
        """Correlate the ranks of both; NaN where one of them is constant."""
        return spearman(self.estimate, self.exact)

    @cached_property
    def sign_errors(self) -> tuple[Address, ...]:
        """List the sites with an exact effect (2 % of the gap or more) whose estimate has the other sign."""
        if not self.signed:
            return ()
        wrong = (np.abs(self.exact) >= LEAST) & (self.estimate * self.exact < 0)
        return tuple(self.sites[i] for i in np.flatnonzero(wrong))

    @cached_property
    def false_negatives(self) -> tuple[Address, ...]:
        """List the sites drawn at random that belong among the largest: more than the median verified site has."""
        if not self.top.any() or self.top.all():
            return ()
        size = np.abs(self.exact)
        bar = max(float(np.median(size[self.top])), LEAST)
        return tuple(self.sites[i] for i in np.flatnonzero(~self.top & (size > bar)))

    def only(self, kind: str) -> "Agreement":
        """Keep the sites of one kind."""
        rows = [i for i, site in enumerate(self.sites) if site.kind == kind]
        chosen = tuple(self.sites[i] for i in rows)
        return Agreement(chosen, self.estimate[rows], self.exact[rows], self.top[rows], self.signed)

    def __str__(self) -> str:
        drawn = int((~self.top).sum())
        what = f"{int(self.top.sum())} sites with the largest estimates"
        what += f" and {drawn} drawn from the rest" if drawn else ""
        text = f"Verified exactly: {what}. Pearson {number(self.pearson)}, Spearman {number(self.spearman)}"
        if self.signed:
            text += f", {len(self.sign_errors)} wrong signs"
        if drawn:
            text += f", {len(self.false_negatives)} of {drawn} drawn sites should have been among the largest"
        return f"{text}."


def compare_estimate(estimate: Effects, exact: Effects, *, top: Sequence[int] | None = None) -> Agreement:
    """Compare an estimate with exact effects at the sites that both have.

    `top` are the places in `exact.sites` that were chosen for their large estimate; all of them unless given.

    Raises:
        BadInput: the results have other pairs, another direction or metric, or no site in common.
    """
    for name in ("direction", "metric", "n"):
        if getattr(estimate, name) != getattr(exact, name):
            here, there = getattr(estimate, name), getattr(exact, name)
            raise BadInput(f"the estimate has {name} {here!r}, the exact effects {there!r}: compare what is alike.")
    place = {site: i for i, site in enumerate(estimate.sites)}
    rows = [i for i, site in enumerate(exact.sites) if site in place]
    if not rows:
        raise BadInput("the estimate and the exact effects have no site in common: ask both for the same sites.")
    ours, theirs = estimate.only([place[exact.sites[i]] for i in rows]), exact.only(rows)
    signed = bool(estimate.provenance.get("settings", {}).get("signed", True))
    chosen = set(range(len(exact.sites)) if top is None else top)
    return Agreement(
        sites=theirs.sites,
        estimate=central(ours, signed=signed),
        exact=central(theirs, signed=signed),
        top=np.array([i in chosen for i in rows], dtype=bool),
        signed=signed,
    )


def central(effects: Effects, *, signed: bool) -> Sites:
    """Return each site's mean effect, or the mean of its absolute value, as a share of the gap where there is one."""
    scale = abs(effects.mean_gap) if effects.scale == "normalised" else 1.0
    if signed:
        return effects.mean().astype(np.float64)
    return scores(effects) / scale


def scores(effects: Effects) -> Sites:
    """Return c(n) = E|effect| of each site in the metric's unit: the absolute value is inside the mean over pairs.

    So a site that helps some examples and hurts others counts (Kramár et al. 2024, equation 3). NaN where nothing was
    run.
    """
    size = np.abs(effects.raw.astype(np.float64))
    there = ~np.isnan(size)
    count = there.sum(1)
    return np.where(count > 0, np.nansum(size, axis=1) / np.maximum(count, 1), np.nan)


def pearson(first: Sites, second: Sites) -> float:
    """Correlate two lists; NaN if one is constant, too short or has a value missing."""
    if len(first) < 2 or np.isnan(first).any() or np.isnan(second).any():
        return float("nan")
    apart = [values - values.mean() for values in (first, second)]
    spread = float(np.sqrt((apart[0] ** 2).sum() * (apart[1] ** 2).sum()))
    return float((apart[0] * apart[1]).sum() / spread) if spread > 0 else float("nan")
