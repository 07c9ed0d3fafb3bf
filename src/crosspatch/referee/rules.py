"""The rules of the referee: what known pitfall a set of patching results falls into, and which paper says so."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from crosspatch.core.stats import bootstrap_mean
from crosspatch.engine import Effects
from crosspatch.referee.case import STEPS, Case, Finding, names_of
from crosspatch.referee.compare import SHARE, Inflation, found_in, inflations, single_sites
from crosspatch.referee.disagreement import corruptions, directions, metrics
from crosspatch.referee.grid import Setting
from crosspatch.referee.sources import HEIMERSHEIM, HYDRA, OWN, ZHANG

SMALL_ROOM = 0.05  # of a probability
INFLATED = 1.2
TIMES = 3.0  # one effect is "only" in one direction where it is so many times the other
ALIKE, IN_PART = 0.25, 0.8
MADE_GOOD = 0.7  # share of the direct effect that is left of the total effect, or less


def findings_of(case: Case) -> tuple[Finding, ...]:
    """Apply every rule."""
    return tuple(finding for rule in RULES for finding in rule(case))


def cautions(case: Case) -> Iterator[Finding]:
    """Pass on what the main sweeps warn of themselves: few pairs, wrong answers, a weak gap."""
    sweeps = [case.run.effects.get(s) for s in case.run.effects if (s.corruption, s.metric) == _own(case)]
    for text in dict.fromkeys(text for effects in sweeps if effects is not None for text in effects.cautions()):
        yield Finding("caution", text, OWN)


def _own(case: Case) -> tuple[str, str]:
    return case.main.corruption, case.main.metric


def breaks(case: Case) -> Iterator[Finding]:
    """Warn of corruptions that do not break the behaviour: nothing can be restored, so comparisons leave them out."""
    settings = [s for s in case.run.effects if s.metric == case.main.metric and case.void(s)]
    names = list(dict.fromkeys(s.corruption for s in settings))
    if names:
        gaps = ", ".join(f"{s.corruption} {abs(case.run.effects[s].mean_gap):.2f}" for s in _first_of_each(settings))
        yield Finding(
            "breaks",
            f"Corrupting by {' or '.join(names)} hardly moves {case.main.metric} (gap {gaps}; by "
            f"{case.main.corruption} {abs(case.run.effects[case.main].mean_gap):.2f}): there is next to nothing to "
            "restore or to lose. Comparisons leave it out; change more or other tokens.",
            HEIMERSHEIM,
        )


def _first_of_each(settings: Sequence[Setting]) -> list[Setting]:
    return list({setting.corruption: setting for setting in reversed(settings)}.values())[::-1]


def gates(case: Case) -> Iterator[Finding]:
    """Tell AND, OR and ADDER structure from what denoising and noising find."""
    denoise, noise = (case.at(direction=direction) for direction in ("denoise", "noise"))
    if denoise is None or noise is None:
        return
    for gate, sites in gate_sites(denoise, noise).items():
        if sites:
            text = _GATE_WORDS[gate].format(sites=names_of([f"{site} ({numbers})" for site, numbers in sites.items()]))
            yield Finding(f"gate.{gate}", text, HEIMERSHEIM, tuple(sites))


_GATE_WORDS = {
    "AND": "Needed, not enough (AND): noising {sites} breaks the behaviour, denoising one alone restores little. "
    "Denoise them together with what they need, and report noising.",
    "OR": "Enough, not needed (OR): denoising {sites} restores the behaviour, noising one alone does little harm, so "
    "something else stands in for it. Noise them together with their stand-ins, and report denoising.",
    "ADDER": "Parts of a sum (ADDER): denoising and noising move the behaviour alike, and in part, at {sites}. Patch "
    "them together to see how much they carry.",
}


def gate_sites(denoise: Effects, noise: Effects) -> dict[str, dict[str, str]]:
    """Sort strong sites by their two effects: AND (noise only), OR (denoise only), ADDER (both alike, and in part).

    A site is strong where one effect is a tenth of the gap or more; "only" means three times the other, and more than
    it on a 95 % interval over pairs. Sites that do all of it alone both ways are on the only road and no evidence for a
    gate; a single part makes no sum.
    """
    one, two = single_sites(denoise), single_sites(noise)
    found: dict[str, dict[str, str]] = {"AND": {}, "OR": {}, "ADDER": {}}
    for row, (site, restored, removed) in enumerate(zip(one.sites, one.mean(), two.mean(), strict=True)):
        if not max(restored, removed) >= SHARE or min(restored, removed) < -SHARE:
            continue
        gate = ""
        if removed >= TIMES * restored and surely_above(two.values[row], one.values[row]):
            gate = "AND"
        elif restored >= TIMES * removed and surely_above(one.values[row], two.values[row]):
            gate = "OR"
        elif abs(restored - removed) <= ALIKE * max(restored, removed) and max(restored, removed) < IN_PART:
            gate = "ADDER"
        if gate:
            found[gate][str(site)] = f"denoise {restored:.2f}, noise {removed:.2f}"
    return found | ({} if len(found["ADDER"]) > 1 else {"ADDER": {}})


def surely_above(first: Float[np.ndarray, " example"], second: Float[np.ndarray, " example"]) -> bool:
    """Whether one effect is above another on a 95 % interval over pairs, or simply above for a single pair."""
    low = float(bootstrap_mean((first - second).astype(np.float64)[None])[0][0])
    return low > 0 if not np.isnan(low) else bool(np.nanmean(first) > np.nanmean(second))


def backup(case: Case) -> Iterator[Finding]:
    """Find components whose loss is made good by others: their direct effect exceeds their total effect."""
    total, direct = case.at(direction="noise"), case.run.direct
    if total is None or direct is None:
        return
    place = {str(site): number for number, site in enumerate(total.sites)}
    sites: dict[str, str] = {}
    for site, alone, values in zip(map(str, direct.sites), direct.mean().tolist(), direct.values, strict=True):
        if site not in place or not alone >= SHARE:
            continue
        own = total.values[place[site]]
        whole = float(np.nanmean(own)) if not np.isnan(own).all() else float("nan")
        if whole <= MADE_GOOD * alone and surely_above(values, own):
            sites[site] = f"{site} (direct {alone:.2f}, total {whole:.2f})"
    if sites:
        yield Finding(
            "backup",
            f"Noising {names_of(list(sites.values()))} costs less than they write to the logits: when they are lost, "
            "later components make up for it, or those that work against them fall silent. Noising understates them; "
            "report direct effects too, or noise them together with later ones.",
            HYDRA,
            tuple(sites),
        )


def saturation(case: Case) -> Iterator[Finding]:
    """Warn where a probability has no room to move in the direction of components that work against the behaviour."""
    said, missed = [], {}
    for direction in case.parts("direction"):
        prob, logits = case.at(direction=direction, metric="prob"), case.at(direction=direction, metric="logit_diff")
        if prob is None:
            continue
        start = float(np.nanmean(prob.base))
        room = start if direction == "denoise" else 1 - start
        hidden = [] if logits is None else sorted(found_in(logits).hurting - found_in(prob).hurting)
        if room < SMALL_ROOM and (hidden or logits is None):
            edge = "fall below 0" if direction == "denoise" else "rise above 1"
            said.append(
                f"{direction}: the answer's probability starts at {start:.3f} and cannot {edge}"
                + (f", and does not find {names_of(hidden)}, which the logit difference finds" if hidden else "")
            )
            missed |= dict.fromkeys(hidden)
    if said:
        text = "Probability has next to no room for components that work against the behaviour. "
        text += f"{_sentence(said)}. Look for these by logit difference."
        yield Finding("saturation", text, ZHANG, tuple(missed))


def inflation(case: Case) -> Iterator[Finding]:
    """Warn where windows of layers patched jointly do more than their layers one by one."""
    found: list[tuple[str, Inflation]] = []
    for direction in case.parts("direction"):
        effects = case.at(direction=direction)
        found += [(direction, each) for each in (inflations(effects) if effects is not None else ())]
    found = [(d, each) for d, each in found if abs(each.joint) >= SHARE and each.ratio >= INFLATED]
    if found:
        said = [
            f"{direction}: {each.window} gives {each.joint:.2f} jointly, the best sum over {each.width} single layers "
            f"{each.summed:.2f}" + (f" ({each.ratio:.1f} times)" if np.isfinite(each.ratio) else "")
            for direction, each in found
        ]
        yield Finding(
            "window",
            f"Windows of layers do more than their layers one by one. {_sentence(said)}. The window shows that these "
            "layers work together, not where; patch single layers first, and show the sums beside windows.",
            ZHANG,
            tuple(dict.fromkeys(each.window for _, each in found)),
        )


def steps(case: Case) -> Iterator[Finding]:
    """Say that yes-or-no metrics move in steps."""
    main = case.at()
    for name in (metric for metric in case.parts("metric") if metric in STEPS and metric != case.main.metric):
        effects = case.at(metric=name)
        still = [] if effects is None or main is None else sorted(found_in(main).all - _moved(effects))
        if still:
            yield Finding(
                "steps",
                f"{name} counts in whole steps and does not move on any pair for {names_of(still)}, which "
                f"{case.main.metric} finds: use it to confirm a set of sites, not to look for single ones.",
                HEIMERSHEIM,
                tuple(still),
            )


def _moved(effects: Effects) -> set[str]:
    return {str(site) for site, row in zip(effects.sites, np.nan_to_num(effects.raw), strict=True) if row.any()}


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


Rule = Callable[[Case], Iterator[Finding]]


def _unexplained_metrics(case: Case) -> Iterator[Finding]:
    """Warn where another metric ranks or finds sites otherwise than the main one."""
    return metrics(case, explained=[site for finding in saturation(case) for site in finding.sites])


def _unexplained_directions(case: Case) -> Iterator[Finding]:
    """Warn where denoising and noising find other sites, and no gate says why."""
    explained = (*gates(case), *backup(case))
    return directions(case, explained=[site for finding in explained for site in finding.sites])


RULES: Sequence[Rule] = (
    *(cautions, breaks, gates, backup, _unexplained_directions),
    *(saturation, _unexplained_metrics, corruptions, inflation, steps),
)
RULE_NAMES: Mapping[str, str] = {
    rule.__name__.removeprefix("_unexplained_"): (rule.__doc__ or "").splitlines()[0] for rule in RULES
}
