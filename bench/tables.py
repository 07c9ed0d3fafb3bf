"""The tables that a benchmark ends with."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from peers import ratios

if TYPE_CHECKING:
    from sweep import Case, Results

MIB = 1 << 20
NOTES = """\
seconds: median (min–max) of the whole sweep; where "sites run" is a sample, cost a site × sites (all cost alike).
ratio: over one pass in the same repetition; for peers, the wall clock of their process over that of this one.
chained: peer over plain hooks inside its own process × plain hooks over one pass inside this one.
difference: the largest, relative to the largest effect; a way that differs gets no ratio.
limit: operations a second over those of bare products of the model's own block, best of all repetitions, in turns."""


def show(results: "Results", document: dict[str, Any]) -> None:
    """Print all tables."""
    console = Console(width=max(120, Console().width))
    for shape in dict.fromkeys(case.shape for case in results.cases):
        console.print(cases_table(shape, [case for case in results.cases if case.shape == shape]))
    console.print(NOTES, style="dim", highlight=False)
    if results.memory:
        console.print(memory_table(results))
    if results.growth:
        console.print(growth_table(results))
    machine = document["machine"]
    on = machine["gpu"] or machine["cpu"]
    console.print(f"{on}, {machine['threads']} threads, load {machine['load']:.1f} at the end", highlight=False)


def cases_table(shape: str, cases: Sequence["Case"]) -> Table:
    """Lay out the ways of every case of one shape."""
    headers = ("sites", "pairs", "differing", "way", "seconds", "ratio", "chained", "difference", "sites run", "limit")
    table = make_table(shape, headers, left=4)
    for case in cases:
        for number, cells in enumerate([*own_rows(case), *peer_rows(case)]):
            label = (case.sites, str(case.pairs), case.texts) if number == 0 else ("", "", "")
            table.add_row(*label, *cells)
        table.add_section()
    return table


def own_rows(case: "Case") -> list[tuple[str, ...]]:
    """Return the cells of this repository's three ways."""
    return [
        (
            row.way,
            spread(row.seconds),
            factor(row.ratio),
            "",
            f"{row.error:.0e}",
            f"{row.timed} of {row.sites}",
            "" if row.limit_share is None else f"{row.limit_share:.0%}",
        )
        for row in case.rows
    ]


def peer_rows(case: "Case") -> list[tuple[str, ...]]:
    """Return the cells of the peers; no ratio where their numbers, or those of plain hooks beside them, differ."""
    found = []
    for row in case.peers:
        direct, chained = (factor(each) for each in ratios(row, case.rows))
        sites = f"{row.timed} of {case.rows[0].sites}"
        found.append((row.peer, spread(row.seconds), direct, chained, f"{row.error:.0e}", sites, ""))
    return found


def memory_table(results: "Results") -> Table:
    """Lay out peak memory."""
    table = make_table("peak memory, MiB", ("model", "way", "loaded", "peak", "above loaded"), left=2)
    for shape, found in results.memory.items():
        for each in found:
            table.add_row(shape, each.way, *(f"{n / MIB:,.0f}" for n in (each.loaded, each.peak, each.above)))
    return table


def growth_table(results: "Results") -> Table:
    """Lay out how seconds grow, and the exponents of seconds and of work."""
    headers = ("model", "axis", "size: seconds", "seconds ∝ size^", "work ∝ size^")
    table = make_table("growth", headers, left=3)
    for curve in results.growth:
        points = "  ".join(f"{size}: {s:.2f}" for size, s in zip(curve.sizes, curve.seconds, strict=True))
        table.add_row(curve.shape, curve.axis, points, f"{curve.exponent:.2f}", f"{curve.work_exponent:.2f}")
    return table


def make_table(title: str, headers: Sequence[str], *, left: int) -> Table:
    """Make an empty table whose first `left` columns are text."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number < left else "right", no_wrap=True)
    return table


def spread(seconds: Sequence[float]) -> str:
    """Return median and range."""
    return f"{median(seconds):.3g} ({min(seconds):.3g}–{max(seconds):.3g})"


def factor(ratio: float | None) -> str:
    """Return a ratio with as many digits as a noisy timing deserves; there is none where numbers differ."""
    if ratio is None:
        return "differs"
    return f"{ratio:.1f}×" if ratio < 10 else f"{ratio:.0f}×"
