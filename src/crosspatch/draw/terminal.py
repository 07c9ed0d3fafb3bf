"""Heat maps and tables for terminals, on rich: half blocks in colour, signed digits without."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from crosspatch.core.names import counted
from crosspatch.draw.colour import Scale, diverging
from crosspatch.draw.label import clip, number, with_interval
from crosspatch.draw.network import Wire
from crosspatch.draw.panel import Panel, short_label

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table
    from rich.text import Text

_LONG = 30  # letters of a cell that is a text
_NOT_RUN = "#b0b0b0"


@dataclass(frozen=True)
class TerminalMap:
    """A panel that rich can print: two rows a line in colour; one digit a cell (tenths of the limit) without colour.

    Takes the console's width, its colours and NO_COLOR as it finds them.
    """

    panel: Panel
    scale: Scale
    legend: bool = True

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[Text]":
        from rich.text import Text

        colour = console.color_system is not None and not console.no_color and not options.ascii_only
        margin = max(map(len, self.panel.rows), default=0) + 2
        columns = len(self.panel.columns)
        least = min(4, max((len(short_label(label)) for label in self.panel.columns), default=1) + 1)
        cell = max(least, min(6, (options.max_width - margin) // max(columns, 1)))
        fit = max(1, (options.max_width - margin) // cell)
        yield Text(self.panel.title, style="bold")
        for start in range(0, columns, fit):
            part = slice(start, min(start + fit, columns))
            body = (
                self._colour_lines(part, cell, margin=margin)
                if colour
                else self._plain_lines(part, cell, margin=margin)
            )
            yield from body
            yield self._labels(part, cell, margin=margin, left=colour)
        if self.legend:
            yield self._legend(colour)

    def _colour_lines(self, part: slice, cell: int, *, margin: int) -> "Iterator[Text]":
        from rich.text import Text

        values, rows = self.panel.values[:, part], len(self.panel.rows)
        for upper in range(rows - 1, -1, -2):
            line = Text(f"{self.panel.rows[upper]:>{margin - 1}} ", no_wrap=True)
            for column in range(values.shape[1]):
                above = self._hex(float(values[upper, column]))
                style = f"{above} on {self._hex(float(values[upper - 1, column]))}" if upper else above
                line.append("▀" * cell, style=style)
            yield line

    def _plain_lines(self, part: slice, cell: int, *, margin: int) -> "Iterator[Text]":
        from rich.text import Text

        values = self.panel.values[:, part]
        for row in range(len(self.panel.rows) - 1, -1, -1):
            digits = "".join(f"{self._digit(float(value)):>{cell}}" for value in values[row])
            yield Text(f"{self.panel.rows[row]:>{margin - 1}} {digits}", no_wrap=True)

    def _digit(self, value: float) -> str:
        if np.isnan(value):
            return "x"
        tenths = round(value / self.scale.limit * 10)
        return "." if tenths == 0 else f"{'-' if tenths < 0 else ''}{'#' if abs(tenths) > 9 else abs(tenths)}"

    def _hex(self, value: float) -> str:
        return _NOT_RUN if np.isnan(value) else diverging(self.scale.level(value))

    def _labels(self, part: slice, cell: int, *, margin: int, left: bool) -> "Text":
        """Write the labels under their columns: blocks fill their cells from the left, digits stand at the right."""
        from rich.text import Text

        # No ellipsis here: every letter of so short a label counts.
        short = (short_label(label)[: cell - 1] for label in self.panel.columns[part])
        names = "".join(f"{label:<{cell}}" if left else f"{label:>{cell}}" for label in short)
        return Text(" " * margin + names, style="dim", no_wrap=True)

    def _legend(self, colour: bool) -> "Text":
        from rich.text import Text

        limit, low, high = number(self.scale.limit), self.scale.negative, self.scale.positive
        if not colour:
            words = f"tenths of {limit} (+ {high}, - {low}); # more, . zero, x not run"
            return Text(f"  {words}", style="dim")
        line = Text("  ")
        for level, word in ((-20, f" {low} "), (0, " 0 "), (20, f" {high} ")):
            line.append("■", style=diverging(level)).append(word, style="dim")
        if np.isnan(self.panel.values).any():
            line.append("■", style=_NOT_RUN).append(" not run ", style="dim")
        return line.append(f"limit {limit}", style="dim")


def rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> "Table":
    """Build a plain rich table; columns after the first are set to the right and never cut, the first is folded.

    Columns of long texts are set to the left and folded too.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for place, header in enumerate(headers):
        least = max([len(header), *(len(clip(row[place], 60)) for row in rows)])
        text = place == 0 or least > _LONG
        side = "left" if text else "right"
        table.add_column(
            Text(header), justify=side, no_wrap=not text, overflow="fold", min_width=None if text else least
        )
    for row in rows:
        table.add_row(*(Text(clip(cell, 60)) for cell in row))
    return table


def edge_table(
    wires: Sequence[Wire], scores: Float[np.ndarray, " edge"], *, most: int = 20, total: int = 0, title: str = ""
) -> "Table":
    """Build a table of a circuit's first edges, and say under it how many more of `total` (at least these) there are.

    Names are folded where the terminal is narrow; scores are never cut.
    """
    places = any(wire.place for wire in wires)
    rows = [
        (f"{wire.sender} → {wire.receiver}", *([wire.place] if places else []), number(float(score), 3))
        for wire, score in zip(wires[:most], scores[:most], strict=True)
    ]
    table = rich_table(("edge", *(["place"] if places else []), "score"), rows, title=title)
    more = max(total, len(wires)) - len(rows)
    table.caption_justify = "left"
    table.caption = counted(more, "more edge") if more else "no edges" if not rows else None
    return table


def score_table(lines: Sequence[tuple[str, float, float, float]], *, title: str = "") -> "Table":
    """Build a table of named scores, each a value with the bounds of its interval; NaN bounds are left out."""
    rows = [(name, with_interval(value, low, high, digits=3)) for name, value, low, high in lines]
    return rich_table(("score", "value [95% interval]"), rows, title=title)
