"""What is measured of every kind of site of a model of the zoo, and the rows that the page on any model has of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import crosspatch as xp
from crosspatch.modules import Stack
from crosspatch.sites import Site, split_stack
from modules.by_hand import ByHand
from modules.trials import CASES, trial

NEAR = 1e-4  # share of the largest effect by which effects may differ
OWN = 0.05  # and of the largest effect of their kind, lest weak kinds pass whatever they give
SOME = "[*, 3]"  # neurons are many
PAGE = Path(__file__).parents[2] / "docs" / "any-model.md"
TABLE = re.compile(r"(?<=<!-- families -->\n).*(?=<!-- end of families -->)", re.DOTALL)
PARTS = ("resid", "attn", "cross", "mlp")
ORDER = ("pre", "in", "q", "k", "v", "head", "hidden", "out", "post")
# The zoo's own nets, by what they are.
PLAIN = {"mlp": "MLP with skips", "cnn": "CNN with skips", "gru": "GRU policy"}


@dataclass(frozen=True)
class Measured:
    """What every kind passes, with the stacks of the model; and what differs: (kind, check) and by how much."""

    stacks: Sequence[Stack]
    passed: dict[str, tuple[str, ...]]
    failures: dict[tuple[str, str], float]


def measure(name):
    """Measure each kind of a model of the zoo in every layer that has it."""
    given = trial(name)
    sites = {}
    for stack in given.stacks:
        for kind in stack.kinds:
            layers = [at for at, layer in enumerate(stack.places) if split_stack(kind)[1] in layer]
            sites[kind] = [Site(kind, layer) for layer in layers]
    off = {check: how(given, sites) for check, how in {"capture": capture, "write": write, "sweep": sweep}.items()}
    passed = {kind: tuple(check for check in off if off[check][kind] <= 1) for kind in sites}
    failures = {(kind, check): off[check][kind] for kind in sites for check in off if check not in passed[kind]}
    return Measured(given.stacks, passed, failures)


def capture(given, sites):
    """Compare what `capture_any` gives with what a plain hook sees: 0 where it is that to the bit, else infinite."""
    hand = ByHand(given)
    every = [site for each in sites.values() for site in each]
    found = xp.capture_any(given, every)
    hand.look([hand.spot(site) for site in every])
    same = {site: torch.equal(found[site], hand.value(site)) for site in every}
    return {kind: 0.0 if all(same[site] for site in each) else np.inf for kind, each in sites.items()}


def write(given, sites):
    """Compare one write of a kind, whole and in all layers at once, with plain hooks in one forward."""
    hand = ByHand(given, "noise")
    groups = {kind: [Site(kind, site.layer, None, "all") for site in each] for kind, each in sites.items()}
    named = [xp.Group(kind, tuple(each)) for kind, each in groups.items()]
    raw = xp.patch_any(given, sites=named, direction="noise").raw
    hand.look([hand.spot(site) for each in groups.values() for site in each])
    most = np.abs(raw).max()
    return {kind: distance(row, hand.effect(*groups[kind]), most) for kind, row in zip(groups, raw, strict=True)}


def sweep(given, sites):
    """Compare the strongest effect of a sweep in each layer with one forward and a plain hook."""
    hand = ByHand(given)
    effects = xp.patch_any(given, sites=", ".join(kind + SOME * kind.endswith("hidden") for kind in sites))
    assert not effects.warnings
    strength, strongest = np.abs(effects.raw).max(axis=1), {}
    for number in np.argsort(strength, kind="stable"):
        strongest[effects.sites[number].kind, effects.sites[number].layer] = number
    chosen = {kind: [strongest[kind, site.layer] for site in each] for kind, each in sites.items()}
    hand.look([hand.spot(effects.sites[number]) for each in chosen.values() for number in each])
    expected = {n: hand.effect(effects.sites[n]) for each in chosen.values() for n in each}
    most = strength.max()
    return {
        kind: distance(effects.raw[each], np.stack([expected[n] for n in each]), most) for kind, each in chosen.items()
    }


def distance(found, expected, most):
    """Return how far effects are apart, in units of what may be: a share of the largest of all, and of their own."""
    allowed = min(NEAR * most, OWN * np.abs(expected).max())
    return float(np.abs(found - expected).max() / max(allowed, 1e-30))


def family(name):
    """Return what the table calls a model of the zoo."""
    return PLAIN.get(name, f"`{type(trial(name).module).__name__}`")


def rows(name, found):
    """Write a model's rows of the table, one a stack."""
    return [
        f"| {family(name)} | {stack.name} | " + " | ".join(cell(stack, part, found.passed) for part in PARTS) + " |"
        for stack in found.stacks
    ]


def cell(stack, part, passed):
    """Write the kinds of one part, with the first letters of what they passed."""
    alike = {}
    for name in sorted(
        (split_stack(kind)[1] for kind in stack.kinds), key=lambda name: ORDER.index(name.split(".")[1])
    ):
        if name.startswith(f"{part}."):
            alike.setdefault(passed[stack.kind(name)], []).append(name.split(".")[1])
    return "; ".join(f"{' '.join(names)} · {''.join(each[0] for each in checks)}" for checks, names in alike.items())


def page_rows(title=None):
    """Return the rows of the page's table, of all families or of one."""
    lines = TABLE.search(PAGE.read_text(encoding="utf-8"))[0].splitlines()[2:]
    return [line for line in lines if title is None or line.startswith(f"| {title} |")]


def write_table():
    """Measure all models and write the page's table anew."""
    head = ["family", "stack", *PARTS]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in CASES:
        lines += rows(name, measure(name))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: "\n".join([*lines, ""]), text), encoding="utf-8")
