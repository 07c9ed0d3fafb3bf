"""`report`: the page or the numbers of a saved run, as one file."""

import csv
import io
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosspatch.cli import options as given
from crosspatch.cli.folder import PAGE
from crosspatch.cli.say import Voice, to_json
from crosspatch.cli.show import ending, row_of, summary_of, title
from crosspatch.core.errors import BadInput

if TYPE_CHECKING:
    from crosspatch.engine.effects import Effects

STANDARD_OUTPUT = Path("-")
MARKDOWN_ROWS = 20


class Format(StrEnum):
    """What a run can be written as."""

    html = "html"
    csv = "csv"
    json = "json"
    md = "md"


FormatOption = Annotated[
    Format, typer.Option("--format", help="The page, a table of all sites, all numbers, or a summary.")
]
OutFile = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Where to; - is standard output.  [default: in DIR]", show_default=False
    ),
]


def report(
    folder: given.RunFolder,
    *,
    form: FormatOption = Format.html,
    out: OutFile = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Write the page, or the numbers, of a saved run.

    \b
    crosspatch report runs/ioi-gemma-3-270m-7f3a2c
    crosspatch report runs/ioi-gemma-3-270m-7f3a2c --format csv --out -
    """
    from crosspatch.core.store import write_whole
    from crosspatch.engine.effects import Effects

    voice, effects = Voice(json, quiet), Effects.load(folder)
    text = _WRITERS[form](effects)
    if out == STANDARD_OUTPUT and json:
        raise BadInput("--json and --out - both want standard output: leave one of them out.")
    if out == STANDARD_OUTPUT:
        sys.stdout.write(text)
        return
    path = folder / _NAMES[form] if out is None else out
    write_whole(path, text.encode("utf-8", errors="replace"))
    voice.document({"format": form.value, "path": path, "finding": effects.finding()})
    voice.show(*ending(effects, folder, path))


def page_text(effects: "Effects") -> str:
    """Give the HTML page."""
    from crosspatch.report.page import page_html

    return page_html(effects)


def csv_text(effects: "Effects") -> str:
    """Give one row a site: its address, its parts, its effect with interval, its q-value."""
    rows = [row_of(row) for row in effects.rows(range(len(effects.sites)))]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["site"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def json_text(effects: "Effects") -> str:
    """Give everything: summary, each site's effect, each pair's tokens and raw numbers, provenance."""
    rows = effects.rows(range(len(effects.sites)))
    return to_json(
        {
            **summary_of(effects, top=0),
            "top": None,
            "effects": [{**row_of(row), "each": effects.raw[row.index].tolist()} for row in rows],
            "base_each": effects.base.tolist(),
            "source_each": effects.source.tolist(),
            "examples": [_example(one) for one in effects.examples],
            "provenance": dict(effects.provenance),
        }
    )


def _example(example: object) -> dict[str, object]:
    names = ("clean_tokens", "corrupt_tokens", "right", "wrong", "names")
    return {name: getattr(example, name) for name in names}


def markdown_text(effects: "Effects") -> str:
    """Give the finding, the strongest sites and the cautions, to paste into an issue or a notebook."""
    top = effects.top(MARKDOWN_ROWS)
    lines = [f"**{effects.finding()}**", "", title(effects), ""]
    lines += [_cells(top.headers), _cells(["---"] * len(top.headers)), *(_cells(row.cells()) for row in top)]
    lines += ["", *(f"- {caution}" for caution in effects.cautions())]
    return "\n".join(lines).rstrip() + "\n"


def _cells(cells: "tuple[str, ...] | list[str]") -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_WRITERS: Mapping[Format, "Callable[[Effects], str]"] = {
    Format.html: page_text,
    Format.csv: csv_text,
    Format.json: json_text,
    Format.md: markdown_text,
}
_NAMES = {Format.html: PAGE, Format.csv: "effects.csv", Format.json: "effects.json", Format.md: "effects.md"}
