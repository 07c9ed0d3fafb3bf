"""The pages of errors: every class has one, each example raises that class with that message, and no page is stale."""

import runpy
from pathlib import Path

import pytest

from docs.test_practice import BLOCK

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "errors.py"))
CLASSES, PAGES = SCRIPT["classes"](), SCRIPT["PAGES"]
# They take a machine that is full, or a process that is killed.
NOT_RUN = {"DiskFull", "Interrupted", "MemoryShortage", "WorkerLost"}


def text(name):
    return (DOCS / "errors" / f"{name}.md").read_text(encoding="utf-8")


def test_every_error_has_a_page():
    files = {path.stem for path in (DOCS / "errors").glob("*.md")} - {"index"}
    assert set(CLASSES) == set(PAGES) == files
    assert text("index") == SCRIPT["index"]()
    assert {name for name, page in PAGES.items() if not page.code} == NOT_RUN


@pytest.mark.parametrize("name", sorted(set(CLASSES) - NOT_RUN))
def test_the_example_raises_it(name):
    (code,) = BLOCK.findall(text(name))
    problem = SCRIPT["message_of"](code)
    assert isinstance(problem, CLASSES[name])
    assert name in (type(problem).__name__, "CrosspatchError")
    assert f"```text\n{type(problem).__name__}: {problem}\n```" in text(name)


@pytest.mark.parametrize("name", sorted(NOT_RUN))
def test_a_page_without_code_says_so(name):
    assert text(name) == SCRIPT["written"](name)
    assert "so no code is run for this page" in text(name)


def test_an_example_that_raises_nothing_is_no_example():
    with pytest.raises(AssertionError, match="nothing was raised"):
        SCRIPT["message_of"]("x = 1")
