"""Ctrl-C in the middle of a sweep keeps what is done, and `--resume` completes it to the same numbers."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from crosspatch.engine.effects import Effects

# Ctrl-C must reach the child even where its parent ignores it; each pack is told at once, so that we see where it is.
CHILD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import crosspatch.core.progress
crosspatch.core.progress.LINE_EVERY = 0.0
from crosspatch.cli import main
main()
"""
QUESTION = ("--task", "ioi", "--n", "6", "--tokens", "8", "--require-accuracy", "0", "--no-report")


def interrupted(folder, words):
    """Run a verb as a process of its own, send it Ctrl-C after its first finished patches; give what it said."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    for line in child.stderr:
        said.append(line)
        if "patches ·" in line:
            child.send_signal(signal.SIGINT)
            break
    out, rest = child.communicate(timeout=120)
    return child.returncode, out, "".join(said) + rest


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory):
    """Interrupt one sweep, for all tests here; give its folder, exit code and output."""
    folder = tmp_path_factory.mktemp("stopped")
    return folder, *interrupted(folder, ("patch", tiny, *QUESTION, "--json"))


def test_interrupt_keeps_what_is_done(stopped):
    """Ctrl-C exits with 130 and a saved part, marked as interrupted; there is no traceback."""
    folder, code, out, err = stopped
    assert code == 130, err
    assert "Traceback" not in err
    told = json.loads(out)
    assert told["complete"] is False
    assert 0 < told["done"] < 1
    kept = Effects.load(folder / told["folder"])
    left = int(np.isnan(kept.raw).sum())
    assert told["done"] == pytest.approx(1 - left / told["plan"]["rows"])
    assert kept.warnings[0].startswith("Interrupted:")


def test_interrupt_says_how_to_go_on(stopped, tiny):
    """The last line on standard error is a command that can be pasted."""
    _, _, out, err = stopped
    assert f"is kept in {json.loads(out)['folder']}" in err
    assert shlex.split(err.splitlines()[-1]) == ["crosspatch", "patch", str(tiny), *QUESTION, "--json", "--resume"]


def test_list_of_runs_says_how_to_go_on(stopped, call, monkeypatch):
    """`runs` shows how much is done and the command that continues it, and no finding from half of the numbers."""
    folder, _, out, _ = stopped
    monkeypatch.chdir(folder)
    text, told = call("runs").stdout, json.loads(out)
    assert "(interrupted, " in text
    assert f"{told['done']:.0%} done. Continue with: {told['resume']}" in text
    assert told["finding"] not in text
    assert f"Continue with: {told['resume']}" in call("runs", "show", told["folder"]).stderr


def test_resume_completes_to_identical_numbers(stopped, tiny, call, document, here):
    """The rest is run, and every number is that of a run without interruption, to the last bit."""
    folder, _, out, _ = stopped
    part = here / "part"
    shutil.copytree(folder / json.loads(out)["folder"], part)
    done = ~np.isnan(Effects.load(part).raw)
    told = document("patch", tiny, *QUESTION, "--resume", part)
    assert told["complete"] is True
    resumed = Effects.load(part)
    whole = Effects.load(document("patch", tiny, *QUESTION)["folder"])
    np.testing.assert_array_equal(resumed.raw, whole.raw)
    np.testing.assert_array_equal(resumed.base, whole.base)
    assert not done.all()
    assert resumed.finding() == whole.finding()


@pytest.fixture
def complete(tiny, document, here, once):
    """Leave a complete run in its default folder; give its document."""
    return once(here / "runs", lambda: document("patch", tiny, *QUESTION))


@pytest.fixture
def part(tiny, document, here, monkeypatch):
    """Leave an interrupted run in its default folder: the sweep is stopped after its second pack."""
    from crosspatch.cli.running import SavingProgress

    advance, calls = SavingProgress.advance, []

    def stop(self, done, note=""):
        advance(self, done, note)
        calls.append(done)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(SavingProgress, "advance", stop)
        return here / document("patch", tiny, *QUESTION, code=130)["folder"]


def test_bare_resume_takes_the_default_folder(part, call, tiny):
    """--resume without a folder continues the default one, and says how much was done."""
    result = call("patch", tiny, *QUESTION, "--resume")
    assert result.exit_code == 0, result.output
    assert re.search(r"runs/ioi-tiny-llama-\w+ holds finished work .*: \d+ of \d+ units are done", result.stderr)
    assert not np.isnan(Effects.load(part).raw).any()


def test_resumed_run_does_only_the_rest(part, document, tiny):
    """The packs of patches that were finished are not run again."""
    document("patch", tiny, *QUESTION, "--resume")
    rest = Effects.load(part).provenance["settings"]["packs"]
    whole = Effects.load(document("patch", tiny, *QUESTION)["folder"]).provenance["settings"]["packs"]
    assert rest == whole - 2


def test_part_is_not_lost_without_resume(part, call, tiny):
    """The same command without --resume refuses to start over, and names both ways on."""
    before = Effects.load(part).raw
    result = call("patch", tiny, *QUESTION)
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    assert "crosspatch runs remove runs/ioi-tiny-llama-" in result.stderr
    np.testing.assert_array_equal(Effects.load(part).raw, before)


def test_resume_of_another_question_is_refused(part, call, tiny):
    """A folder is not continued with other options; the message says which differ."""
    result = call("patch", tiny, *QUESTION, "--direction", "noise", "--seed", 4, "--resume", part)
    assert result.exit_code == 2
    assert "its task: ioi with 6 pairs; its direction: denoise" in result.stderr


def test_resume_with_nothing_there_starts(call, tiny, here):
    """A bare --resume where nothing was run starts from the beginning, so a job script may always have it."""
    result = call("patch", tiny, *QUESTION, "--resume")
    assert result.exit_code == 0, result.output
    assert "nothing to resume" in result.stderr


def test_resume_of_a_complete_run_runs_nothing(complete, call, tiny, monkeypatch):
    """A complete run is shown again, not run again."""
    monkeypatch.setattr("crosspatch.engine.units.SweepJob.run", lambda *_: pytest.fail("the model was run"))
    result = call("patch", tiny, *QUESTION, "--resume")
    assert result.exit_code == 0, result.output
    assert "is complete already" in result.stderr
    assert result.stdout.splitlines()[-2] == complete["finding"]


def test_interruption_never_replaces_a_complete_run(complete, call, tiny, here, monkeypatch):
    """Ctrl-C while a complete question is run again leaves the complete run as it was."""
    from crosspatch.cli.running import SavingProgress

    def stop(self, done, note=""):
        raise KeyboardInterrupt

    monkeypatch.setattr(SavingProgress, "advance", stop)
    result = call("patch", tiny, *QUESTION)
    assert result.exit_code == 130
    assert "still holds the complete run" in result.stderr
    assert not np.isnan(Effects.load(here / complete["folder"]).raw).any()


def test_interrupt_after_the_sweep_loses_nothing(call, tiny, here, monkeypatch):
    """Ctrl-C while the clean prompts are checked finds all effects saved already; --resume does what is left."""
    with monkeypatch.context() as stopping:

        def stop(model, task):
            raise KeyboardInterrupt

        stopping.setattr("crosspatch.tasks.check", stop)
        assert call("patch", tiny, *QUESTION, "--metric", "logprob").exit_code == 130
    (folder,) = (here / "runs").iterdir()
    assert not np.isnan(Effects.load(folder).raw).any()
    result = call("patch", tiny, *QUESTION, "--metric", "logprob", "--resume")
    assert result.exit_code == 0, result.output
    assert "is complete already" in result.stderr
    assert (folder / "summary.json").is_file()


def test_interrupt_before_the_sweep_leaves_nothing(call, tiny, here, monkeypatch):
    """Ctrl-C while the model is opened exits with 130, without a traceback and without a folder."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("crosspatch.models.open.open_model", stop)
    result = call("patch", tiny, *QUESTION)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("interrupted: what was not saved yet")
    assert list(here.iterdir()) == []


def test_a_killed_run_goes_on_where_it_was(tiny, document, here):
    """kill -9 leaves the finished patches; the same command runs the rest, to the same bits, and tidies up."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, "patch", str(tiny), *QUESTION], cwd=here, stderr=subprocess.PIPE, text=True
    )
    for line in child.stderr:
        if "patches ·" in line:
            break
    child.kill()
    child.communicate()
    (journal,) = here.rglob("journal")
    assert list(journal.glob("*.log"))
    told = document("patch", tiny, *QUESTION)
    assert told["complete"] is True
    assert not journal.exists()
    resumed = Effects.load(told["folder"])
    whole = Effects.load(document("patch", tiny, *QUESTION, "--out", here / "whole")["folder"])
    np.testing.assert_array_equal(resumed.raw, whole.raw)
    assert resumed.provenance["settings"]["packs"] < whole.provenance["settings"]["packs"]
