"""The page on estimates: its Python runs, its tables are whole, its names are those of the code."""

from pathlib import Path

import pytest

from crosspatch.attribution.estimators import NAMES, PRESETS
from docs.test_practice import BLOCK, run_blocks

PAGE = Path(__file__).parents[2] / "docs" / "estimates.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.gemma
@pytest.mark.usefixtures("open_once")
def test_the_page_runs():
    assert run_blocks(TEXT, str(PAGE)) == len(BLOCK.findall(TEXT)) == 3


def test_every_estimator_and_preset_is_there():
    assert all(f"| `{name}` |" in TEXT for name in (*NAMES, *PRESETS))


@pytest.mark.parametrize("table", ["correlations", "recall", "bound"])
def test_tables_are_written(table):
    """The script has filled every table."""
    body = TEXT.split(f"<!-- {table} -->\n")[1].split(f"<!-- end of {table} -->")[0]
    assert len(body.splitlines()) >= 5
    assert "nan" not in body


def test_lrp_is_said_to_be_patented():
    assert "patented technology and free for personal\nand scientific use only" in TEXT
