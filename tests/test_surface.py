"""The public surface: what `import crosspatch` offers, and that importing it is instant."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import crosspatch
import crosspatch.attribution
import crosspatch.audio
import crosspatch.circuits
import crosspatch.engine
import crosspatch.flow
import crosspatch.lenses
import crosspatch.models
import crosspatch.referee
import crosspatch.report
import crosspatch.workbench

LAZY = [
    *(crosspatch, crosspatch.circuits, crosspatch.engine, crosspatch.flow, crosspatch.models),
    *(crosspatch.attribution, crosspatch.audio, crosspatch.lenses, crosspatch.referee, crosspatch.report),
    crosspatch.workbench,
]


def declared(module):
    """Return the names that a module imports for type checkers."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    blocks = [n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    return {alias.asname or alias.name for block in blocks for node in block.body for alias in node.names}


@pytest.mark.parametrize("module", LAZY, ids=lambda m: m.__name__)
def test_lazy_names_exist(module):
    """Each name that a lazy package offers can be had, and type checkers know the same names."""
    assert list(module.__all__) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    offered = set(module.__all__) - {"load"}
    assert offered == declared(module)


@pytest.mark.parametrize("module", LAZY, ids=lambda m: m.__name__)
def test_unknown_name_lists_what_exists(module):
    """A name that does not exist gives an error that lists those that do."""
    with pytest.raises(AttributeError, match="it offers"):
        _ = module.no_such_name


def loaded_by(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip() == "True"


def test_import_does_not_load_torch():
    """`import crosspatch` and its command line load no torch."""
    assert not loaded_by("import crosspatch, crosspatch.cli")


def test_the_check_above_can_fail():
    """Asking for a name that needs torch loads it, so the test above sees a difference."""
    assert loaded_by("import crosspatch; crosspatch.patch")
