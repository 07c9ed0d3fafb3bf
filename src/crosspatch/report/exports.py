"""Effects as files for other programs and people: CSV, JSON, Markdown, Parquet, LaTeX, figures."""

import csv
import io
from typing import TYPE_CHECKING

from crosspatch.draw import maps_figure
from crosspatch.report.summary import row_of, summary_of, title, to_json

if TYPE_CHECKING:
    from crosspatch.engine.effects import Effects

TABLE_ROWS = 20
PAGE_WIDTH = 6.8  # inches


def csv_text(effects: "Effects") -> str:
    """Give one row a site: its address, its parts, its effect with interval, its q-value."""
    rows = [row_of(row) for row in effects.rows(range(len(effects.sites)))]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["site"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parquet_bytes(effects: "Effects") -> bytes:
    """Give one row a site and pair, as Parquet: the site's parts, the pair's number, raw effect and both runs' metrics.

    A patch that was not run has no effect (null).
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    sites, pairs = effects.raw.shape
    columns: dict[str, pa.Array] = {}
    for name in ("site", "kind", "layer", "unit", "position"):
        parts = [str(site) if name == "site" else getattr(site, name) for site in effects.sites]
        # A position is a number or a name.
        parts = [None if part is None else str(part) for part in parts] if name == "position" else parts
        # Each text once, and its number in every row.
        columns[name] = pa.array(parts).dictionary_encode().take(pa.array(np.repeat(np.arange(sites), pairs)))
    columns["example"] = pa.array(np.tile(np.arange(pairs, dtype=np.int32), sites))
    columns["raw"] = pa.array(effects.raw.ravel(), from_pandas=True)
    for name in ("base", "source"):
        columns[name] = pa.array(np.tile(getattr(effects, name), sites))
    about = {name: str(getattr(effects, name)) for name in ("model", "task", "metric", "direction")}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns).replace_schema_metadata(about), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


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
    top = effects.top(TABLE_ROWS)
    lines = [f"**{effects.finding()}**", "", title(effects), ""]
    lines += [_cells(top.headers), _cells(["---"] * len(top.headers)), *(_cells(row.cells()) for row in top)]
    lines += ["", *(f"- {caution}" for caution in effects.cautions())]
    return "\n".join(lines).rstrip() + "\n"


def latex_text(effects: "Effects") -> str:
    """Give the strongest sites as a LaTeX table."""
    return effects.to_latex(TABLE_ROWS)


def figure_bytes(effects: "Effects", *, form: str) -> bytes:
    """Give the heat maps as an SVG, PNG or PDF file, as wide as both columns of a page."""
    return maps_figure(effects.panels(), effects.colours(), form=form, width=PAGE_WIDTH)


def _cells(cells: "tuple[str, ...] | list[str]") -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
