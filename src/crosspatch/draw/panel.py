"""Panel: what a heat map shows, and where its cells and labels go; pure data."""

import math
from dataclasses import dataclass
from unicodedata import east_asian_width

import numpy as np
from jaxtyping import Float

LONGEST = 14  # letters of a slanted label
_CHARACTER = 6.3  # width of an average character at the 10 px of labels
_BOLD = 1.13  # marked columns are labelled in bold
_SLANT = math.sqrt(0.5)  # labels hang at 45°
_TOP = 36  # pixels for the title and the word for rows


@dataclass(frozen=True)
class Panel:
    """One heat map: values with intervals, row 0 at the bottom; NaN was not run.

    A column label is `head` or `head ·token`. `marked` columns are those where the inputs differ; `outlined` cells
    (row, column) get a frame; `notes` say more about a cell under the pointer.
    """

    title: str
    values: Float[np.ndarray, "row column"]
    low: Float[np.ndarray, "row column"]
    high: Float[np.ndarray, "row column"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    marked: tuple[bool, ...] = ()
    outlined: tuple[tuple[int, int], ...] = ()
    row_word: str = "layer"


@dataclass(frozen=True)
class Layout:
    """Pixels of a heat map: the grid's corner, the size of a cell, of the whole, and how labels are set."""

    left: int
    top: int
    cell_width: int
    cell_height: int
    width: int
    height: int
    column_step: int
    row_step: int
    split: bool  # heads lie flat under the cells, tokens hang below them at a slant

    def corner(self, row: int, column: int, *, rows: int) -> tuple[int, int]:
        """Give the upper left corner of a cell; row 0 is at the bottom."""
        return self.left + column * self.cell_width, self.top + (rows - 1 - row) * self.cell_height


def split_label(label: str) -> tuple[str, str]:
    """Split a column label into its head (index, name or unit) and its token, '' if it has none."""
    head, _, token = label.partition(" ·")
    return head, token


def short_label(label: str) -> str:
    """Give what a reader knows a column by where there is room for one word: its token or name, else its head."""
    head, token = split_label(label)
    return token.strip("{}") or head


def labelled_columns(panel: Panel, step: int) -> list[int]:
    """Choose the columns that are labelled, `step` apart: marked ones come first, and none stands too close to them."""
    marked = [column for column, mark in enumerate(panel.marked) if mark]
    kept: list[int] = []
    for column in marked:
        if not any(other in marked for other in range(max(0, column - step + 1), column)):
            kept.append(column)
    free = (at for at in range(0, len(panel.columns), step) if all(abs(at - other) >= step for other in marked))
    return sorted([*kept, *free])


def lay_out(panel: Panel, *, room: int = 320, tall: int = 306) -> Layout:
    """Choose sizes so that the cells fill about `room` × `tall` pixels and no two labels meet."""
    rows, columns = panel.values.shape
    cell_width = max(7, min(30, room // max(columns, 1)))
    cell_height = max(5, min(22, tall // max(rows, 1)))
    parts = [split_label(label) for label in panel.columns]
    flat = max((text_width(head) for head, _ in parts), default=0) <= cell_width - 2
    hanging = [token if flat else label for (_, token), label in zip(parts, panel.columns, strict=True)]
    # Slanted labels need their line height along the axis, flat ones fit by the test above.
    column_step = math.ceil(12 / cell_width) if any(hanging) or not flat else 1
    weight = [_BOLD if marked else 1.0 for marked in panel.marked] or [1.0] * columns
    reach = [math.ceil(text_width(text[:LONGEST]) * w * _SLANT) for text, w in zip(hanging, weight, strict=True)]
    labels = max(math.ceil(max(map(text_width, panel.rows), default=0)) + 8, len(panel.row_word) * 5 + 4)
    # The slanted label of column i ends under its cell and begins `reach` pixels to the left.
    left = max([labels, *(far + 8 - int((i + 0.5) * cell_width) for i, far in enumerate(reach))])
    width = max(
        left + columns * cell_width + 6, math.ceil(max(len(panel.title) * 7.4, text_width(panel.title) * 1.2)) + 4
    )
    height = _TOP + rows * cell_height + (14 if flat else 0) + (max(reach, default=0) + 16 if any(hanging) else 6)
    row_step = max(1, math.ceil(11 / cell_height))
    return Layout(left, _TOP, cell_width, cell_height, width, height, column_step, row_step, flat)


def text_width(text: str) -> float:
    """Estimate the width of a label in pixels: broad letters take half as much again, East Asian ones nearly two."""
    return sum((_CHARACTER * _breadth(letter) for letter in text), 0.0)


def _breadth(letter: str) -> float:
    if east_asian_width(letter) in "WF":
        return 1.75
    return 1.55 if letter in "WMmw@%…" else 1.0
