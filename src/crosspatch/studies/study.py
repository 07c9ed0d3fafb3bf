"""What a study found: findings beside a paper's claims, and the figures and tables of its page, as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from crosspatch.core.errors import BadInput
from crosspatch.draw import Curve, Display, Displayed, Panel, with_interval

# How a finding stands to the paper's claim; "no claim" where the paper says nothing of it.
VERDICTS = ("agrees", "contradicts", "undecided", "no claim")


FEWEST = 6  # examples below which an interval is too rough to hold a claim against


def verdict(count: int, *, agrees: bool, contradicts: bool) -> str:
    """Judge a claim by what its interval allows; from too few examples nothing follows."""
    if count < FEWEST or agrees == contradicts:
        return "undecided"
    return "agrees" if agrees else "contradicts"


@dataclass(frozen=True)
class Finding:
    """One measured sentence: what was found here with its interval, what the paper says, and how the two stand.

    `said` is the finding in words, `claim` the paper's own with its number and model, `value` what was measured in
    `unit` with the bounds of its 95 % interval, `count` how many independent examples (`of` says of what) it rests on.
    """

    said: str
    claim: str
    verdict: str
    value: float
    low: float
    high: float
    unit: str
    count: int
    of: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise BadInput(f"verdict {self.verdict!r}: use {', '.join(VERDICTS)}.")

    @property
    def measured(self) -> str:
        """Write value and interval."""
        return with_interval(self.value, self.low, self.high)


@dataclass(frozen=True, eq=False)
class Heat:
    """A map of layers by something; `limit` is the value of the strongest colour, by default the largest one."""

    panel: Panel
    unit: str
    limit: float | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Lines:
    """Curves over layers; x may be 0, and both axes are linear."""

    title: str
    curves: tuple[Curve, ...]
    x_label: str
    y_label: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Sound:
    """A clip of 16 kHz to see and to hear: its wave, its log-mel spectrogram `[mel, frame]` of 10 ms frames.

    `marks` name stretches of it, as (first second, last second, name). `heard` is what the model wrote.
    """

    title: str
    samples: Float32[np.ndarray, " sample"]
    mel: Float[np.ndarray, "mel frame"]
    heard: str = ""
    marks: tuple[tuple[float, float, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Pattern:
    """Weights from 0 to 1 of tokens (rows) over time (columns), such as cross-attention; drawn as an image.

    `seconds` is how long the columns last together; row 0 is at the top.
    """

    title: str
    weights: Float[np.ndarray, "token frame"]
    rows: tuple[str, ...]
    seconds: float
    note: str = ""


Figure = Heat | Lines | Table | Sound | Pattern


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading, paragraphs, figures in order."""

    title: str
    text: tuple[str, ...]
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True, repr=False)
class Study(Displayed):
    """All that the page of a study shows."""

    title: str
    paper: str
    link: str
    model: str
    findings: tuple[Finding, ...]
    sections: tuple[Section, ...]
    warnings: Sequence[str] = ()
    chips: tuple[tuple[str, str], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def display(self) -> Display:
        """List the findings, each beside the paper's claim."""
        rows = [(each.said, each.measured, each.claim or "–", each.verdict) for each in self.findings]
        title = f"{self.title} · {self.model} · {self.paper}"
        headers = ("found here", "value [95%]", "the paper says", "verdict")
        return Display(title, headers, rows, self.warnings, most=len(rows))

    def report(self, path: str | Path) -> Path:
        """Write the study's page, one HTML file; give its path. Raises BadInput if it cannot be written."""
        from crosspatch.report import write_study

        return write_study(self, path)
