"""The attention of heads inside a page: bytes that the browser unpacks, their labels, and what is not shown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from crosspatch.core.errors import BadInput
from crosspatch.draw import number, shown
from crosspatch.engine.effects import Effects, ExampleView
from crosspatch.engine.grids import index_in
from crosspatch.engine.tables import Row
from crosspatch.lenses.head_patterns import (
    HEAD_KINDS,
    KEY_KINDS,
    ONE,
    WEIGHTINGS,
    HeadPatterns,
    Sizes,
    rank_heads,
    swept_head,
)
from crosspatch.report.payload import deflated, to_script_json

MOST_LETTERS = 1_000_000  # of base64: what attention may add to a page
_TINY = np.float32(1e-30)  # a head that writes nothing has no size to divide by
RUN_WORDS = {"clean": "clean run", "corrupt": "corrupted run"}


@dataclass(frozen=True)
class Line:
    """The strongest entry of one site's attention in each run, as text; of a shared key or value by its first head."""

    site: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Attention:
    """What the page holds of attention: JSON, packed bytes, what is not shown, a table that needs no script.

    `weightings` are the ways to show it, if there are several.
    """

    facts: str
    numbers: str
    runs: tuple[str, ...]
    note: str
    lines: tuple[Line, ...]
    weightings: Mapping[str, str]


def attention_of(effects: Effects, patterns: HeadPatterns | None, rows: Sequence[Row]) -> Attention | None:
    """Gather what the page shows of attention, within its budget; `rows` are the head sites of the static table.

    None without patterns or without a head among the sites. Raises BadInput for patterns of other prompts.
    """
    if patterns is None or not any(swept_head(site) for site in effects.sites):
        return None
    _check(effects, patterns)
    part, numbers = fit(patterns, rank_heads(effects, patterns.group))
    runs = tuple(RUN_WORDS.get(run, run) for run in part.runs)
    facts = {
        "runs": runs,
        "heads": part.chosen,
        "group": part.group,
        "kinds": HEAD_KINDS,
        "keys": KEY_KINDS,
        "pairs": [_pair(part, place, effects.examples[place]) for place in range(len(part.patterns))],
        # What the largest byte of a head's sizes means, over both runs: their boards share a scale.
        "sizes": [[float(f"{most:.4g}") for most in _most_written(each)] for each in part.sizes],
    }
    lines = tuple(line for row in rows if (line := _line(row, part, effects.examples[0])))
    weightings = WEIGHTINGS if part.sizes else {}
    return Attention(to_script_json(facts), numbers, runs, note_of(part, patterns), lines, weightings)


def _check(effects: Effects, patterns: HeadPatterns) -> None:
    """Refuse attention of another model or of other prompts. Raises BadInput."""
    mine = [example.clean_tokens for example in effects.examples[: len(patterns.tokens)]]
    theirs = [tuple(runs[0]) for runs in patterns.tokens]
    if (effects.model, effects.layers, mine) != (patterns.model, patterns.layers, theirs):
        raise BadInput(
            f"the attention is of {patterns.model} on {len(theirs)} pairs of {patterns.task}, and these effects are of "
            f"{effects.model} on other prompts: read it from the same model and task."
        )


def fit(
    patterns: HeadPatterns, ranked: Sequence[tuple[int, int]], most: int = MOST_LETTERS
) -> tuple[HeadPatterns, str]:
    """Keep as many pairs as fit in `most` letters, or of one pair the heads that come first in `ranked`.

    Gives what is kept, and its bytes deflated, in base64: pair by pair, head by head, run by run.
    """
    every = range(len(patterns.chosen))
    found = _most(len(patterns.patterns), lambda pairs: patterns.part(pairs, every), most=most)
    if found is not None:
        return found
    place = {head: i for i, head in enumerate(patterns.chosen)}
    strongest = [place[head] for head in dict.fromkeys((*ranked, *patterns.chosen)) if head in place]
    found = _most(len(strongest), lambda heads: patterns.part(1, sorted(strongest[:heads])), most=most)
    if found is None:  # one head of one pair is more than the budget: it is shown all the same
        part = patterns.part(1, strongest[:1])
        return part, packed(part)
    return found


