"""The page on generation: its Python runs, on the real model, and its table of times is that of the code."""

from pathlib import Path

import pytest

from crosspatch.engine.script import WHEN
from docs.test_practice import BLOCK, run_blocks

PAGE = Path(__file__).parents[2] / "docs" / "generation.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.gemma
def test_the_page_runs():
    assert run_blocks(TEXT, str(PAGE)) == len(BLOCK.findall(TEXT)) == 5


@pytest.mark.parametrize("when", WHEN)
def test_every_time_is_there(when):
    assert f'| `"{when}"` |' in TEXT
