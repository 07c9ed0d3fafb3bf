"""The strongest sites as a small table that shows itself in a shell, a notebook and a terminal."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crosspatch.draw import number, p_value, rich_table, table_html, table_text, with_interval
from crosspatch.sites import Address

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One site: its mean effect with interval (normalised where possible), its raw effect, q-value and pairs.

    `hint` is the name or the token that an index has in every example, '' if there is none.
    """

    index: int
    site: Address
    effect: float
    low: float
    high: float
    raw: float
    q: float
    n: int
    hint: str = ""

    def cells(self) -> tuple[str, ...]:
        """Write the row as texts."""
        effect = with_interval(self.effect, self.low, self.high)
        site = f"{self.site} ({self.hint})" if self.hint else str(self.site)
        return site, effect, number(self.raw, 3), p_value(self.q).removeprefix("= "), str(self.n)


@dataclass(frozen=True)
class Top:
    """The strongest sites, largest absolute effect first."""

    rows: tuple[Row, ...]
    headers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, place: int) -> Row:
        return self.rows[place]

    def __repr__(self) -> str:
        return table_text(self.headers, [row.cells() for row in self.rows])

    def _repr_html_(self) -> str:
        return table_html(self.headers, [row.cells() for row in self.rows])

    def __rich__(self) -> "Table":
        return rich_table(self.headers, [row.cells() for row in self.rows])
