"""The page on circuits: its Python runs, its tables are whole, its names are those of the code."""

from pathlib import Path

import pytest

from crosspatch.circuits.method import METHODS
from docs.test_practice import BLOCK, run_blocks

PAGE = Path(__file__).parents[2] / "docs" / "circuits.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.gemma
@pytest.mark.usefixtures("open_once")
def test_the_page_runs():
    assert run_blocks(TEXT, str(PAGE)) == len(BLOCK.findall(TEXT)) == 3


def test_every_method_is_there():
    assert all(f"| `{name}` |" in TEXT for name in METHODS)


@pytest.mark.parametrize("table", ["areas", "sizes", "times"])
def test_tables_are_written(table):
    """The script has filled every table."""
    body = TEXT.split(f"<!-- {table} -->\n")[1].split(f"<!-- end of {table} -->")[0]
    assert len(body.splitlines()) >= 10
    assert "nan" not in body
