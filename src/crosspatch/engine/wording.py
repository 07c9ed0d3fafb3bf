"""Say in words what effects show, and warn of the known pitfalls of patching; pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from crosspatch.core.names import counted
from crosspatch.draw import number, p_value, with_interval
from crosspatch.engine.tables import Row
from crosspatch.sites import Edge, Group

METRIC_WORDS = {
    "logit_diff": "logit difference",
    "prob": "probability of the answer",
    "logprob": "log-probability of the answer",
    "kl": "KL divergence from the clean run",
    "rank": "rank of the answer",
    "right_logit": "logit of the answer",
}
FEWEST = 8  # pairs below which intervals are too narrow to trust
LEVEL = 0.05
ONE_PAIR = "Only 1 pair: there is no interval and no test, and another pair may say something else."


@dataclass(frozen=True)
class Claim:
    """What a finding is made of: the strongest site, whether it stands, and how it was measured.

    `testable` says whether so many pairs can reach p < 0.05 at all. `familywise` is the p-value of the test of all
    sites together, NaN where each was tested for itself.
    """

    row: Row | None
    stands: bool
    testable: bool
    familywise: float
    whole: bool  # the site alone carries the whole difference between the runs, example by example
    direction: str
    metric: str
    unit: str
    normalised: bool
    n: int
    act: str = ""  # what was done to the site, such as "Restoring"; from the direction if empty


def metric_words(metric: str) -> str:
    """Name a metric in words."""
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def sentence(claim: Claim) -> str:
    """Write the finding as one sentence with its number, its interval and how sure it is."""
    pairs = f"{counted(claim.n, 'pair')}, {claim.direction}"
    what, row = metric_words(claim.metric), claim.row
    if row is None:
        return f"No site was run, so nothing is known of the {what} ({pairs})."
    if not claim.testable:
        pairs += ": too few for a test" if claim.n > 1 else ": no interval, no test"
    elif claim.stands and not np.isnan(claim.familywise):
        pairs += f"; family-wise p {p_value(claim.familywise)}"
    if claim.stands or not (claim.testable or row.low <= 0 <= row.high):
        return f"{_act(claim)} ({pairs})."
    size = _size(claim) + ("" if np.isnan(row.q) else f", q {p_value(row.q)}")
    return f"No site moves the {what} by more than chance would ({pairs}); the largest is {row.site}: {size}."


def _act(claim: Claim) -> str:
    row, what, noise = claim.row, metric_words(claim.metric), claim.direction == "noise"
    assert row is not None
    start = _start(claim, row)
    if not claim.normalised:
        verb = "raises" if row.effect >= 0 else "lowers"
        return f"{start} {verb} the {what} by {_size(_unsigned(claim))} {claim.unit}".rstrip()
    if claim.whole:
        other = "corrupted" if noise else "clean"
        return f"{start} gives the {what} of the whole {other} run: {_size(claim)}"
    if row.effect >= 0:
        return f"{start} {'removes' if noise else 'recovers'} {_size(claim)} of the {what}"
    verb = "strengthens the behaviour" if noise else "hurts it further"
    return f"{start} {verb}: {_size(claim)} of the {what}"


def _start(claim: Claim, row: Row) -> str:
    """Say what was done to which site."""
    act = claim.act or acting(claim.direction, {})
    if isinstance(row.site, Group):
        cut = any(isinstance(member, Edge) for member in row.site.members)
        return f"{'Cutting' if cut else act} {_place(row)} together"
    return f"{act} {_place(row)} alone"


def acting(direction: str, settings: Mapping[str, Any]) -> str:
    """Say what is done to a site, by the direction and the settings that a result stores."""
    if settings.get("estimator"):
        return f"By estimate ({settings['estimator_title']}), {acting(direction, {}).lower()}"
    if settings.get("ablation"):
        return f"{str(settings['ablation']['by']).capitalize()}-ablating"
    if settings.get("to"):
        return f"{'Corrupting' if direction == 'noise' else 'Restoring'} the paths to {settings['to']} from"
    return "Corrupting" if direction == "noise" else "Restoring"


def _unsigned(claim: Claim) -> Claim:
    """Turn a fall into its size, for sentences whose verb carries the sign."""
    row = claim.row
    if row is None or row.effect >= 0:
        return claim
    return replace(claim, row=replace(row, effect=-row.effect, low=-row.high, high=-row.low))


def _size(claim: Claim) -> str:
    assert claim.row is not None
    return with_interval(claim.row.effect, claim.row.low, claim.row.high)


def _place(row: Row) -> str:
    position = row.site.position
    if isinstance(row.site, Group):
        return row.site.name
    name = str(replace(row.site, position=None))
    if position is None:
        return name
    if position == "all":
        return f"{name} at all positions together"
    if isinstance(position, str):
        return f"{name} at {position}"
    return f"{name} at position {position}" + (f" ({row.hint})" if row.hint else "")


def ends(direction: str, *, normalised: bool) -> tuple[str, str]:
    """Give the words for negative and positive effects on a colour bar."""
    if not normalised:
        return "lowers", "raises"
    return ("strengthens", "removes") if direction == "noise" else ("hurts", "restores")


def normalisation_words(direction: str, metric: str) -> str:
    """Say how effects are normalised."""
    base, source = ("clean", "corrupted") if direction == "noise" else ("corrupted", "clean")
    return (
        f"Effect = ({metric_words(metric)} of the patched run − that of the {base} run), averaged over the pairs and "
        f"divided by the average gap ({source} run − {base} run). 0 is the {base} run, 1 is the {source} run."
    )


def pitfalls(
    *,
    base: Float[np.ndarray, " example"],
    source: Float[np.ndarray, " example"],
    raw: Float[np.ndarray, "site example"],
    direction: str,
    metric: str,
) -> tuple[str, ...]:
    """List the known pitfalls of patching that these numbers fall into, one sentence each."""
    clean, corrupt = (base, source) if direction == "noise" else (source, base)
    found = [
        *_few(len(base)),
        *_wrong_answers(clean, metric),
        *_weak_gap(clean - corrupt, metric),
        *_floor(base, metric),
        *_holes(raw),
    ]
    return tuple(found)


def _few(n: int) -> list[str]:
    if n >= FEWEST:
        return []
    if n == 1:
        return [ONE_PAIR]
    return [f"Only {n} pairs: intervals from fewer than {FEWEST} pairs are too narrow."]


def _wrong_answers(clean: Float[np.ndarray, " example"], metric: str) -> list[str]:
    """A logit difference has a right sign; other metrics have none."""
    wrong = int((clean <= 0).sum())
    if metric != "logit_diff" or not wrong:
        return []
    return [
        f"The model prefers the wrong answer in {wrong} of {len(clean)} clean prompts: their effects do not explain "
        "a right answer. Keep only pairs that the model gets right."
    ]


def _weak_gap(gap: Float[np.ndarray, " example"], metric: str) -> list[str]:
    gap = gap[~np.isnan(gap)]
    if not len(gap):
        return ["No pair has both a clean and a corrupted run."]
    mean, spread = float(gap.mean()), float(gap.std(ddof=1)) if len(gap) > 1 else 0.0
    if mean == 0:
        return [f"Clean and corrupted runs have the same mean {metric_words(metric)}: effects cannot be normalised."]
    if abs(mean) >= spread:
        return []
    return [
        f"The gap between clean and corrupted runs, {number(mean)}, is smaller than its spread over the pairs, "
        f"{number(spread)}: normalised effects are unsure. Read the raw ones."
    ]


def _floor(base: Float[np.ndarray, " example"], metric: str) -> list[str]:
    if metric != "prob" or not len(base) or not float(np.nanmean(base)) < 0.05:
        return []
    lowest = number(-float(np.nanmean(base)), 3)
    return [
        "A probability near 0 in the base run cannot see negative components: no effect can fall below "
        f"-P(base) = {lowest}. Use logit_diff to find them."
    ]


def _holes(raw: Float[np.ndarray, "site example"]) -> list[str]:
    missing = np.isnan(raw)
    empty, partial = int(missing.all(axis=1).sum()), int((missing.any(axis=1) & ~missing.all(axis=1)).sum())
    texts = []
    if empty:
        texts.append(f"{empty} of {len(raw)} sites were not run.")
    if partial:
        texts.append(f"{partial} of {len(raw)} sites lack some pairs: their mean is over the pairs that they have.")
    return texts
