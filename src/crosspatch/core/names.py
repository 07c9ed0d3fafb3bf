"""Names of models and tasks as parts of file names."""

import re


def plain_name(name: str) -> str:
    """Make a task's or a model's name fit for a folder: without parents, blanks and signs."""
    return re.sub(r"[^\w.-]+", "-", name.rsplit("/", 1)[-1]).strip("-.") or "unnamed"
