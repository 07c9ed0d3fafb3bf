"""The pages for users of other libraries: our side runs, and every name in their tables is taken."""

import re
import runpy
from pathlib import Path

import pytest

import crosspatch as xp
from crosspatch.core.errors import CrosspatchError
from crosspatch.sites import parse
from crosspatch.sites.transformer_lens import _IN_BLOCK
from docs.test_practice import BLOCK, run_blocks

ROOT = Path(__file__).parents[2]
PAGES = ("transformer-lens", "nnsight", "pyvene")


def text(page):
    return (ROOT / "docs" / f"from-{page}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small GPT-2 with a tokenizer, the same that both sides are compared on."""
    path = tmp_path_factory.mktemp("gpt2")
    runpy.run_path(str(ROOT / "bench" / "coming.py"))["stand_in"](path)
    return path


@pytest.mark.parametrize("page", PAGES)
def test_our_side_runs(page, folder, monkeypatch):
    opened = xp.open_model(folder)
    monkeypatch.setattr(xp, "open_model", {"gpt2": opened}.__getitem__)
    assert run_blocks(text(page), page) == len(BLOCK.findall(text(page))) >= 6


@pytest.mark.parametrize("page", PAGES)
def test_sides_stand_together(page):
    """Their fences are not ours, each pair is in one frame, and lines fit two columns."""
    pairs = re.findall(r'<div class="sides" markdown>\n\n(.*?)\n\n</div>', text(page), re.DOTALL)
    assert len(pairs) == text(page).count("<div") >= 6
    for pair in pairs:
        assert re.findall(r"^```(\w+)$", pair, re.MULTILINE) == ["py", "python"]
        assert max(map(len, pair.splitlines())) <= 72


def test_names_of_transformer_lens_are_taken():
    """The table has all names that are sites here, and what is said not to exist does not."""
    page = text("transformer-lens")
    assert all(f"`{name}`" in page or f"`{name.removeprefix('attn.')}`" in page for name in _IN_BLOCK)
    (refused,) = re.findall(r"^- No (.*)\.$", page, re.MULTILINE)[:1]
    for name in re.findall(r"`(?:ln\.)?(hook_\w+)`", refused):
        for place in ("", "attn.", "mlp.", "ln1."):
            with pytest.raises(CrosspatchError):
                parse(f"blocks.0.{place}{name}")
