"""The page on any model: its Python runs on the real Whisper, and its table names all that is tested."""

import shutil
from pathlib import Path

import pytest

from docs.test_practice import BLOCK, run_blocks
from modules.families import PAGE, family, page_rows
from modules.trials import CASES

TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.whisper
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    shutil.copy(Path(__file__).parents[1] / "audio" / "fox.flac", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_blocks(TEXT, str(PAGE)) == len(BLOCK.findall(TEXT)) == 2
    said = capsys.readouterr().out
    assert "encoder 4" in said
    assert "decoder.cross.out" in said
    assert "Decoded: 5 sites × 1 examples, noise" in said


def test_the_table_has_the_families_of_the_zoo_and_no_others():
    """What stands in a family's row is checked where it is measured: tests/modules/test_patch_any.py."""
    named = dict.fromkeys(line.split(" | ")[0].removeprefix("| ") for line in page_rows())
    assert list(named) == [family(name) for name in CASES]
