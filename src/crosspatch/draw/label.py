"""Turn numbers and tokens into short text that is safe to show."""

import math
import unicodedata
from collections.abc import Sequence

# Joiners shape letters and emoji; they are harmless.
_VISIBLE = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "␣", "\u200c": "\u200c", "\u200d": "\u200d"}
# Cc: breaks XML. Cf, Zl, Zp: could reorder or split the line. Cs: cannot be written as UTF-8.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_WORD_STARTS = " \u2581\u0120"  # a space, or what SentencePiece and byte-level BPE write for one


def shown(token: str) -> str:
    """Make a token visible: no leading space, ␣ for spaces alone, signs for control and direction characters."""
    body = token.lstrip(_WORD_STARTS)
    if not body:
        return "␣" * max(1, len(token)) if token else "∅"
    return "".join(_visible(character) for character in body)


def _visible(character: str) -> str:
    if unicodedata.category(character) in _UNSAFE:
        return _VISIBLE.get(character, "\N{REPLACEMENT CHARACTER}")
    return _VISIBLE.get(character, character)


def clip(text: str, width: int) -> str:
    """Cut text to a number of characters, the last one an ellipsis if any was lost."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def number(value: float | int, digits: int = 2) -> str:
    """Write a number with fixed decimals, in powers of ten where those would hide it; NaN is a dash."""
    value = float(value) + 0.0  # no negative zero
    if math.isnan(value):
        return "–"
    if value != 0 and not 0.5 * 10**-digits <= abs(value) < 1e5:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.{digits}f}"


def with_interval(value: float, low: float, high: float, *, digits: int = 2) -> str:
    """Write `1.00 [0.97, 1.02]`, without brackets where there is no interval."""
    if math.isnan(low) or math.isnan(high):
        return number(value, digits)
    return f"{number(value, digits)} [{_bound(low, digits)}, {_bound(high, digits)}]"


def _bound(value: float, digits: int) -> str:
    """Write a bound in the decimals of its value; one that rounds to zero is shown as zero, without a sign."""
    text = f"{value:.{digits}f}" if abs(value) < 1e5 else number(value, digits)
    return text.removeprefix("-") if float(text) == 0 else text


def spans(numbers: Sequence[int]) -> str:
    """Write ascending numbers with runs drawn together: 0, 2–5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def p_value(value: float) -> str:
    """Write a p- or q-value with its comparison: `= 0.03`, `< 0.001`; NaN is a dash."""
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"
