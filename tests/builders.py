"""Test data that looks like the real thing: results of sweeps, made without a model."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crosspatch.engine.effects import Effects, ExampleView
from crosspatch.lenses import HeadPatterns
from crosspatch.sites import Site

NAMES = ("Mary", "John", "Anna", "Paul", "Lucy", "Mark", "Emma", "Tom", "Kate", "Jack")
PLACES, THINGS = ("store", "park", "school"), ("drink", "book", "ring")
IOI_NAMES = {"IO": 2, "S1": 4, "S1+1": 5, "S2": 10, "end": 14}
STREAMS = ("resid.pre", "attn.out", "mlp.out")


def ioi_example(number: int) -> ExampleView:
    """One sentence of indirect object identification; the corrupted one repeats another name."""
    io, subject, other = (NAMES[(number * step + shift) % len(NAMES)] for step, shift in ((3, 0), (3, 1), (3, 4)))
    place, thing = PLACES[number % 3], THINGS[number // 3 % 3]
    start = ("<bos>", "When", f" {io}", " and", f" {subject}", " went", " to", " the", f" {place}", ",")
    end = (" gave", " a", f" {thing}", " to")
    return ExampleView((*start, f" {subject}", *end), (*start, f" {other}", *end), f" {io}", f" {subject}", IOI_NAMES)


def make_examples(n: int) -> tuple[ExampleView, ...]:
    """List n sentences of one template."""
    return tuple(ioi_example(number) for number in range(n))


def stream_profile(kind: str, layers: int, position: int) -> np.ndarray:
    """Give the effect expected at each layer: information waits at S2 and moves to the end half-way up."""
    depth = np.arange(layers) / max(layers - 1, 1)
    moved = 1 / (1 + np.exp(-14 * (depth - 0.58)))
    pre = {
        10: 1 - moved,
        14: moved * 1.02 + 0.02 * depth,
        12: 0.08 * depth * (1 - moved),
        11: 0.05 * (1 - moved) * depth,
    }
    at = pre.get(position, np.zeros(layers))
    if kind == "resid.pre":
        return at
    bump = np.exp(-((depth - 0.58) ** 2) / 0.02)
    sign = {"attn.out": {14: 0.34, 10: -0.06}, "mlp.out": {14: 0.12 * np.cos(9 * depth), 10: 0.16 * (1 - depth)}}
    return sign.get(kind, {}).get(position, 0.0) * bump


def make_effects(
    *,
    layers: int = 18,
    positions: int = 15,
    kinds: Sequence[str] = STREAMS,
    heads: int = 0,
    n: int = 24,
    direction: str = "denoise",
    seed: int = 0,
) -> Effects:
    """Make the effects of kinds × layers × positions, and of `heads` heads a layer at the end, on n pairs."""
    rng = np.random.default_rng(seed)
    sites, means = [], []
    for kind in kinds:
        for layer in range(layers):
            for position in range(positions):
                sites.append(Site(kind, layer, None, position))
                means.append(float(np.broadcast_to(stream_profile(kind, layers, position), layers)[layer]))
    for layer in range(layers):
        for head in range(heads):
            sites.append(Site("attn.head", layer, head, "end"))
            strong = {(11, 2): 0.41, (12, 0): 0.27, (13, 3): -0.22, (10, 1): 0.18, (15, 2): -0.09}
            means.append(strong.get((layer, head), 0.0) + 0.01 * rng.standard_normal())
    clean = rng.normal(3.4, 0.6, n).astype(np.float32)
    corrupt = rng.normal(-2.6, 0.7, n).astype(np.float32)
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    gap = source - base
    mean = np.array(means, dtype=np.float64)[:, None]
    raw = (
        mean * gap
        + 0.09 * np.abs(mean) * rng.standard_normal((len(sites), n))
        + 0.01 * rng.standard_normal((len(sites), n))
    )
    # Before the first differing token both runs agree: the engine knows these effects without running them.
    early = np.array([isinstance(site.position, int) and site.position < 10 for site in sites])
    raw[early] = 0.0
    return Effects(
        sites=tuple(sites),
        raw=raw.astype(np.float32),
        base=base,
        source=source,
        direction=direction,
        metric="logit_diff",
        metric_unit="logits",
        model="gemma-3-270m",
        task="ioi",
        layers=layers,
        examples=make_examples(n),
        warnings=(),
        provenance=make_provenance(seed),
    )


def make_provenance(seed: int = 0) -> dict[str, object]:
    """Describe a run as the engine does."""
    return {
        "crosspatch": "0.1.0",
        "python": "3.11.9",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"},
        "platform": "Linux x86_64",
        "commit": None,
        "time": "2026-01-02T03:04:05+00:00",
        "command": "crosspatch patch gemma-3-270m --task ioi --sites 'resid.pre, attn.out, mlp.out' --n 24",
        "seed": seed,
        "settings": {"sites": "resid.pre@*, attn.out@*, mlp.out@*, attn.head@end", "direction": "denoise", "n": 24},
        "model_hash": "sha256:5b1f0c7e9a3d",
        "data_hash": "sha256:0a41e6c2b77f",
        "device": "cpu",
        "timings": {"open": 1.92, "runs": 0.41, "sweep": 6.83},
        "plan": {"forwards": 7.4, "forwards_saved": 19433.0, "peak_bytes": 412000000},
    }


def with_holes(effects: Effects, *, share: float = 0.1, seed: int = 1) -> Effects:
    """Lose some sites wholly and single pairs of others, as an interrupted sweep would."""
    rng = np.random.default_rng(seed)
    raw = effects.raw.copy()
    raw[rng.random(len(raw)) < share] = np.nan
    raw[rng.random(raw.shape) < share / 2] = np.nan
    return replace(effects, raw=raw)


def small_effects(sites: Sequence[Site] | None = None, raw: object = None, n: int = 8, **changes: object) -> Effects:
    """Make effects of a few sites: a gap of 2 in every pair and half of it restored, unless told otherwise."""
    sites = [Site("resid.pre", layer, None, 10) for layer in range(2)] if sites is None else sites
    values = np.full((len(sites), n), 1.0) if raw is None else np.asarray(raw, dtype=float)
    settings = {
        "base": np.full(n, -1.0, np.float32),
        "source": np.full(n, 1.0, np.float32),
        "direction": "denoise",
        "metric": "logit_diff",
        "metric_unit": "logits",
        "model": "m",
        "task": "t",
        "layers": 2,
        "examples": make_examples(n),
        **changes,
    }
    return Effects(sites=tuple(sites), raw=values.astype(np.float32), **settings)


def make_patterns(effects: Effects, *, heads: int = 4, pairs: int = 8, runs: Sequence[str] = ("clean", "corrupt"),
                  seed: int = 0) -> HeadPatterns:  # fmt: skip
    """Make causal attention of all heads on the first pairs of effects; head [11, 2] looks from the end at S1."""
    rng = np.random.default_rng(seed)
    chosen = tuple((layer, head) for layer in range(effects.layers) for head in range(heads))
    patterns, tokens, written = [], [], []
    for example in effects.examples[:pairs]:
        n = len(example.clean_tokens)
        written.append(np.random.default_rng(n).gamma(4.0, 1.0, (len(runs), len(chosen), n)).astype(np.float32))
        written[-1][..., 0] = 0.1  # the first key is attended to for nothing
        scores = rng.normal(0, 2, (len(runs), len(chosen), n, n)) + 3 * (np.arange(n) == 0)
        if (11, 2) in chosen and n == 15:
            scores[0, chosen.index((11, 2)), 14, 4] = 9.0
        weights = np.exp(scores) * np.tri(n)
        weights /= weights.sum(-1, keepdims=True)
        patterns.append(np.rint(weights * 255).astype(np.uint8))
        tokens.append(tuple(getattr(example, f"{run}_tokens") for run in runs))
    about = {"model": effects.model, "task": effects.task, "layers": effects.layers, "pairs": effects.n}
    shape = {"heads": heads, "kv_heads": 1, "chosen": chosen, "runs": tuple(runs)}
    return HeadPatterns(**about, **shape, patterns=tuple(patterns), tokens=tuple(tokens), sizes=tuple(written))
