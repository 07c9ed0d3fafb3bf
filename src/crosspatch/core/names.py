"""Names and counts as text: parts of file names, `1 pair`, `12,345 pairs`."""

import re


def plain_name(name: str) -> str:
    """Make a task's or a model's name fit for a folder: without parents, blanks and signs."""
    return re.sub(r"[^\w.-]+", "-", name.rsplit("/", 1)[-1]).strip("-.") or "unnamed"


def counted(count: int, word: str) -> str:
    """Write a count with its word, in the plural unless it is one."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"
