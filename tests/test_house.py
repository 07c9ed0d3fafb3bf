"""The house rules that a machine can count: sizes, parameters, prints, words."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FUNCTIONS = [
    (path, node)
    for path in SOURCES
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]


def length(node):
    return node.end_lineno - node.lineno + 1


def named(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_files_are_short():
    """No source file has more than 400 lines."""
    long = [
        f"{p.relative_to(ROOT)} {n}" for p in SOURCES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400
    ]
    assert not long


def test_functions_are_short():
    """Median at most 12 lines, nine in ten at most 35, none over 80."""
    sizes = sorted(length(node) for _, node in FUNCTIONS)
    assert statistics.median(sizes) <= 12
    assert sizes[int(0.9 * len(sizes))] <= 35
    assert not [named(p, n) for p, n in FUNCTIONS if length(n) > 80]


def positional(node):
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    return names[1:] if names[:1] in (["self"], ["cls"], ["_"]) else names


# They describe a whole data set, metric, estimate, search or text, each part optional; an object would rename them.
DESCRIBING = {"attribute", "find", "from_tokens", "from_texts", "generate", "metric_from"}
# A typer command has one parameter an option: they are its command line, frozen by a test of their own.
COMMANDS = "cli"


def test_parameters_are_few():
    """At most 6 parameters, a command line's options and the constructors above apart."""
    many = [
        named(p, n)
        for p, n in FUNCTIONS
        if len(positional(n)) + len(n.args.kwonlyargs) > 6
        and n.name not in DESCRIBING
        and COMMANDS not in p.relative_to(ROOT).parts
    ]
    assert not many


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_module_says_its_job(path):
    """Each module opens with a docstring of one line that says its job."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text
    assert text.splitlines()[0].strip().endswith((".", "?", ":", "!"))


def test_no_pickle_and_no_print():
    """Library code neither prints nor unpickles."""
    text = {p: p.read_text(encoding="utf-8") for p in SOURCES}
    found = [str(p) for p, t in text.items() if "import pickle" in t or "torch.load(" in t]
    calls = [
        named(p, node)
        for p, t in text.items()
        for node in ast.walk(ast.parse(t))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "print"
        and setattr(node, "name", "print") is None
    ]
    assert not found
    assert not calls
