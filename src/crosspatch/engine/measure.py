"""Measure a sweep beside the ways it replaces: equal numbers first, then seconds and share of the processor's speed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from torch import Tensor

from crosspatch.draw import Display, Displayed
from crosspatch.engine.by_hand import by_hand, one_batch, one_forward
from crosspatch.engine.effects import Effects
from crosspatch.engine.patching import patch, plan_patch
from crosspatch.engine.select import select_single
from crosspatch.models.blocks import block_list
from crosspatch.models.model import Model
from crosspatch.models.weights import plain
from crosspatch.sites import Site
from crosspatch.tasks import Task

ONE_PASS, ONE_FORWARD, ONE_BATCH = "one pass", "one forward a site", "one batch a layer"
PRODUCTS = "matrix products"
# Numbers count as equal up to this share of the largest effect, by bytes of a parameter. In half precision the same
# sums in another order differ by some per cent of an effect.
EQUAL = {8: 1e-6, 4: 1e-3, 2: 0.2}
# Tokens at which matrix products are as fast as they get.
MANY = {"cpu": 2048, "cuda": 1 << 14}


@dataclass(frozen=True, repr=False)
class Row(Displayed):
    """One way to run a sweep: seconds of the whole sweep in each repetition, and how its numbers compare.

    Where only `timed` of `sites` sites were run, `seconds` is extrapolated: cost a site × sites. `error` is the largest
    difference from the one-pass numbers relative to the largest effect; beyond `allowed` there is no `ratio`, which is
    this way's seconds over the one-pass seconds of the same repetition (median). The one-pass row has `flops`, its
    multiplications and additions, and `limit`, the most of them a second in bare products of the block's own shapes.
    """

    way: str
    seconds: tuple[float, ...]
    timed: int
    sites: int
    error: float
    allowed: float
    ratio: float | None
    flops: int | None = None
    limit: float | None = None

    def display(self) -> Display:
        """Say how long this way takes and how its numbers compare."""
        rows = [
            ("seconds, median", f"{median(self.seconds):.3g}"),
            ("times the one pass", "–" if self.ratio is None else f"{self.ratio:.3g}"),
            ("sites run", f"{self.timed} of {self.sites}"),
            ("largest difference", f"{self.error:.1e}"),
        ]
        return Display(self.way, ("what", "how much"), rows)

    @property
    def limit_share(self) -> float | None:
        """Speed of the best repetition over that of bare matrix products."""
        return self.flops / min(self.seconds) / self.limit if self.flops and self.limit else None


@dataclass(frozen=True)
class Way:
    """A way to run a sweep: a function that returns the metric after each patch `[site, pair]`, and its sites."""

    name: str
    run: Callable[[], np.ndarray]
    sites: Sequence[Site]


def compare(
    model: Model,
    task: Task,
    *,
    sites: str | Sequence[Site] = "resid.pre",
    cells: int = 12,
    repeat: int = 3,
    seed: int = 0,
) -> list[Row]:
    """Time the one-pass sweep, one forward a site and one batch a layer, in turns, on the same weights and pairs.

    The slow ways run about `cells` sites, drawn by `seed`: every site of a kind costs them the same. The direction is
    denoise and the metric logit_diff, or right_logit for a task without wrong answers.

    Raises:
        BadInput: a site that is no single module's input or output, or an answer of several tokens.
    """
    chosen = select_single(model, task, sites)
    hand = by_hand(model, task, chosen)
    effects = patch(model, task, sites=chosen, metric=hand.metric)
    some = sample(effects, cells, seed)
    drawn = {(site.kind, site.layer) for site in some[: max(1, cells // 6)]}
    whole = [site for site in chosen if (site.kind, site.layer) in drawn]
    ways = (
        Way(ONE_PASS, lambda: values_of(patch(model, task, sites=chosen, metric=hand.metric)), chosen),
        Way(ONE_FORWARD, lambda: one_forward(hand, some).cpu().numpy(), some),
        Way(ONE_BATCH, lambda: one_batch(hand, whole).cpu().numpy(), whole),
    )
    errors = [0.0, *(error_of(way.run(), way.sites, effects) for way in ways[1:])]
    products, work = block_products(model)
    spent = in_turns({**{way.name: way.run for way in ways}, PRODUCTS: products}, repeat, model.device)
    seconds = {way.name: [len(chosen) / len(way.sites) * each for each in spent[way.name]] for way in ways}
    equal = allowed_error(model)
    rows = [
        Row(
            way=way.name,
            seconds=tuple(seconds[way.name]),
            timed=len(way.sites),
            sites=len(chosen),
            error=error,
            allowed=equal,
            ratio=ratio(seconds[way.name], seconds[ONE_PASS]) if error <= equal else None,
        )
        for way, error in zip(ways, errors, strict=True)
    ]
    flops = plan_patch(model, task, sites=chosen, metric=hand.metric).flops
    return [replace(rows[0], flops=flops, limit=work / min(spent[PRODUCTS])), *rows[1:]]


def values_of(effects: Effects) -> np.ndarray:
    """Return the metric after each patch `[site, pair]`."""
    return effects.base + effects.raw


def sample(effects: Effects, cells: int, seed: int) -> list[Site]:
    """Draw sites to check and time: three in four with an effect, if there are so many, in random order first."""
    live = np.abs(np.nan_to_num(effects.raw)).max(axis=1) > 0
    order = np.random.default_rng(seed).permutation(len(live))
    first, rest = order[live[order]], order[~live[order]]
    head = cells - cells // 4
    return [effects.sites[index] for index in [*first[:head], *rest, *first[head:]][:cells]]


def error_of(values: np.ndarray, sites: Sequence[Site], effects: Effects) -> float:
    """Return the largest difference of values `[site, pair]` from a sweep's own, relative to its largest effect."""
    rows = {site: row for row, site in enumerate(effects.sites)}
    expected = values_of(effects)[[rows[site] for site in sites]]
    # Where a prompt has no such position the sweep has NaN; NaN from the other way is a difference.
    apart = np.abs(values - expected)[~np.isnan(expected)].max()
    return float(apart / max(float(np.nanmax(np.abs(effects.raw))), 1e-30))


