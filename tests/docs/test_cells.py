"""Tutorial and gallery: pages are what their scripts say, the tutorial runs, pictures are small and whole."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.test_practice import BLOCK, run_blocks

DOCS = Path(__file__).parents[2] / "docs"
CELLS = runpy.run_path(str(DOCS / "pages.py"))
PAGES = ("tutorial", "gallery")
OUTPUT = re.compile(r"^```text\n.*?^```\n\n|^!\[[^\n]*\]\((?:tutorial|gallery)/[^\n]*\)\n+", re.MULTILINE | re.DOTALL)


def parts(page):
    return CELLS["cells_of"]((DOCS / f"{page}.py").read_text(encoding="utf-8"))


def text(page):
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_the_scripts(page):
    """Code blocks and prose, in order; what is left out are outputs."""
    cells = parts(page)
    assert [block.strip() for block in BLOCK.findall(text(page))] == [cell.text for cell in cells if not cell.prose]
    shown = re.sub(r"\n+", "\n", re.sub(r"^```(python)?$", "", OUTPUT.sub("", text(page)), flags=re.MULTILINE))
    meant = re.sub(r"\n+", "\n", "\n".join(cell.text for cell in cells))
    assert shown.split("\n", 1)[1].strip() == meant.strip()


@pytest.mark.gemma
@pytest.mark.usefixtures("open_once")
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_blocks(text("tutorial"), "tutorial") == len(BLOCK.findall(text("tutorial")))
    assert "Restoring resid.post[" in capsys.readouterr().out
    assert (tmp_path / "ioi.html").exists()


def test_cells_are_run_and_shown_as_in_a_notebook(tmp_path):
    """Printed text and a last value; a last value that draws gives pictures instead."""
    make, run = CELLS["Cell"], CELLS["run"]
    scope = {}
    assert run(make(False, "", "x = 2\nprint(x)\nx + 1"), scope) == ("2\n3", [])
    assert run(make(False, "", "y = x"), scope) == ("", [])
    assert run(make(False, "a", "'<svg a=\"1\">' + '</svg> and <svg></svg>'"), scope)[1] == [
        '<svg a="1"></svg>',
        "<svg></svg>",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_pictures_are_there_small_and_whole(page):
    shown = re.findall(rf"\(({page}/[^)]*\.svg)\)", text(page))
    kept = {path.relative_to(DOCS).as_posix() for path in (DOCS / page).iterdir()}
    assert set(shown) == kept
    for name in shown:
        svg = (DOCS / name).read_text(encoding="utf-8")
        assert len(svg) <= 100_000
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "url(http" not in svg
