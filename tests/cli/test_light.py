"""The command line answers at once: no help loads torch, and the test of that can fail."""

import subprocess
import sys

import pytest

HELPS = """
import sys
from crosspatch.cli.app import app
for verb in {verbs!r}:
    try:
        app([*verb.split(), "--help"], prog_name="crosspatch")
    except SystemExit as end:
        assert end.code == 0, verb
heavy = [name for name in ("torch", "transformers", "pandas", "numpy") if name in sys.modules]
print("HEAVY", *heavy)
"""
VERBS = (
    "demo",
    "patch",
    "path",
    "knockout",
    "audit",
    "attribute",
    "circuit",
    "circuit find",
    "circuit score",
    "circuit compare",
    "circuit show",
    "lens",
    "sites",
    "tasks",
    "doctor",
    "bench",
    "runs",
    "runs list",
    "runs show",
    "runs remove",
    "report",
)


def run_python(code, *words):
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)


def heavy_modules(code):
    """Run code that ends by printing HEAVY and the heavy modules that it loaded; list them."""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_no_help_loads_torch():
    """`--help`, and the help of each verb, load none of the heavy libraries."""
    assert heavy_modules(HELPS.format(verbs=("", *VERBS))) == []


def test_the_test_above_can_fail():
    """A library that the command line would load is seen."""
    assert "torch" in heavy_modules("import torch\n" + HELPS.format(verbs=("",)))


def test_version_loads_no_torch():
    """`--version` prints the version, and loads no torch."""
    code = (
        "import sys\nsys.argv = ['crosspatch', '--version']\nfrom crosspatch.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('HEAVY', *({'torch'} & set(sys.modules)))"
    )
    assert heavy_modules(code) == []
    assert run_python(code).stdout.startswith("crosspatch 0.")


def test_list_of_tasks_loads_no_torch():
    """`crosspatch tasks` without a model needs no torch."""
    code = (
        "import sys\nfrom crosspatch.cli.app import app\n"
        "try:\n    app(['tasks'])\nexcept SystemExit:\n    print('HEAVY', *({'torch'} & set(sys.modules)))"
    )
    assert heavy_modules(code) == []


@pytest.mark.parametrize("width", ["80", "60"])
def test_help_fits_the_terminal(width):
    """No line of a verb's help but a pasted example is wider than a narrow terminal."""
    code = f"import os; os.environ['COLUMNS'] = '{width}'\n" + HELPS.format(verbs=("", *VERBS))
    lines = run_python(code).stdout.splitlines()
    assert len(lines) > 100
    assert [line for line in lines if len(line) > int(width) and not line.startswith("  crosspatch ")] == []


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_told_otherwise(given, found, monkeypatch):
    """The program lets waiting threads sleep, so that a busy machine does not slow it down; the user's word counts."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    code = (
        "import os, sys\nsys.argv = ['crosspatch', '--version']\nfrom crosspatch.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('HEAVY', os.environ['OMP_WAIT_POLICY'])"
    )
    assert heavy_modules(code) == [found]
