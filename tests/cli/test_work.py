"""Work shared out on the command line: executors, ranks, shares by hand, and the care of unfinished runs."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from crosspatch.core.journal import Journal
from crosspatch.engine.effects import Effects

QUESTION = ("--task", "ioi", "--n", "6", "--tokens", "8", "--threads", "1", "--require-accuracy", "0", "--no-report")


@pytest.fixture
def part(tiny, call, here, monkeypatch, once):
    """A run that was interrupted after its first patches."""
    from crosspatch.cli.running import SavingProgress

    def stop(self, done, note=""):
        raise KeyboardInterrupt

    def interrupted():
        with monkeypatch.context() as stopping:
            stopping.setattr(SavingProgress, "advance", stop)
            assert call("patch", tiny, *QUESTION, "--out", "part").exit_code == 130

    once(here / "part", interrupted)
    return here / "part"


@pytest.fixture
def whole(tiny, call, here, once):
    """The effects of the same question, undisturbed."""

    def run():
        assert call("patch", tiny, *QUESTION, "--out", "whole").exit_code == 0

    once(here / "whole", run)
    return Effects.load(here / "whole")


def same(folder, whole):
    """Assert that a folder holds the whole run, to the bit, and no journal any more."""
    found = Effects.load(folder)
    np.testing.assert_array_equal(found.raw, whole.raw)
    np.testing.assert_array_equal(found.base, whole.base)
    assert not (folder / "journal").exists()


def test_local_workers_give_the_same_run(tiny, call, here, whole):
    """Two processes, the same bits, and the folder of any run."""
    result = call("patch", tiny, *QUESTION, "--executor", "local", "--workers", 2, "--out", "local")
    assert result.exit_code == 0, result.output
    same(here / "local", whole)
    assert Effects.load(here / "local").provenance["settings"]["executor"] == "local"


def test_shares_are_run_by_hand_and_taken_over(tiny, call, part, whole, monkeypatch):
    """Two shares, then --resume finds nothing to run."""
    told = json.loads(call("work", part, "--share", "0/2", "--json").stdout)
    assert 0 < told["run"] <= told["units"]
    assert "share 1 of 2 is done" in call("work", part, "--share", "1/2").stdout
    assert "0 of " in call("work", part).stderr
    monkeypatch.setattr("crosspatch.engine.units.SweepJob.run", lambda *_: pytest.fail("a unit was run again"))
    assert call("patch", tiny, *QUESTION, "--resume", "part").exit_code == 0
    same(part, whole)


def test_work_takes_its_share_from_the_launcher(call, document, part, monkeypatch):
    """RANK and WORLD_SIZE say which; nonsense is refused."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert document("work", part)["share"] == [1, 2]
    for share in ("2/2", "1", "a/b"):
        result = call("work", part, "--share", share)
        assert result.exit_code == 2
        assert "write R/W" in result.stderr
    assert "holds no journal" in call("work", part.parent).stderr


