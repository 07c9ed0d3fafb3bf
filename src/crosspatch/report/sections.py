"""What each section of the page says, as plain data for the template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosspatch.core.stats import bootstrap_mean
from crosspatch.draw import number, p_value, shown, strip_svg, with_interval
from crosspatch.engine.effects import Effects, ExampleView
from crosspatch.engine.tables import Row
from crosspatch.engine.wording import metric_words
from crosspatch.report.set_up import how_chips

OPEN_PAIRS, MOST_PAIRS = 3, 8
_CONTEXT = 4  # tokens kept on each side of a difference or a name in a long prompt
_LONG = 60


@dataclass(frozen=True)
class Token:
    """One position of an aligned pair: where it is, both tokens, whether they differ; or `skipped` equal ones."""

    where: str
    names: str
    clean: str
    corrupt: str
    differs: bool
    skipped: int = 0


@dataclass(frozen=True)
class PairView:
    """An aligned pair with its answers and the metric of both runs."""

    number: int
    tokens: tuple[Token, ...]
    right: str
    wrong: str
    clean: str
    corrupt: str


@dataclass(frozen=True)
class Baseline:
    """The metric of one run: its mean with interval, and the values of single pairs as a strip."""

    run: str
    value: str
    strip: str


def chips(effects: Effects) -> list[tuple[str, str]]:
    """List what a reader must know beside the finding, as (name, value)."""
    timings, plan = _recorded(effects, "timings"), _recorded(effects, "plan")
    found = [
        ("model", effects.model),
        ("task", effects.task),
        ("pairs", str(effects.n)),
        ("sites", f"{len(effects.sites):,}"),
        *how_chips(effects),
        ("metric", effects.metric),
        ("seed", _text(_recorded(effects, "seed"))),
        ("time", f"{sum(_numbers(timings)):.3g} s" if _numbers(timings) else ""),
        ("forwards saved", f"{saved:,.0f}" if (saved := _entry(plan, "forwards_saved")) is not None else ""),
    ]
    return [(name, value) for name, value in found if value]


def _recorded(effects: Effects, name: str) -> Any:
    """Look up what the run recorded, beside its settings or among them."""
    settings = effects.provenance.get("settings")
    inner = settings.get(name) if isinstance(settings, Mapping) else None
    outer = effects.provenance.get(name)
    return inner if outer is None else outer


def _numbers(values: Any) -> list[float | int]:
    return [value for value in values.values() if isinstance(value, int | float)] if isinstance(values, Mapping) else []


def _entry(values: Any, name: str) -> float | int | None:
    value = values.get(name) if isinstance(values, Mapping) else None
    return value if isinstance(value, int | float) else None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def pairs(effects: Effects) -> list[PairView]:
    """Align the first pairs token by token; none of a trial whose positions are no tokens."""
    if not any(token for example in effects.examples for token in (*example.clean_tokens, *example.corrupt_tokens)):
        return []
    clean, corrupt = runs(effects)
    views = []
    for place, example in enumerate(effects.examples[:MOST_PAIRS]):
        values = number(float(clean[place])), number(float(corrupt[place]))
        wrong = shown(example.wrong) if example.wrong else ""
        views.append(PairView(place, aligned(example), shown(example.right), wrong, *values))
    return views


def runs(effects: Effects) -> tuple[np.ndarray, np.ndarray]:
    """Give the metric of the clean and of the corrupted runs, `[example]` each."""
    return (effects.base, effects.source) if effects.direction == "noise" else (effects.source, effects.base)


def aligned(example: ExampleView) -> tuple[Token, ...]:
    """Set both prompts side by side; in a long one, equal stretches far from names and differences are skipped."""
    length = max(len(example.clean_tokens), len(example.corrupt_tokens))
    names: dict[int, list[str]] = {}
    for name, position in example.names.items():
        names.setdefault(position, []).append(name)
    every = [_token(example, position, names=names.get(position, [])) for position in range(length)]
    if length <= _LONG:
        return tuple(every)
    near = {
        k
        for i, token in enumerate(every)
        if token.differs or token.names
        for k in range(i - _CONTEXT, i + _CONTEXT + 1)
    }
    return tuple(_skip(every, near | {0, length - 1}))


def _token(example: ExampleView, position: int, *, names: Sequence[str]) -> Token:
    both = (example.clean_tokens, example.corrupt_tokens)
    clean, corrupt = (tokens[position] if position < len(tokens) else None for tokens in both)
    texts = ("" if token is None else shown(token) for token in (clean, corrupt))
    return Token(str(position), " ".join(names), *texts, differs=clean != corrupt)


def _skip(tokens: Sequence[Token], kept: set[int]) -> list[Token]:
    found: list[Token] = []
    skipped = 0
    for position, token in enumerate(tokens):
        if position not in kept:
            skipped += 1
            continue
        if skipped:
            found.append(Token("", "", f"… {skipped} equal …", "", False, skipped))
        skipped = 0
        found.append(token)
    return found


def baselines(effects: Effects) -> list[Baseline]:
    """Describe the clean run, the corrupted run and their gap."""
    clean, corrupt = runs(effects)
    gap = clean - corrupt
    finite = np.concatenate([values[np.isfinite(values)] for values in (clean, corrupt, gap)])
    domain = _domain(finite)
    words = (("clean run", clean), ("corrupted run", corrupt), ("gap", gap))
    return [_baseline(run, values, domain=domain) for run, values in words]


def _baseline(run: str, values: np.ndarray, *, domain: tuple[float, float]) -> Baseline:
    low, high = (float(end[0]) for end in bootstrap_mean(values[None].astype(np.float64)))
    there = values[~np.isnan(values)]
    mean = float(there.mean()) if len(there) else float("nan")
    strip = strip_svg(values.astype(np.float64), mean=mean, low=low, high=high, domain=domain, width=108)
    return Baseline(run, with_interval(mean, low, high), strip)


def _domain(values: np.ndarray) -> tuple[float, float]:
    """Choose the ends of a strip: all values and zero, with a margin."""
    low, high = (min(0.0, float(values.min())), max(0.0, float(values.max()))) if len(values) else (0.0, 1.0)
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def right_answers(effects: Effects) -> str:
    """Say how often the model is right on clean and on corrupted prompts, for metrics that tell."""
    if effects.metric != "logit_diff":
        return ""
    clean, corrupt = ((values > 0).sum() for values in runs(effects))
    return (
        f"The {metric_words(effects.metric)} favours the right answer in {clean} of {effects.n} clean "
        f"and {corrupt} of {effects.n} corrupted prompts."
    )


@dataclass(frozen=True)
class TopLine:
    """One line of a table of sites."""

    rank: int
    kind: str
    site: str
    hint: str
    effect: str
    strip: str
    raw: str
    q: str
    n: int


def top_lines(effects: Effects, rows: Sequence[Row]) -> list[TopLine]:
    """Write rows of sites with the values of single pairs as strips on one common axis."""
    if not rows:
        return []
    source = effects.values if effects.scale == "normalised" else effects.raw
    values = source[[row.index for row in rows]].astype(np.float64)
    domain = _domain(np.clip(values[~np.isnan(values)], *np.nanpercentile(values, [0.5, 99.5])))
    lines = []
    for rank, (row, own) in enumerate(zip(rows, values, strict=True), start=1):
        strip = strip_svg(own, mean=row.effect, low=row.low, high=row.high, domain=domain, width=200)
        effect, q = with_interval(row.effect, row.low, row.high), p_value(row.q).removeprefix("= ")
        site = str(row.site)
        lines.append(TopLine(rank, row.site.kind, site, row.hint, effect, strip, number(row.raw, 3), q, row.n))
    return lines


def scale_unit(effects: Effects) -> str:
    """Name what the colours of effects measure."""
    return "share of the gap" if effects.scale == "normalised" else effects.metric_unit


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested provenance into (name, text) lines; empty entries are left out."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            lines += flat(value, f"{name} · ")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            for place, item in enumerate(value):
                lines += flat(item, f"{name} {place + 1} · ") if isinstance(item, Mapping) else [(name, str(item))]
        elif value not in (None, "", [], ()):
            lines.append((name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else _short(value)))
    return lines


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
