"""Effects as files for other programs and people: CSV, JSON, Markdown."""

import csv
import io
from typing import TYPE_CHECKING

from crosspatch.report.summary import row_of, summary_of, title, to_json

if TYPE_CHECKING:
    from crosspatch.engine.effects import Effects

MARKDOWN_ROWS = 20


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
