"""A strip of dots: one value an example on a line, with the mean and its interval; static SVG."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from crosspatch.draw.label import number, with_interval


def strip_svg(
    values: Float[np.ndarray, " example"],
    *,
    mean: float,
    low: float,
    high: float,
    domain: tuple[float, float],
    width: int = 180,
) -> str:
    """Draw per-example values between the ends of `domain`; values beyond stand at its edge, NaN is left out."""
    height, edge = 22, 5
    there = values[~np.isnan(values)]

    def at(value: float) -> float:
        share = (value - domain[0]) / (domain[1] - domain[0])
        return round(edge + min(1.0, max(0.0, share)) * (width - 2 * edge), 1)

    places = [round(at(float(value))) for value in np.sort(there)]
    words = f"{len(there)} examples, mean {with_interval(mean, low, high)}"
    if len(there):
        words += f", from {number(float(there.min()))} to {number(float(there.max()))}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="strip" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{words}">'
        f'<path d="M{at(0.0):g} 1v20" stroke="currentColor" stroke-opacity="0.35" fill="none"/>'
        f'<path class="dots" d="{_dots(places)}" stroke="#0072b2" stroke-opacity="0.5" stroke-width="4" '
        f'stroke-linecap="round" fill="none"/>{_whisker(at, mean, low=low, high=high)}</svg>'
    )


def _dots(places: list[int]) -> str:
    """Write sorted places as dots in three lanes, whole pixels relative to the last one: half as long."""
    # Neighbours in value go to different lanes, so equal values stay countable.
    steps = [(x - before, -8 if rank % 3 == 0 else 4) for rank, (before, x) in enumerate(pairwise(places), start=1)]
    first = f"M{places[0]} 7h0" if places else ""
    return first + "".join(f"m{dx} {dy}h0" for dx, dy in steps)


def _whisker(at: Callable[[float], float], mean: float, *, low: float, high: float) -> str:
    if math.isnan(mean):
        return ""
    line = "" if math.isnan(low) or math.isnan(high) else f"M{at(low):g} 11H{at(high):g}"
    return f'<path class="mean" d="{line}M{at(mean):g} 5v12" stroke="currentColor" stroke-width="1.6" fill="none"/>'
