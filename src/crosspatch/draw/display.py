"""What an object shows of itself in a shell, a notebook and a terminal: a line, a table, notes; every text escaped."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from crosspatch.draw.html import table_html
from crosspatch.draw.terminal import rich_table

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Display:
    """A line, a table (none without headers) and notes under it; of long tables the first `most` rows are shown."""

    title: str
    headers: tuple[str, ...] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    most: int = 12

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """The rows that are shown."""
        return self.rows[: self.most]

    @property
    def said(self) -> tuple[str, ...]:
        """The notes, and how many rows are not shown."""
        left = len(self.rows) - len(self.shown)
        return (*([f"… and {left:,} more"] if left else []), *self.notes)

    def text(self) -> str:
        """Write it for a shell."""
        table = [table_text(self.headers, self.shown)] if self.headers else []
        return "\n".join([self.title, *table, *self.said])

    def html(self) -> str:
        """Write it for a notebook, without script or style."""
        table = table_html(self.headers, self.shown) if self.headers else ""
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.said)
        return f"<div><p><strong>{escape(self.title)}</strong></p>{table}{notes}</div>"

    def rich(self) -> "Group":
        """Make it printable by rich."""
        from rich.console import Group
        from rich.text import Text

        table = [rich_table(self.headers, self.shown)] if self.headers else []
        return Group(Text(self.title, style="bold"), *table, *map(Text, self.said))


class Displayed(ABC):
    """An object that shows itself by its `display`; a picture of its own may stand in for any of the three."""

    __slots__ = ()

    @abstractmethod
    def display(self) -> Display:
        """Say what is shown."""

    def __repr__(self) -> str:
        return self.display().text()

    def _repr_html_(self) -> str:
        return self.display().html()

    def __rich__(self) -> object:
        return self.display().rich()


def table_text(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as lines of equal columns: the first to the left, the others to the right."""
    lines = [headers, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first, rest = widths[0], widths[1:]
    return "\n".join(
        f"{line[0]:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], rest, strict=True))
        for line in lines
    )
