"""The rules on settings that disagree: another direction, metric or corruption finds other sites."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from crosspatch.engine import Effects
from crosspatch.referee.case import STEPS, Case, Finding, changed_names, names_of
from crosspatch.referee.compare import Difference, difference
from crosspatch.referee.sources import HEIMERSHEIM, ZHANG
from crosspatch.tasks.pair import EMBEDDINGS

AGREE = 0.7  # rank correlation over weighty sites from which two settings rank alike
DIFFERS = 1 / 3  # share of the found sites on which two settings may not differ


def differs(found: Difference) -> bool:
    """Whether two settings disagree: on a sign, on a third of the found sites, or on their order."""
    return bool(found.flipped) or (bool(found.sites) and found.share >= DIFFERS) or found.correlation < AGREE


def directions(case: Case, explained: Sequence[str] = ()) -> Iterator[Finding]:
    """Warn where denoising and noising find other sites, and no gate says why."""
    pair = case.at(direction="denoise"), case.at(direction="noise")
    found = _compare(*pair, explained)
    # Gates pull the ranks apart by themselves.
    if found is None or (explained and not found.sites):
        return
    yield Finding(
        "direction",
        f"Denoising and noising disagree ({case.main.metric}): noising {_words(found)}. They answer two questions, "
        "what is enough and what is needed: say which one you claim.",
        HEIMERSHEIM,
        found.sites,
    )


def metrics(case: Case, explained: Sequence[str] = ()) -> Iterator[Finding]:
    """Warn where another metric ranks or finds sites otherwise than the main one."""
    told: dict[str, dict[str, Difference]] = {}
    for metric in case.parts("metric"):
        if metric != case.main.metric and metric not in STEPS:
            told[metric] = _by_direction(case, {"metric": metric}, explained)
    for names, words, sites in _merged(told):
        yield Finding(
            "metric",
            f"Measured by {names} instead of {case.main.metric}, a sweep {words}. Rest no claim on these sites "
            "without saying by which metric, and show both; logit difference is the one to prefer, then KL.",
            ZHANG,
            sites,
        )


def corruptions(case: Case) -> Iterator[Finding]:
    """Warn where another corruption finds other sites; say so where it asks another question."""
    same: dict[str, dict[str, Difference]] = {}
    for name in case.parts("corruption"):
        if name == case.main.corruption:
            continue
        told = _by_direction(case, {"corruption": name}, ())
        if told and case.other_question(name):
            yield _question(case, name, told)
        else:
            same[name] = told
    for names, words, sites in _merged(same):
        advice = "Rest no claim on these sites without saying by which, and show both"
        if case.main.corruption not in EMBEDDINGS and any(name in EMBEDDINGS for name in same):
            advice += "; prefer replaced tokens, since other embeddings take the model to inputs it never saw"
        yield Finding(
            "corruption",
            f"Corrupted by {names} instead of {case.main.corruption}, a sweep {words}. {advice}.",
            ZHANG,
            sites,
        )


def _question(case: Case, name: str, told: Mapping[str, Difference]) -> Finding:
    other = next(effects for setting, effects in case.run.effects.items() if setting.corruption == name)
    sites = tuple(dict.fromkeys(site for found in told.values() for site in found.sites))
    return Finding(
        "question",
        f"Corruption {name} changes {changed_names(other)}, and {case.main.corruption} changes "
        f"{changed_names(case.run.effects[case.main])} (first pair): it traces other information. That it "
        f"{_merged_words(told)} is no contradiction; say which information your claim is about.",
        HEIMERSHEIM,
        sites,
    )


def _by_direction(case: Case, change: Mapping[str, str], explained: Sequence[str]) -> dict[str, Difference]:
    """Return where a setting with one part changed disagrees with the main one, by direction."""
    found = {}
    for direction in case.parts("direction"):
        pair = case.at(direction=direction), case.at(direction=direction, **change)
        each = _compare(*pair, explained)
        if each is not None:
            found[direction] = each
    return found


def _compare(first: Effects | None, second: Effects | None, explained: Sequence[str]) -> Difference | None:
    if first is None or second is None:
        return None
    found = difference(first, second).without(explained)
    return found if differs(found) else None


def _merged(told: Mapping[str, Mapping[str, Difference]]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Merge those that differ on the same sites in the same directions: names, words, sites."""
    groups: dict[object, list[str]] = {}
    for name, found in told.items():
        if found:
            groups.setdefault(
                tuple((d, each.missed, each.extra, each.flipped) for d, each in found.items()), []
            ).append(name)
    for names in groups.values():
        found = {d: min((told[name][d] for name in names), key=_correlation) for d in told[names[0]]}
        sites = tuple(dict.fromkeys(site for each in found.values() for site in each.sites))
        yield " and ".join(names), _merged_words(found), sites


def _merged_words(found: Mapping[str, Difference]) -> str:
    """Write the differences, those of both directions once where they are the same."""
    groups: dict[object, list[str]] = {}
    for direction, each in found.items():
        groups.setdefault((each.missed, each.extra, each.flipped), []).append(direction)
    said = []
    for names in groups.values():
        lowest = min((found[name] for name in names), key=_correlation)
        said.append(f"{_words(lowest)} ({' and '.join(names)})")
    return "; ".join(said)


def _correlation(found: Difference) -> float:
    return float(np.nan_to_num(found.correlation, nan=1.0))


def _words(found: Difference) -> str:
    words = [f"misses {names_of(found.missed)}"] if found.missed else []
    words += [f"finds {names_of(found.extra)} besides"] if found.extra else []
    words += [f"gives {names_of(found.flipped)} the other sign"] if found.flipped else []
    words += [f"ranks sites otherwise, rank correlation {found.correlation:.2f}"] if found.correlation < AGREE else []
    return ", ".join(words)
