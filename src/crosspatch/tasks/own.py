"""Tasks of the user's own files: rows of CSV or JSON lines made into pairs, every problem with its line."""

import re
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from crosspatch.core.errors import BadInput
from crosspatch.tasks.answers import check_mode
from crosspatch.tasks.build import from_texts
from crosspatch.tasks.pair import Task
from crosspatch.tasks.prompts import last_token
from crosspatch.tasks.tokens import OpenedModel, tokenizer_of
from crosspatch.tasks.words import check_n

if TYPE_CHECKING:
    from crosspatch.tasks.table import Row

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
SHOWN = 10  # problems that one error lists


def is_file_name(name: str) -> bool:
    """Tell whether a task's name is that of a file of prompts, by its ending."""
    return Path(name).suffix.lower() in SUFFIXES


def from_file(
    model: OpenedModel, path: str | PathLike[str], *, n: int | None = None, answers: str = "one token"
) -> Task:
    """Make a task of a file's prompts: CSV (comma, semicolon or tab) with a line of column names, or JSON lines.

    Columns or keys: `clean` and `corrupt`, the prompts; `right` and, if wanted, `wrong`, the answers exactly as they
    follow (" Mary"), several separated by | in CSV and as a list in JSON; `subject`, words of the clean prompt whose
    last token is named subject; `positions`, a mapping (JSON in CSV) of names to words, or to [words, which of them].
    `n` keeps the first rows only. `answers` is as in `from_tokens`. The task is named after the file.

    Raises BadInput for a file that cannot be read, else with the first ten problems of all rows, each with its line.

    >>> task = from_file(model, "prompts.csv")
    """
    from crosspatch.tasks.table import read_lines

    check_mode(answers)
    tokenizer_of(model)
    if n is not None:
        check_n(n)
    file = Path(path)
    if not is_file_name(file.name):
        raise BadInput(f"{file.name!r}: a file of prompts ends in {', '.join(SUFFIXES)}.")
    made = [(line, row if isinstance(row, str) else _make(model, row, line, answers)) for line, row in read_lines(file)]
    problems = [f"line {line}: {found}" for line, found in made if isinstance(found, str)]
    if problems or not made:
        raise BadInput(_report(file.name, problems))
    tasks = [found for _, found in made if isinstance(found, Task)]
    return _join(tasks[:n], file, answers=answers, rows=len(tasks))


def _make(model: OpenedModel, row: "Row", line: int, answers: str) -> Task | str:
    """Make a task of one pair, or say what is wrong with it."""
    try:
        names = _find(model, row)
        prompts = [row.clean], [row.corrupt]
        return from_texts(model, *prompts, right=[row.right], wrong=[row.wrong], names=names, answers=answers)
    except BadInput as error:
        # the builder counts examples, of which this is its only one
        return re.sub(r"^example 0: ", "", str(error)).replace("example 0", f"line {line}")


def _find(model: OpenedModel, row: "Row") -> dict[str, int]:
    wanted = {**({"subject": row.subject} if row.subject else {}), **row.positions}
    return {name: _locate(model, row.clean, name, words) for name, words in wanted.items()}


def _locate(model: OpenedModel, text: str, name: str, given: str | tuple[str, int]) -> int:
    """Return the position of the last token of whole words in a text. Raises BadInput if that is no one place."""
    words, which = (given, None) if isinstance(given, str) else given
    found = list(re.finditer(rf"(?<!\w){re.escape(words.strip())}(?!\w)", text))
    if len(found) < (which or 1):
        raise BadInput(f"{name!r}: {words!r} stands {len(found)} times in the clean prompt {text!r}.")
    if which is None and len(found) > 1:
        raise BadInput(
            f"{name!r}: {words!r} stands {len(found)} times: say which in positions, such as [{words!r}, 2]."
        )
    at = last_token(model, text, found[(which or 1) - 1].end())
    if at is None:
        raise BadInput(f"{name!r}: a token runs across the end of {words!r}, so it has no position of its own.")
    return at


def _report(name: str, problems: list[str]) -> str:
    if not problems:
        return f"{name} has no rows: give at least one pair of prompts."
    more = [f"… and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    head = f"{name} has {len(problems)} {'problem' if len(problems) == 1 else 'problems'}:"
    return "\n  ".join([head, *problems[:SHOWN], *more])


def _join(tasks: list[Task], file: Path, *, answers: str, rows: int) -> Task:
    comparable = all(task.metric == "logit_diff" for task in tasks)
    return replace(
        tasks[0],
        name=re.sub(r"[^\w.-]+", "-", file.stem),
        pairs=tuple(pair for task in tasks for pair in task.pairs),
        metric="logit_diff" if comparable else "logprob",
        settings={"n": len(tasks), "file": file.name, "rows": rows, "answers": answers},
        tokens=tuple(row for task in tasks for row in task.tokens),
    )
