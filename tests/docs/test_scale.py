"""The page on scale: its Python runs, and what it names exists."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from crosspatch.cli.app import app
from crosspatch.executors import EXECUTORS

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.gemma
@pytest.mark.usefixtures("open_once")
def test_the_page_runs(tmp_path):
    scope = {"folder": tmp_path}
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    for block in blocks:
        exec(block, scope)
    assert len(blocks) == 2


def test_executors_and_verbs_are_those_of_the_program():
    """Every executor has its row, and every command line on the page is one that parses."""
    text = PAGE.read_text(encoding="utf-8")
    for name in set(EXECUTORS) - {"auto"}:
        assert f"`{name}`" in text or f"--executor {name}" in text
    verbs = get_command(app).commands
    for line in re.findall(r"crosspatch ((?:patch|work|runs)[^\n`#|]*)", text):
        verb, *words = line.split()
        options = {word for word in words if word.startswith("--")}
        command = verbs[verb]
        inner = getattr(command, "commands", {}).get(words[0]) if words and verb == "runs" else command
        known = {option for one in (inner or command).params for option in one.opts}
        assert options <= known, line
