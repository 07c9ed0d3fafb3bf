"""Run scripts of cells and write them, with what they print and draw, as pages: `python docs/pages.py tutorial gallery`.

A cell begins with `# %%` (code) or `# %% [markdown]` (prose in comments), as notebooks and editors know it. The name behind
`# %%` names the cell's pictures. As in a notebook, the value of a cell's last line is shown: its SVGs as pictures, else as text.
"""

import ast
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
CELL = re.compile(r"^# %% ?(?P<name>.*)\n(?P<body>(?:(?!# %%).*\n)*)", re.MULTILINE)
SVG = re.compile(r"<svg\b.*?</svg>", re.DOTALL)
SAYS = re.compile(r'aria-label="([^"]*)"')


@dataclass(frozen=True)
class Cell:
    """Prose, or code with a name for its pictures ('' if it needs none)."""

    prose: bool
    name: str
    text: str


def cells_of(script: str) -> list[Cell]:
    """Cut a script into its cells."""
    found = []
    for match in CELL.finditer(script):
        prose, body = match["name"] == "[markdown]", match["body"].strip()
        text = re.sub(r"^# ?", "", body, flags=re.MULTILINE) if prose else body
        found.append(Cell(prose, "" if prose else match["name"], text))
    return found


def run(cell: Cell, scope: dict[str, Any]) -> tuple[str, list[str]]:
    """Run a cell; give what it printed and what its last line drew."""
    tree, said = ast.parse(cell.text), io.StringIO()
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(said):
        exec(compile(tree, cell.name or "cell", "exec"), scope)
        value = eval(compile(ast.Expression(last.value), cell.name or "cell", "eval"), scope) if last else None
    drawn = value if isinstance(value, str) else getattr(value, "_repr_html_", str)()
    pictures = SVG.findall(drawn)
    shown = "" if pictures or value is None else repr(value)
    return "\n".join(line.rstrip() for line in f"{said.getvalue()}{shown}".strip("\n").splitlines()), pictures


def kept(page: str, name: str, pictures: list[str]) -> Iterator[str]:
    """Write pictures beside the page and give the lines that show them."""
    (HERE / page).mkdir(exist_ok=True)
    for number, svg in enumerate(pictures):
        path = HERE / page / (f"{name}-{number + 1}.svg" if number else f"{name}.svg")
        path.write_text(svg + "\n", encoding="utf-8")
        label = SAYS.search(svg)
        yield f"![{re.sub(r'[][]', '', label[1]) if label else name}]({page}/{path.name})"


def write(page: str) -> None:
    """Run a page's script in an empty folder and write the page and its pictures."""
    script = (HERE / f"{page}.py").read_text(encoding="utf-8")
    scope: dict[str, Any] = {"__name__": page}
    parts = [f"<!-- Written by `python docs/pages.py {page}` from {page}.py. -->"]
    with TemporaryDirectory() as folder, chdir(folder):
        for cell in cells_of(script):
            if cell.prose:
                parts.append(cell.text)
                continue
            said, pictures = run(cell, scope)
            assert cell.name or not pictures, f"a cell that draws needs a name: {cell.text}"
            parts.append(f"```python\n{cell.text}\n```")
            parts += [f"```text\n{said}\n```"] if said else []
            parts += ["\n".join(kept(page, cell.name, pictures))] if pictures else []
    (HERE / f"{page}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for given in sys.argv[1:]:
        write(given)
