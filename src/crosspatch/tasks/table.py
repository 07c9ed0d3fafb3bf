"""Files of prompts, CSV or JSON lines, read into checked rows with their lines; what is wrong is told, not raised."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from crosspatch.core.errors import BadInput

NEEDED = ("clean", "corrupt", "right")
ALLOWED = ("wrong", "subject", "positions")
DELIMITERS = (",", ";", "\t")
Text = Annotated[str, Field(min_length=1)]
Answers = Annotated[list[Text], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]


class Row(BaseModel):
    """Hold one line of a file: two prompts, their answers, and the words whose last token is a named position."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    clean: Text
    corrupt: Text
    right: Annotated[Answers, Field(min_length=1)]
    wrong: Answers = []
    subject: str = ""
    positions: dict[str, Text | tuple[Text, Annotated[int, Field(ge=1)]]] = {}


Line = tuple[int, Row | str]  # the line's number, and its row or what is wrong with it


def read_lines(path: Path) -> Iterator[Line]:
    """Read the file line by line; empty lines are left out.

    Raises BadInput if the file cannot be read at all: missing, no UTF-8 or UTF-16, another ending, columns missing.
    """
    text = _decode(path)
    yield from _read_json(text) if path.suffix.lower() in (".jsonl", ".ndjson") else _read_csv(text, path.name)


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{str(path)!r} cannot be read: {error.strerror or error}. Give a file of prompts.") from None
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadInput(f"{path.name}, line {line}: the file is no {error.encoding}. Save it as UTF-8.") from None


def _read_json(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                given = json.loads(line)
            except json.JSONDecodeError as error:
                yield number, f"no JSON: {error.msg} at column {error.colno}"
                continue
            yield number, _check(given) if isinstance(given, dict) else "no JSON object: write {…} on each line"


def _read_csv(text: str, name: str) -> Iterator[Line]:
    delimiter, columns = _header(text, name)
    # newline="" keeps line breaks inside quotes as they are
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    next(row for row in reader if any(cell.strip() for cell in row))
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"no CSV: {error}"
            return
        if any(cell.strip() for cell in cells):
            yield number, _read_cells(cells, columns, delimiter)


def _header(text: str, name: str) -> tuple[str, list[str]]:
    """Find the delimiter with which the first line names the most columns; raise BadInput if some are missing."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    found = [(each, [cell.strip().strip('"').lower() for cell in first.split(each)]) for each in DELIMITERS]
    delimiter, columns = max(found, key=lambda item: len({*NEEDED, *ALLOWED} & set(item[1])))
    missing, twice = set(NEEDED) - set(columns), len(set(columns)) < len(columns)
    unknown = [_unknown(column) for column in columns if column not in (*NEEDED, *ALLOWED)]
    if missing or unknown or twice:
        lacks = [f"column {column!r} is missing" for column in NEEDED if column in missing]
        wrong = "; ".join([*lacks, *unknown, *(["a column stands twice"] if twice else [])])
        raise BadInput(
            f"{name}, line 1: {wrong}. The first line names the columns, separated by commas, semicolons or tabs: "
            f"{', '.join(NEEDED)}, and if wanted {', '.join(ALLOWED)}."
        )
    return delimiter, columns


def _unknown(column: str) -> str:
    close = get_close_matches(column, (*NEEDED, *ALLOWED), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "other positions go into 'positions' as JSON"
    return f"column {column!r} is unknown ({hint})"


def _read_cells(cells: Sequence[str], columns: Sequence[str], delimiter: str) -> Row | str:
    if len(cells) != len(columns):
        return (
            f"{len(cells)} cells for {len(columns)} columns: put cells that hold {delimiter!r} in double quotes, and "
            "leave no cell out"
        )
    given: dict[str, Any] = {column: cell for column, cell in zip(columns, cells, strict=True) if cell}
    given |= {side: given[side].split("|") for side in ("right", "wrong") if side in given}
    try:
        given |= {"positions": json.loads(given["positions"])} if given.get("positions", "").strip() else {}
    except json.JSONDecodeError as error:
        return f'positions is no JSON: {error.msg} at character {error.pos}; write such as {{"verb": "went"}}'
    return _check(given)


def _check(given: dict[str, Any]) -> Row | str:
    try:
        return Row.model_validate(given)
    except ValidationError as error:
        return "; ".join(dict.fromkeys(_explain(each) for each in error.errors(include_url=False)))


def _explain(error: Any) -> str:
    where = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return _unknown(where)
    if error["type"] == "missing":
        return f"{where!r} is missing"
    if where == "positions":
        return "'positions' must map names to words of the clean prompt, or to [words, which occurrence]"
    if error["type"] in ("string_too_short", "too_short"):
        return f"{where!r} is empty, or one of its answers is"
    return f"{where!r} is {error['input']!r}: {error['msg'].lower()}"
