"""`bench`: how fast the sweep is on this machine, beside the usual ways of doing the same."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.estimate import clock
from crosspatch.cli.question import check_words, make_task, open_model
from crosspatch.cli.say import CHECK_FAILED, Voice, error

if TYPE_CHECKING:
    from rich.table import Table

    from crosspatch.engine.measure import Row


def bench(
    model: given.Model,
    *,
    task: given.TaskOfBench = "ioi",
    sites: given.SitesOfBench = "resid.pre",
    n: given.FixedPairs = 4,
    seed: given.Seed = 0,
    settings: given.Settings = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Time the sweep beside the usual ways, and compare their numbers.

    The usual ways are one forward a site and one batch a layer, through plain hooks. They run on a sample of the
    sites, and their time is scaled to all. Exit 3 if their numbers differ.

    \b
    crosspatch bench gemma-3-270m
    """
    voice = Voice(json, quiet)
    check_words(task, settings or (), sites=sites)
    opened = open_model(model, voice, device=device, dtype=dtype)
    made = make_task(task, opened, voice, n=n, seed=seed, settings=settings or ())
    from crosspatch.engine.measure import compare

    voice.say("timing each way three times, in turns …")
    rows = compare(opened, made, sites=sites)
    voice.document(
        {
            "model": opened.name,
            "task": made.name,
            "n": len(made.pairs),
            "device": str(opened.device),
            "rows": [row_document(row) for row in rows],
        }
    )
    voice.show(table(rows), *map(limit_text, rows[:1]))
    differing = [row.way for row in rows if not is_equal(row)]
    if differing:
        error(f"{', '.join(differing)}: other numbers than the sweep's.", label="check failed")
        raise typer.Exit(CHECK_FAILED)


def is_equal(row: "Row") -> bool:
    """Tell whether a way gives the sweep's numbers; a NaN does not."""
    return row.error <= row.allowed


def row_document(row: "Row") -> dict[str, Any]:
    """Describe a way as JSON."""
    return {**asdict(row), "equal": is_equal(row), "limit_share": row.limit_share}


def table(rows: "Sequence[Row]") -> "Table":
    """Draw the ways as a table."""
    from crosspatch.draw import rich_table

    headers = ("way", "time", "ratio", "sites run", "largest difference")
    return rich_table(headers, [_cells(row) for row in rows])


def _cells(row: "Row") -> tuple[str, ...]:
    ratio = "–" if row.ratio is None else f"{row.ratio:.3g}"
    equal = "" if is_equal(row) else "  DIFFERS"
    return row.way, clock(median(row.seconds)), ratio, f"{row.timed} of {row.sites}", f"{row.error:.1e}{equal}"


def limit_text(row: "Row") -> str:
    """Say how near the sweep comes to this machine's matrix products."""
    if row.limit_share is None or row.limit is None:
        return "Times of the usual ways are scaled from the sites run to all."
    return (
        f"The sweep runs at {row.limit_share:.0%} of the speed of bare matrix products ({row.limit / 1e9:.0f} GFLOP/s "
        "here). Times of the usual ways are scaled from the sites run to all."
    )
