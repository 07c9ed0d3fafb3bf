"""The page on any model: its Python runs on the real Whisper, and its table names what is tested."""

import shutil
from pathlib import Path

import pytest

from docs.test_practice import BLOCK, run_blocks
from modules.trials import CASES

PAGE = Path(__file__).parents[2] / "docs" / "any-model.md"
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


def test_every_tested_class_is_in_the_table():
    own = {"mlp", "cnn", "gru", "bert without a head"}  # classes of the zoo's own, or in the table by another head
    assert all(f"`{type(case.build()).__name__}`" in TEXT for name, case in CASES.items() if name not in own)
