"""How the seconds of one sweep grow with pairs, prompt length and layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

import crosspatch
from crosspatch.engine.measure import seconds_of
from crosspatch.models.model import Model
from shapes import Build, make_task, open_shape

AXES = ("pairs", "length", "layers")


@dataclass(frozen=True)
class Curve:
    """Median seconds and floating-point operations of one sweep at each value of one size, the others held fixed."""

    shape: str
    axis: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    flops: tuple[int, ...]

    @property
    def exponent(self) -> float:
        """Fitted k of seconds ∝ size^k."""
        return exponent(self.sizes, self.seconds)

    @property
    def work_exponent(self) -> float:
        """Fitted k of operations ∝ size^k: what the seconds would follow at constant speed."""
        return exponent(self.sizes, self.flops)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Fit values ∝ size^k by least squares on logarithms and return k."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


@dataclass(frozen=True)
class Sweeps:
    """The sweep that grows: its sites, its prompts at rest, and how often each size is timed."""

    sites: str
    texts: str
    pairs: int
    length: int
    repeat: int


def curve(model: Model, build: Build, axis: str, sizes: Sequence[int], sweeps: Sweeps) -> Curve:
    """Time the one-pass sweep along one axis; `layers` builds a model of each depth."""
    seconds, flops = [], []
    for size in sizes:
        grown = open_shape(replace(build, layers=size)) if axis == "layers" else model
        chosen = replace(sweeps, **{axis: size}) if axis != "layers" else sweeps
        found, work = _timed(grown, chosen)
        seconds.append(found)
        flops.append(work)
    return Curve(build.shape, axis, tuple(sizes), tuple(seconds), tuple(flops))


def _timed(model: Model, sweeps: Sweeps) -> tuple[float, int]:
    task = make_task(sweeps.texts, pairs=sweeps.pairs, length=sweeps.length, vocab=model.vocab_size)
    device = torch.device(model.device)
    spent = [
        seconds_of(lambda: crosspatch.patch(model, task, sites=sweeps.sites), device) for _ in range(sweeps.repeat + 1)
    ]
    # The first run warms up caches and allocators.
    return float(np.median(spent[1:])), crosspatch.plan_patch(model, task, sites=sweeps.sites).flops
