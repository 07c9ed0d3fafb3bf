"""Token ids as users hold them (lists, arrays, padded tensors) read into plain rows."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from crosspatch.core.errors import BadInput


@runtime_checkable
class SupportsToList(Protocol):
    """A tensor or an array."""

    def tolist(self) -> Any:
        """Return nested lists of plain numbers."""
        ...


Rows = Sequence[Any] | SupportsToList


def to_plain(given: Any) -> Any:
    """Turn tensors and arrays, alone or inside a sequence, into nested lists; leave all else as it is."""
    if isinstance(given, SupportsToList):
        return given.tolist()
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [to_plain(each) for each in given]
    return given


def is_id(value: Any) -> bool:
    """Tell whether a plain value is a whole number (True and False are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_rows(given: Rows, what: str, *, mask: Rows | None) -> list[tuple[int, ...]]:
    """Return one tuple of token ids per example, padding left out where `mask` is 0.

    Raises BadInput for no example, an empty one, anything but whole numbers, or a mask that does not fit or has holes.
    """
    rows = to_plain(given)
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise BadInput(
            f"{what} must be a list of token-id lists or a 2-D tensor, but got {_describe(rows)}.{_hint(rows)}"
        )
    if not rows:
        raise BadInput(f"{what} is empty: give at least one prompt.")
    for index, row in enumerate(rows):
        wrong = next((each for each in row if not is_id(each)), None)
        if wrong is not None or not row:
            found = "is empty" if not row else f"holds {wrong!r}"
            raise BadInput(f"{what} prompt of example {index} {found}: token ids are whole numbers, at least one.")
    if mask is not None:
        rows = _strip(rows, to_plain(mask), what)
    return [tuple(row) for row in rows]


def split_masks(given: Any) -> tuple[Any, Any]:
    """Return the masks of the clean and the corrupt prompts: one given mask serves both, a tuple of two is split."""
    two = isinstance(given, tuple) and len(given) == 2 and all(_is_table(to_plain(each)) for each in given)
    return given if two else (given, given)


def refuse_padding(rows: Sequence[tuple[int, ...]], pad: int | None, *, what: str) -> None:
    """Raise BadInput if a row begins or ends in padding that no mask explains; `pad` None = no such token."""
    for index, row in enumerate(rows):
        # one padding id at the start may be BOS: some tokenizers use one token for both
        if pad is not None and len(row) > 1 and (row[-1] == pad or row[:2] == (pad, pad)):
            raise BadInput(
                f"{what} prompt of example {index} begins or ends with the padding token {pad}. Give "
                "attention_mask=… so that padding is left out, or a mask of ones if the tokens are meant."
            )


def _strip(rows: list[list[int]], masks: Any, what: str) -> list[list[int]]:
    if not isinstance(masks, list) or [_length(mask) for mask in masks] != [len(row) for row in rows]:
        raise BadInput(
            f"attention_mask does not fit {what}: it must have one 0 or 1 for each token id. If the two sides are "
            "padded differently, give a tuple: (mask of clean, mask of corrupt)."
        )
    return [_strip_one(row, masks[index], f"{what} prompt of example {index}") for index, row in enumerate(rows)]


def _strip_one(row: list[int], mask: list[Any], what: str) -> list[int]:
    if not set(mask) <= {0, 1}:  # True == 1, 0.0 == 0
        raise BadInput(f"attention_mask of {what} must hold 0 (padding) and 1 (token) only.")
    real = [index for index, each in enumerate(mask) if each]
    if not real:
        raise BadInput(f"attention_mask hides all of {what}: at least one token must be real.")
    start, stop = real[0], real[-1] + 1
    if stop - start != len(real):
        hole = next(index for index in range(start, stop) if not mask[index])
        raise BadInput(
            f"attention_mask of {what} has a hole at column {hole}: padding may stand before or after the tokens, "
            "not between them."
        )
    return row[start:stop]


def _is_table(plain: Any) -> bool:
    return isinstance(plain, list) and bool(plain) and isinstance(plain[0], list)


def _length(mask: Any) -> int | None:
    return len(mask) if isinstance(mask, list) else None


def _describe(rows: Any) -> str:
    if isinstance(rows, list):
        return f"a list holding {next((each for each in rows if not isinstance(each, list)), None)!r}"
    return type(rows).__name__ if not isinstance(rows, str) else f"the text {rows!r}"


def _hint(rows: Any) -> str:
    first = rows[0] if isinstance(rows, list) and rows else rows
    return " Texts go to from_texts(model, clean, corrupt, …)." if isinstance(first, str) else ""
