"""Tables for papers: LaTeX in the style of booktabs, every text escaped."""

import re
from collections.abc import Sequence

_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "_%&#${}"},
    # Without T1 fonts these print as other signs.
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # What labels hold and LaTeX has no letter for.
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "·": r"\textperiodcentered{}",
    "…": r"\ldots{}",
    "␣": r"\textvisiblespace{}",
    "→": r"$\rightarrow$",
    "∅": r"$\emptyset$",
    "⏎": r"$\hookleftarrow$",
}

_MINUS = re.compile(r"(?<![\w.\-])-(?=\d)")


def latex_text(text: str) -> str:
    """Escape a text for LaTeX: no sign of it is a command, a comment, a group or mathematics; line ends are spaces.

    Only the hyphen before a number becomes a minus.
    """
    line = _MINUS.sub("−", " ".join(text.split()))
    return "".join(_SIGNS.get(sign, sign) for sign in line)


def table_latex(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a `tabular` with rules of the package booktabs: the first column to the left, the others to the right."""
    body = [_line(headers), r"\midrule", *map(_line, rows)]
    columns = "l" + "r" * (len(headers) - 1)
    start = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    return "\n".join([*start, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _line(cells: Sequence[str]) -> str:
    line = " & ".join(map(latex_text, cells))
    # Behind the end of the line before, these would be its arguments.
    return f"{'{}' if line[:1] in ('[', '*') else ''}{line} \\\\"
