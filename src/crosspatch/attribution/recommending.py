"""Which estimator to trust for a model and a task: each is compared with exact patches of a small sample of sites."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crosspatch.attribution.agreement import Agreement, compare_estimate
from crosspatch.attribution.estimate import Estimate
from crosspatch.attribution.estimating import attribute
from crosspatch.attribution.estimators import Estimator, estimator
from crosspatch.core.errors import BadInput, NotProved
from crosspatch.core.stats import spearman
from crosspatch.draw import Display, Displayed, number
from crosspatch.engine import Options, patch
from crosspatch.engine.patching import SITES, Sites
from crosspatch.metrics import Metric
from crosspatch.models.model import Model
from crosspatch.tasks import Task

RULES = ("ln", "relp", "repo", "cp")
CANDIDATES = (
    "atp",
    "atp-qk",
    "atp-drop",
    "atp*",
    *(estimator("relp", preset=preset) for preset in RULES),
    estimator("ig", steps=5),
)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One estimator against exact patches: how it agrees, overall and by kind of site, and the seconds it took."""

    how: Estimator
    overall: Agreement
    kinds: dict[str, Agreement]
    seconds: float


@dataclass(frozen=True, eq=False, repr=False)
class Recommendation(Displayed):
    """Estimators in order of rank correlation with exact patching, best first, on a sample of sites.

    `best` names the one to use for each kind of site; `refused` says why others could not be used. The order is by
    |effect|, which all estimators give; between equal ones the faster comes first.
    """

    candidates: tuple[Candidate, ...]
    refused: dict[str, str]
    sample: int

    def display(self) -> Display:
        """Name the best estimator, and list all with their agreement and their seconds."""
        rows = [
            (each.how.title, number(_order(each.overall)), number(each.overall.pearson), f"{each.seconds:.1f}")
            for each in self.candidates
        ]
        refused = [f"{name} was refused: {reason}" for name, reason in self.refused.items()]
        return Display(str(self), ("estimator", "Spearman", "Pearson", "seconds"), rows, refused)

    @property
    def best(self) -> dict[str, Estimator]:
        """The estimator that orders each kind's sites best."""
        kinds = self.candidates[0].kinds
        return {kind: max(self.candidates, key=lambda c: _order(c.kinds[kind])).how for kind in kinds}

    def __str__(self) -> str:
        first = self.candidates[0]
        by_kind = ", ".join(f"{kind}: {how.title}" for kind, how in self.best.items())
        return (
            f"Of {len(self.candidates)} estimators on {self.sample} sites patched exactly, {first.how.title} orders "
            f"them best (Spearman {number(_order(first.overall))}). By kind: {by_kind}."
        )


def recommend(
    model: Model,
    task: Task,
    *,
    sites: Sites = SITES,
    direction: str = "denoise",
    metric: str | Metric | None = None,
    sample: "Sample | None" = None,
) -> Recommendation:
    """Compare estimators with exact patching on a sample of sites, and say which to use.

    Half of the sample are the sites that any estimator ranks highest, the others are drawn at random, so that both what
    is overrated and what is missed can be seen. Sites that cannot have an effect are left out.

    Raises:
        BadInput: fewer than four sites in the sample, or no estimator can be used; else as `attribute` does.
    """
    sample = sample or Sample()
    if sample.size < 4:
        raise BadInput(f"a sample of {sample.size} sites: a correlation needs 4 at least, and 40 to be worth it.")
    guesses, refused = _guesses(model, task, {"sites": sites, "direction": direction, "metric": metric}, sample)
    if not guesses:
        raise BadInput(f"no estimator can be used here: {'; '.join(f'{k}: {v}' for k, v in refused.items())}")
    chosen = _chosen([guess for _, guess, _ in guesses], sample)
    exact = patch(model, task, sites=chosen, direction=direction, metric=metric, options=sample.options)
    found = []
    for how, guess, seconds in guesses:
        overall = compare_estimate(guess, exact)
        found.append(Candidate(how, overall, {kind: overall.only(kind) for kind in exact.kinds}, seconds))
    found.sort(key=lambda c: (-round(_order(c.overall), 3), c.seconds))
    return Recommendation(tuple(found), refused, len(chosen))


@dataclass(frozen=True)
class Sample:
    """How many sites are patched exactly, of which draw, and which estimators are compared on them."""

    size: int = 40
    seed: int = 0
    candidates: Sequence[str | Estimator] = CANDIDATES
    options: Options | None = None


def _guesses(
    model: Model, task: Task, asked: dict, sample: Sample
) -> tuple[list[tuple[Estimator, Estimate, float]], dict[str, str]]:
    found, refused = [], {}
    for each in sample.candidates:
        how, began = estimator(each), time.perf_counter()
        try:
            guess = attribute(model, task, by=how, options=sample.options, **asked)
            if how.qk and not any(site.kind in ("attn.q", "attn.k") for site in guess.sites):
                continue  # without queries and keys it is the estimator without their fix
        except (NotProved, BadInput) as error:
            refused[how.title] = str(error)
            continue
        found.append((how, guess, time.perf_counter() - began))
    return found, refused


def _chosen(guesses: Sequence[Estimate], sample: Sample) -> list:
    """Choose the sites: by turns each estimator's next best, up to half, then others at random."""
    orders = [guess.order() for guess in guesses]
    live = {i for guess in guesses for i in np.flatnonzero(np.nan_to_num(guess.scores) > 0).tolist()}
    if len(live) < 4:
        raise BadInput(f"only {len(live)} of these sites can have an effect: give more sites, 4 at least.")
    best = dict.fromkeys(place for turn in zip(*orders, strict=True) for place in turn if place in live)
    first = list(best)[: sample.size // 2]
    rest = sorted(live - set(first))
    drawn = np.random.default_rng(sample.seed).permutation(len(rest))[: sample.size - len(first)]
    return [guesses[0].sites[i] for i in (*first, *(rest[j] for j in drawn))]


def _order(found: Agreement) -> float:
    """Return the rank correlation of magnitudes; −1 where there is none."""
    value = spearman(np.abs(found.estimate), np.abs(found.exact))
    return -1.0 if np.isnan(value) else value
