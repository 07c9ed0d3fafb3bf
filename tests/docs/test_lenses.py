"""The page on lenses: its Python for speech runs on the real Whisper."""

import shutil
from pathlib import Path

import pytest

from docs.test_practice import BLOCK, run_blocks

PAGE = Path(__file__).parents[2] / "docs" / "lenses.md"


@pytest.mark.whisper
def test_the_speech_section_runs(tmp_path, monkeypatch, capsys):
    shutil.copy(Path(__file__).parents[1] / "audio" / "fox.flac", tmp_path)
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text(encoding="utf-8").split("\n## ")[2]
    assert section.startswith("Any module's decoder")
    assert run_blocks(section, str(PAGE)) == len(BLOCK.findall(section)) == 1
    said = capsys.readouterr().out
    assert "The quick brown fox jumps over the lazy dog, please bring me a cup of tea." in said
    assert "(3." in said  # of four layers
