"""Certified top sites: estimate, verify the largest, bound what was missed, until the bound is low enough."""

from dataclasses import dataclass, replace

import numpy as np

from crosspatch.attribution.agreement import central
from crosspatch.attribution.bound import Bound, bound_missed
from crosspatch.attribution.estimate import Estimate
from crosspatch.attribution.estimating import attribute
from crosspatch.attribution.estimators import Estimator
from crosspatch.attribution.joint import Asked
from crosspatch.attribution.subsets import Sampling, Subsets, sample_subsets
from crosspatch.core.errors import BadInput
from crosspatch.draw import Display, Displayed, number
from crosspatch.engine import Effects, Options, patch
from crosspatch.engine.joining import concat
from crosspatch.engine.patching import SITES, Sites
from crosspatch.models.model import Model
from crosspatch.sites import Site
from crosspatch.tasks import Task


@dataclass(frozen=True)
class Until:
    """When to stop: the `share` of the mean gap that no missed site may exceed at `level`, or a budget.

    A budget is counted in exact runs over all pairs: a verified site is one, and so are as many sampled subsets as
    there are pairs. Each round verifies `step` further sites and samples `samples` subsets, in which a node is with
    probability `p` (None: such that a subset holds about eight).
    """

    share: float = 0.1
    level: float = 0.95
    budget: int = 1000
    step: int = 20
    samples: int = 400
    p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.share > 0 and self.budget > 0 and self.step > 0):
            raise BadInput(f"share {self.share}, budget {self.budget}, step {self.step}: give numbers above zero.")


@dataclass(frozen=True, eq=False, repr=False)
class Certificate(Displayed):
    """The verified sites, exactly patched, and what is known of the others.

    `held` tells whether the bound came below the share that was asked for; `spent` are exact runs over all pairs.
    """

    estimate: Estimate
    verified: Effects
    bound: Bound
    share: float
    spent: float
    rounds: int

    @property
    def held(self) -> bool:
        """Whether no missed site's mean effect exceeds the share, at the level of the bound."""
        return self.bound.theta <= self.share * abs(self.estimate.mean_gap)

    def top(self, k: int = 10) -> tuple[Site, ...]:
        """List the verified sites with the largest exact scores."""
        size = central(self.verified, signed=False)
        order = np.argsort(-np.nan_to_num(size), kind="stable")[:k]
        return tuple(site for i in order if isinstance(site := self.verified.sites[i], Site))

    def display(self) -> Display:
        """Say what was verified, what is bounded, and list the strongest verified sites."""
        top = self.verified.top()
        return Display(f"Certificate: {self}", top.headers, [row.cells() for row in top])

    def __str__(self) -> str:
        gap = abs(self.estimate.mean_gap)
        asked = f"the {self.share:.0%} of the gap that were asked for"
        told = f"below {asked}" if self.held else f"not below {asked}: the budget is spent"
        return (
            f"{len(self.verified.sites)} sites verified in {self.spent:,.0f} runs over all pairs; the bound on the "
            f"others is {number(self.bound.theta / gap)} of the gap, {told}. {self.bound.statement}"
        )


def certify(
    model: Model,
    task: Task,
    *,
    sites: Sites = SITES,
    by: str | Estimator = "atp",
    direction: str = "noise",
    until: Until | None = None,
) -> Certificate:
    """Verify sites in the order of an estimate until a bound on the rest is low enough, or the budget is spent.

    Verified sites are left out of the sampled subsets, since their large effects would only add noise to the bound; so
    each round samples anew (Kramár et al. 2024, diagnostics). Looking after each round would find a low bound by chance
    sooner or later, so rounds are held to stricter levels, which add up to the one asked for. The metric is the task's
    own.

    Raises:
        BadInput: a threshold, step or budget that is not above zero; else as `attribute` and `sample_subsets` do.

    >>> found = certify(model, task, sites="attn.head, mlp.out")  # doctest: +SKIP
    """
    until = until or Until()
    estimate = attribute(model, task, sites=sites, by=by, direction=direction)
    order, rounds, spent = estimate.order(), 0, 0.0
    nodes = [site for site in estimate.sites if isinstance(site, Site)]
    found: list[Effects] = []
    while True:
        chosen = [nodes[i] for i in order[rounds * until.step : (rounds + 1) * until.step]]
        if chosen:
            found.append(patch(model, task, sites=chosen, direction=direction, options=Options()))
        verified = frozenset(site for part in found for site in part.sites if isinstance(site, Site))
        subsets = _sampled(model, task, nodes, verified, until=until, asked=(direction, rounds))
        # Half of what doubt is left, each round: all rounds together hold at the level, however early one stops.
        level = 1 - (1 - until.level) / 2 ** (rounds + 1)
        bound = bound_missed(subsets, verified=verified, level=level)
        rounds, spent = rounds + 1, spent + len(chosen) + subsets.spent
        now = Certificate(estimate, concat(found), bound, until.share, spent, rounds)
        if now.held or not chosen or spent + until.step + subsets.spent > until.budget:
            return now


def _sampled(
    model: Model, task: Task, nodes: list[Site], verified: frozenset[Site], *, until: Until, asked: tuple[str, int]
) -> Subsets:
    left = max(len(nodes) - len(verified), 1)
    p = until.p if until.p is not None else min(0.5, 8 / left)
    design = Sampling(until.samples, p, skip=verified, asked=Asked(asked[0]))
    return sample_subsets(model, task, nodes, design=replace(design, seed=until.seed + asked[1]))
