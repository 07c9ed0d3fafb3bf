"""Colours: one zero-centred scale for signed effects, and colour-blind safe ones for categories."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#000000")
MARK = OKABE_ITO[1]  # columns where the inputs differ

STEPS = 20  # colour levels on each side of zero: finer ones cannot be told apart in a cell
# From zero outwards, evenly spaced. Light: the blue and the red half of ColorBrewer's RdBu, white at zero.
_LIGHT = (
    ("#ffffff", "#d1e5f0", "#92c5de", "#4393c3", "#2166ac", "#0a3a70"),
    ("#ffffff", "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#75051f"),
)
# On a dark page zero recedes into the page and strong effects shine.
_DARK = (
    ("#262b33", "#2b4460", "#2f6699", "#3f8fd6", "#7dbbf7", "#c6e2ff"),
    ("#262b33", "#573336", "#913f41", "#d0564d", "#f5907e", "#ffd0c2"),
)
_NICE = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """A zero-centred colour scale: its limit, and the words for its negative and its positive end."""

    limit: float | int
    negative: str = "negative"
    positive: str = "positive"

    def level(self, value: float | int) -> int:
        """Give the colour level of a value, -20 … 20; values beyond the limit get the last one."""
        share = 0.0 if self.limit <= 0 else value / self.limit
        return round(max(-1.0, min(1.0, share)) * STEPS)

    def misses(self, value: float | int) -> bool:
        """Tell whether a value lies outside the scale by more than can be seen; NaN does not."""
        return abs(value) > self.limit * (1 + 0.5 / STEPS)


def nice_limit(values: Float[np.ndarray, "..."], *, cap: float = math.inf) -> float:
    """Choose a round limit that holds every finite value, at most `cap`; 1 where all are zero or absent."""
    finite = np.abs(values[np.isfinite(values)])
    top = float(finite.max()) if finite.size else 0.0
    if top == 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(top))
    # A value that passes a round number by less than a colour level does not need the next one.
    limit = next((step * power for step in _NICE if top <= step * power * (1 + 0.5 / STEPS)), 10 * power)
    return min(limit, cap)


def diverging(level: int, *, dark: bool = False) -> str:
    """Give the colour of a level -20 … 20 as `#rrggbb`: blue positive, red negative."""
    stops = (_DARK if dark else _LIGHT)[0 if level >= 0 else 1]
    place = min(abs(level), STEPS) / STEPS * (len(stops) - 1)
    below = min(int(place), len(stops) - 2)
    pairs = zip(_rgb(stops[below]), _rgb(stops[below + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - below)):02x}" for a, b in pairs)


def level_class(level: int) -> str:
    """Name the style class of a level: p0 … p20, n1 … n20."""
    return f"p{level}" if level >= 0 else f"n{-level}"


def level_css(*, dark: bool = False) -> str:
    """Write the style rules of all levels, one line each."""
    levels = [level for level in range(-STEPS, STEPS + 1)]
    return "\n".join(f".{level_class(level)}{{fill:{diverging(level, dark=dark)}}}" for level in levels)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
