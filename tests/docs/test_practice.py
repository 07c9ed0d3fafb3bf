"""The page on practice: its Python runs, its thresholds are those of the code, its rules are all rules."""

import re
from pathlib import Path

import pytest

from crosspatch.engine.wording import FEWEST as FEWEST_PAIRS
from crosspatch.referee import case, compare, disagreement, result, rules

PAGE = Path(__file__).parents[2] / "docs" / "practice.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_blocks(text: str, name: str = "page") -> int:
    """Run the Python blocks of a page in one namespace, each at its own lines, so that a failure names them."""
    scope: dict[str, object] = {"__name__": name}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        before = text[: block.start(1)].count("\n")
        exec(compile("\n" * before + block.group(1), name, "exec"), scope)
    return len(blocks)


@pytest.mark.gemma
def test_the_page_runs():
    assert run_blocks(PAGE.read_text(encoding="utf-8"), str(PAGE)) == 15


@pytest.mark.parametrize("code", ["assert 1 == 2", "1 / 0", "no_such_name", "def broken("])
def test_a_block_that_fails_fails_the_page(code):
    """Wherever it stands; and blocks share names."""
    page = "text\n\n```python\nx = 1\n```\n\n```python\nassert x == 1\n```\n"
    assert run_blocks(page) == 2
    with pytest.raises((AssertionError, ZeroDivisionError, NameError, SyntaxError)) as failed:
        run_blocks(f"{page}\n```python\n{code}\n```\n")
    lines = [entry.lineno + 1 for entry in failed.traceback if str(entry.path).endswith("page")]
    assert lines in ([12], [])  # a block that cannot be read has not run


def test_no_python_is_left_out():
    """All fences of Python are of the form that is run."""
    text = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"^\s*(?:```|~~~)\s*py", text, re.MULTILINE | re.IGNORECASE)) == len(BLOCK.findall(text))
    assert text.count("```") == 2 * len(BLOCK.findall(text))


def row(rule: str) -> str:
    """The table's line on a rule."""
    return next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{rule}`"))


THRESHOLDS = {
    "caution": [f"fewer than {FEWEST_PAIRS} pairs"],
    "breaks": [f"at most {case.VOID} of"],
    "gate.AND": [f"noise ≥ {compare.SHARE}", f"≥ {rules.TIMES:.0f} × denoise", f"below −{compare.SHARE}"],
    "gate.OR": [],
    "gate.ADDER": [f"≥ {compare.SHARE}", f"< {rules.IN_PART}", f"within {rules.ALIKE} of"],
    "backup": [f"direct ≥ {compare.SHARE}", f"total ≤ {rules.MADE_GOOD} × direct"],
    "direction": [],
    "saturation": [f"less than {rules.SMALL_ROOM} of room"],
    "metric": [],
    "corruption": [],
    "question": [],
    "window": [f"≥ {compare.SHARE}", f"≥ {rules.INFLATED} ×"],
    "steps": [" or ".join(case.STEPS)],
}


@pytest.mark.parametrize("rule", THRESHOLDS)
def test_thresholds_are_those_of_the_code(rule):
    assert all(words in row(rule) for words in THRESHOLDS[rule]), row(rule)


def test_the_rest_of_the_thresholds():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert compare.SPREADS == 2
    assert f"{compare.LEAST} of the gap or more. With fewer than {compare.FEW} such sites" in text
    assert f"{compare.SHARE} of the gap takes its place" in text
    assert compare.MISSED == 0.5
    assert "not half-way" in text
    assert f"reach {compare.LEAST} in one of the two, {compare.FEWEST} at least" in text
    assert f"rank correlation is below {disagreement.AGREE}" in text
    assert pytest.approx(1 / 3) == disagreement.DIFFERS
    assert "a third or more of all" in text
    assert result.SURE == 0.9


def test_every_rule_is_on_the_page():
    """Rule names in the code's findings are those of the table, and the other way round."""
    code = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (rules, disagreement))
    named = set(re.findall(r'Finding\(\s*"(\w+)"', code)) | {f"gate.{gate}" for gate in ("AND", "OR", "ADDER")}
    lines = re.findall(
        r"^\| `([\w.]+)` \| .* \| (?:\*\w+\*|this page) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(lines) == named == set(THRESHOLDS)
