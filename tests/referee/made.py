"""Grids made by hand: effects of forty heads and of MLPs, of which some stand out as told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from builders import small_effects
from crosspatch.engine import Effects
from crosspatch.engine.groups import window
from crosspatch.referee import Audit, Setting
from crosspatch.referee.case import Case, Finding
from crosspatch.referee.grid import GridRun, main_setting
from crosspatch.referee.rules import findings_of
from crosspatch.sites import Site, parse_site

HEADS = tuple(Site("attn.head", layer, head, "end") for layer in range(10) for head in range(4))
MLPS = tuple(Site("mlp.out", layer, None, "end") for layer in range(10))
A, B, C = "attn.head[3, 1]@end", "attn.head[5, 2]@end", "attn.head[7, 0]@end"
NEGATIVE = "attn.head[9, 3]@end"
SERIAL = {A: 0.9, B: 0.95, C: 0.85}  # three heads on one road: each carries nearly all, both ways
Strong = Mapping[str, float]


def heads(strong: Strong, *, n: int = 12, seed: int = 0, gap: float = 2.0, **changes: object) -> Effects:
    """Effects of forty heads: normalised means as told, a little noise elsewhere; `spread` scatters pairs."""
    rng = np.random.default_rng(seed)
    spread = float(changes.pop("spread", 0.02))
    named = {str(site) for site in HEADS}
    assert set(strong) <= named, set(strong) - named
    # The little that other heads do is the model's own, so it is the same in every setting.
    little = np.random.default_rng(7).normal(0, 0.004, len(HEADS))
    means = np.array([strong.get(str(site), noise) for site, noise in zip(HEADS, little, strict=True)])
    scatter = rng.normal(0, 1, (len(HEADS), n)) * spread * np.maximum(np.abs(means), 0.01)[:, None]
    raw = (means[:, None] + scatter - scatter.mean(1, keepdims=True)) * gap
    ends = {"base": np.full(n, -gap / 2, np.float32), "source": np.full(n, gap / 2, np.float32)}
    if changes.get("direction") == "noise":  # the clean run prefers the right answer
        ends, raw = {"base": ends["source"], "source": ends["base"]}, -raw
    return small_effects(HEADS, raw, n, **{**ends, "layers": 10, **changes})


def grid(
    strong: Strong | Callable[[Setting], Strong] = SERIAL,
    *,
    corruptions: Sequence[str] = ("replace", "gaussian"),
    metrics: Sequence[str] = ("logit_diff", "prob"),
    directions: Sequence[str] = ("denoise", "noise"),
    direct: Strong | None = None,
    **changes: object,
) -> GridRun:
    """A grid whose settings find what they are told to find."""
    settings = [Setting(c, d, m) for c in corruptions for d in directions for m in metrics]
    found = {
        s: heads(
            strong(s) if callable(strong) else strong,
            seed=number,
            direction=s.direction,
            metric=s.metric,
            **changes,
        )
        for number, s in enumerate(settings)
    }
    edges = None if direct is None else heads(direct, seed=99, direction="noise", **changes)
    return GridRun(found, edges, forwards=30.0, single=15.0)


def with_prob(run: GridRun, base: float, source: float, *, direction: str = "denoise") -> GridRun:
    """Let the probabilities of a direction start and end at given values."""
    found = dict(run.effects)
    for setting, effects in run.effects.items():
        if (setting.metric, setting.direction) == ("prob", direction):
            scale = (source - base) / effects.mean_gap
            ends = {name: np.full(effects.n, v, np.float32) for name, v in (("base", base), ("source", source))}
            found[setting] = replace(effects, raw=(effects.raw * scale).astype(np.float32), **ends)
    return replace(run, effects=found)


def with_windows(effects: Effects, single: Sequence[float], joint: Mapping[tuple[int, int], float]) -> Effects:
    """Effects of ten MLPs and of windows (first layer, width), normalised."""
    groups = tuple(window("mlp.out", first, width, place="end") for first, width in joint)
    raw = np.repeat(np.array([*single, *joint.values()])[:, None] * effects.mean_gap, effects.n, axis=1)
    return replace(effects, sites=(*MLPS, *groups), raw=raw.astype(np.float32))


def audit_of(run: GridRun) -> Audit:
    return Audit(run, {"model": "m"})


def judge(run: GridRun) -> dict[str, list[Finding]]:
    """All findings by rule."""
    found: dict[str, list[Finding]] = {}
    for finding in findings_of(Case(run, main_setting(tuple(run.effects)))):
        found.setdefault(finding.rule, []).append(finding)
    return found


def site(text: str) -> Site:
    return parse_site(text)