def allowed_error(model: Model) -> float:
    """Return the relative difference up to which numbers count as equal in the model's precision."""
    return EQUAL.get(next(model.module.parameters()).element_size(), EQUAL[2])


def in_turns(ways: Mapping[str, Callable[[], object]], repeat: int, device: torch.device) -> dict[str, list[float]]:
    """Time each way once, then each again, `repeat` times: a slow spell of the machine then falls on all of them."""
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeat):
        for way, run in ways.items():
            spent[way].append(seconds_of(run, device))
    return spent


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes, a GPU's queued work included."""
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median over repetitions of one way's seconds over another's."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def block_products(model: Model) -> tuple[Callable[[], list[Tensor]], int]:
    """Return a function that does one block's matrix products on many tokens and nothing else, and its FLOPs."""
    block = plain(block_list(model.module, model.anatomy)[model.anatomy.layers // 2])
    held = [(part, w) for part in block.modules() if isinstance(w := getattr(part, "weight", None), Tensor)]
    # transformers' Conv1D stores [in, out]; torch's Linear stores [out, in].
    weights = [w if type(part).__name__ == "Conv1D" else w.T for part, w in held if w.ndim > 1]
    tokens = MANY.get(model.device.type, MANY["cpu"])
    inputs = [torch.randn(tokens, len(w), dtype=w.dtype, device=w.device) for w in weights]

    def run() -> list[Tensor]:
        with torch.inference_mode():
            return [x @ w for x, w in zip(inputs, weights, strict=True)]

    run()
    return run, 2 * tokens * sum(w.numel() for w in weights)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