def test_ranks_of_a_launcher_make_one_run(tiny, here, whole):
    """As torchrun starts them: rank 1 helps, rank 0 keeps the results; both exit 0."""
    command = [sys.executable, "-m", "crosspatch", "patch", str(tiny), *QUESTION, "--out", "ranks"]
    ranks = [
        subprocess.Popen(
            command,
            cwd=here,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    out = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], out
    assert "rank 1 of 2: " in out[1][1]
    assert out[1][0] == ""
    same(here / "ranks", whole)


def test_shards_of_two_machines_are_merged(tiny, call, here, part, whole):
    """Copies of a run, a share each, joined: whole and the same; another question's is refused."""
    for rank, name in enumerate(("a", "b")):
        shutil.copytree(part, here / name)
        assert call("work", name, "--share", f"{rank}/2").exit_code == 0
    result = call("runs", "merge", "a", "b", "--out", "joined")
    assert result.exit_code == 0, result.output
    units = Journal.found(here / "joined" / "journal").plan["units"]
    assert f"{units} of {units} are there" in result.stdout
    assert call("patch", tiny, *QUESTION, "--out", "joined").exit_code == 0
    same(here / "joined", whole)
    assert call("patch", tiny, *QUESTION, "--direction", "noise", "--executor", "local", "--out", "n").exit_code == 0


def test_what_cannot_be_merged(tiny, call, part, here, monkeypatch):
    """Another question, or the same one cut otherwise."""
    from crosspatch.cli.running import SavingProgress

    def stop(self, done, note=""):
        raise KeyboardInterrupt

    others = {"other": ("--direction", "noise"), "cut": ("--tokens", "20")}
    with monkeypatch.context() as stopping:
        stopping.setattr(SavingProgress, "advance", stop)
        for name, words in others.items():
            assert call("patch", tiny, *QUESTION, *words, "--out", name).exit_code == 130
    for name, told in (("other", "answers another question"), ("cut", "was cut otherwise")):
        result = call("runs", "merge", part, name, "--out", f"with-{name}")
        assert result.exit_code == 2
        assert told in result.stderr
    assert "holds no journal" in call("runs", "merge", here, "--out", "x").stderr


@pytest.mark.usefixtures("whole")
def test_verify_finds_what_is_damaged(call, document, here, part):
    """A whole run, a part of one, a flipped byte in either, and units that come out otherwise."""
    assert [c["name"] for c in document("runs", "verify", "whole")["checks"]] == ["results"]
    told = document("runs", "verify", part, "--again", 2)["checks"]
    assert [check["name"] for check in told if check["ok"]] == ["results", "journal", "repeated"]
    assert "the same to the bit" in told[2]["detail"]
    (log,) = (part / "journal").glob("*.log")
    data = bytearray(log.read_bytes())
    data[60] ^= 1
    log.write_bytes(data)
    arrays = here / "whole" / "arrays.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1])
    for folder in (part, "whole"):
        result = call("runs", "verify", folder)
        assert result.exit_code == 3
        assert "FAILED" in result.stdout
    assert call("runs", "verify", here / "runs").exit_code == 2


def test_verify_tells_numbers_that_come_out_otherwise(call, part):
    """A unit whose rows are not what running it gives is named."""
    journal = Journal.found(part / "journal")
    with journal:
        (log,) = (part / "journal").glob("*.log")
        rows = journal.read()
        unit = int(rows["unit"].max())
        mine = rows["unit"] == unit
        log.unlink()
        journal.append(
            unit, {name: values[mine] + (name == "0 logit_diff") for name, values in rows.items() if name != "unit"}
        )
    result = call("runs", "verify", part, "--again", 5)
    assert result.exit_code == 3
    assert f"units {unit} differ" in result.stdout


def test_list_shows_killed_runs_and_audits(tiny, call, document, here, monkeypatch):
    """A run of which only the journal is there, and audits, finished and not."""
    from crosspatch.cli.running import SavingProgress

    def stop(self, done, note=""):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(SavingProgress, "advance", stop)
        call("patch", tiny, *QUESTION)
    (folder,) = (here / "runs").iterdir()
    (folder / "meta.json").unlink()
    small = ("--task", "ioi", "--n", 6, "--sites", "mlp.out@S2", "--windows", "", "--corruptions", "replace")
    audit = document("audit", tiny, *small, "--metrics", "logit_diff,prob")["folder"]
    told = document("runs")["runs"]
    assert {run["folder"] for run in told} == {f"runs/{folder.name}", str(audit)}
    text = call("runs").stdout
    assert "units are done. Continue with: " in text
    assert "(audit" in text
    assert call("runs", "remove", f"runs/{folder.name}", "--yes").exit_code == 0
    assert call("runs", "remove", audit, "--yes").exit_code == 0
    assert not list((here / "runs").iterdir())
