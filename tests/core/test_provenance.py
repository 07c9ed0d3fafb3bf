import json
import subprocess
import sys
from datetime import datetime
from getpass import getuser
from pathlib import Path

import pytest

from crosspatch.core import provenance


def test_a_run_is_described_as_json():
    about = provenance.here(seed=3, n=8, sites="resid.pre", nested={"a": (1, 2.5, None, True)}, bad=float("nan"))
    assert json.loads(json.dumps(about, allow_nan=False)) == about
    assert about["seed"] == 3
    assert about["settings"] == {"n": 8, "sites": "resid.pre", "nested": {"a": [1, 2.5, None, True]}, "bad": "nan"}
    assert about["crosspatch"] == "0.1.0"
    assert datetime.fromisoformat(about["time"]).utcoffset().total_seconds() == 0


def test_no_folder_of_the_machine_is_told(monkeypatch):
    """Paths keep their last part: the reader learns which file, not where or whose."""
    monkeypatch.setattr(sys, "argv", ["/home/ada/bin/crosspatch", "patch", "/home/ada/gemma", "--out=/tmp/x/run a"])
    about = provenance.here(
        model="/home/ada/models/gemma-3-270m", out=Path("/var/tmp/run"), note="C:\\Users\\ada\\m.gguf"
    )
    assert about["command"] == "crosspatch patch gemma '--out=run a'"
    assert about["settings"] == {"model": "gemma-3-270m", "out": "run", "note": "m.gguf"}


@pytest.mark.parametrize("text", ["and/or", "google/gemma-3-270m", "a / b", "runs/ioi", "resid.pre[2:6]@S2", "1/2"])
def test_texts_that_are_no_absolute_paths_stay(text):
    assert provenance.here(text=text)["settings"]["text"] == text


def test_neither_user_nor_home_is_told(monkeypatch):
    monkeypatch.setattr(sys, "argv", [sys.argv[0], str(Path.home() / "run")])
    text = json.dumps(provenance.here(path=str(Path.home() / "x" / "y")))
    assert str(Path.home()) not in text
    assert f"/{getuser()}/" not in text


def test_a_package_that_was_run_is_told_so_that_the_command_can_be_given_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/ada/src/crosspatch/__main__.py", "study", "speech"])
    assert provenance.here()["command"] == "python -m crosspatch study speech"


def test_describing_a_run_imports_no_torch():
    """A subprocess, because other tests have imported it here; libraries are named only if imported."""
    code = (
        "import json, sys; from crosspatch.core.provenance import here; about = here();"
        "assert 'torch' not in sys.modules and 'torch' not in about['versions'], about;"
        "import numpy; assert 'numpy' in here()['versions']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_commit_is_that_of_crosspatch_or_none(monkeypatch, tmp_path):
    """From an installed copy, the commit of whatever project surrounds it would say nothing."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lib" / "crosspatch" / "core" / "provenance.py"))
    assert provenance.here()["commit"] is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "a")
    assert provenance.here()["commit"] is None


def git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True)


def test_the_commit_of_a_source_checkout(monkeypatch, tmp_path):
    core = tmp_path / "src" / "crosspatch" / "core"
    core.mkdir(parents=True)
    (core / "a.py").write_text("1")
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(provenance, "__file__", str(core / "provenance.py"))
    assert provenance.here()["commit"] is None  # nothing committed yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "a")
    commit = git(tmp_path, "rev-parse", "HEAD").stdout.strip()
    assert provenance.here()["commit"] == commit
    (core / "a.py").write_text("2")
    assert provenance.here()["commit"] == f"{commit}-dirty"


def test_a_machine_without_git(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance.subprocess, "run", absent)
    assert provenance.here()["commit"] is None