def _most(top: int, make: Callable[[int], HeadPatterns], *, most: int) -> tuple[HeadPatterns, str] | None:
    """Find the largest count up to `top` whose part fits, by bisection; None if not even one does."""
    low, high, found, trial = 0, top, None, top
    while low < high:
        part = make(trial)
        text = packed(part)
        if len(text) <= most:
            low, found = trial, (part, text)
        else:
            high = trial - 1
        trial = (low + high + 1) // 2
    return found


def packed(patterns: HeadPatterns) -> str:
    """Write all bytes, pair by pair, head by head, run by run, deflated and in base64: patterns, then sizes."""
    sizes = (np.rint(each / np.maximum(_most_written(each), _TINY)[:, None] * ONE) for each in patterns.sizes)
    every = (*patterns.patterns, *(each.astype(np.uint8) for each in sizes))
    return deflated(b"".join(np.ascontiguousarray(each.swapaxes(0, 1)).tobytes() for each in every))


def _most_written(sizes: Sizes) -> Float32[np.ndarray, " head"]:
    return sizes.max(axis=(0, 2))


def note_of(part: HeadPatterns, whole: HeadPatterns) -> str:
    """Say which heads and pairs are on the page, and what is not."""
    every, there = whole.layers * whole.heads, len(part.chosen)
    heads = f"all {every} heads" if there == every else f"the {there} heads with the strongest effects, of {every},"
    size = len(part.patterns)
    pairs = (
        "the only pair"
        if whole.pairs == 1
        else f"the first {'pair' if size == 1 else f'{size} pairs'} of {whole.pairs}"
    )
    pairs = f"all {size} pairs" if size == whole.pairs > 1 else pairs
    one = " The corrupted run has the clean tokens with other embeddings; its attention was not read."
    return f"Attention of {heads} on {pairs} is on this page.{one if len(part.runs) == 1 else ''}"


def _names(example: ExampleView) -> dict[int, str]:
    """Name the positions that have names; of several the first."""
    found: dict[int, str] = {}
    for name, index in example.names.items():
        found.setdefault(index, name)
    return found


def _pair(part: HeadPatterns, place: int, example: ExampleView) -> dict[str, Any]:
    names = {str(index): name for index, name in _names(example).items()}
    return {"tokens": [[shown(token) for token in run] for run in part.tokens[place]], "names": names}


def _line(row: Row, part: HeadPatterns, example: ExampleView) -> Line | None:
    """Name the strongest entry of a head in the first pair: from the site's query, to its key, or of the whole map."""
    heads = [head for head in swept_head(row.site, part.group) if head in part.chosen]
    if not heads:
        return None
    at, key = index_in(row.site.position, example), row.site.kind in KEY_KINDS
    pattern = part.patterns[0][:, part.chosen.index(heads[0])]
    texts = (
        entry_text(weights, tokens, example, at=at, key=key)
        for weights, tokens in zip(pattern, part.tokens[0], strict=True)
    )
    return Line(f"{row.site}, head {heads[0][1]}" if key else str(row.site), tuple(texts))


def entry_text(
    weights: UInt8[np.ndarray, "query key"],
    tokens: Sequence[str],
    example: ExampleView,
    *,
    at: int | None,
    key: bool = False,
) -> str:
    """Write the strongest entry of query or key `at`, or of the whole map: `end “to” → S1 “John” 0.71`.

    Without a position the first query, which sees itself alone, and the first key, where attention rests, are left out.
    """
    shut = np.zeros(weights.shape, dtype=bool)
    if at is None:
        shut[:1], shut[:, :1] = True, True
    else:
        shut[:] = True
        shut[(slice(None), at) if key else at] = False
    query, best = np.unravel_index(int(np.where(shut, -1, weights.astype(int)).argmax()), weights.shape)
    names = _names(example)
    places = [f"{names.get(int(i), int(i))} “{shown(tokens[int(i)])}”" for i in (query, best)]
    return f"{places[0]} → {places[1]} {number(float(weights[query, best]) / ONE)}"
