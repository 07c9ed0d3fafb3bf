"""Bad input of every kind exits with 2, says what to do, shows no traceback and writes nothing."""

import pytest

from crosspatch.core.errors import NotFinite

PATCH = ("patch", "TINY", "--task", "ioi", "--n", "2")

CASES = {
    "no such model": (("patch", "no/such/model/here", "--task", "ioi"), ["no/such/model/here", "gemma-3-270m"]),
    "a typing error in a model": (("sites", "gema-3-270m"), ["gema-3-270m", "Did you mean 'gemma-3-270m'"]),
    "a folder without a model": (("doctor", "."), ["config.json"]),
    "no such task": (("patch", "TINY", "--task", "iio"), ["unknown task 'iio'", "Did you mean 'ioi'"]),
    "no such task to check": (("tasks", "iio"), ["unknown task 'iio'", "Did you mean 'ioi'"]),
    "no such site": ((*PATCH, "--sites", "resid.pro"), ["resid.pro", "resid.pre"]),
    "a layer out of range": ((*PATCH, "--sites", "attn.out[40]"), ["40", "0..2"]),
    "a head out of range": ((*PATCH, "--sites", "attn.head[0, 9]"), ["9", "0..3"]),
    "a position that does not exist": ((*PATCH, "--sites", "resid.pre@S9"), ["S9", "S2"]),
    "logits": ((*PATCH, "--sites", "logits"), ["resid.post"]),
    "an unfinished selection": ((*PATCH, "--sites", "attn.head[5,"), ["attn.head[5,"]),
    "no such metric": ((*PATCH, "--metric", "logit-diff"), ["logit-diff", "logit_diff"]),
    "a setting without a value": ((*PATCH, "--set", "corrupt"), ["--set 'corrupt'", "KEY=VALUE"]),
    "a setting that the task lacks": ((*PATCH, "--set", "corupt=ABC"), ["corupt", "corrupt", "template"]),
    "a setting that has its own option": ((*PATCH, "--set", "n=3"), ["unknown option of task 'ioi' 'n'"]),
    "a value that the setting lacks": ((*PATCH, "--set", "corrupt=XYZ"), ["XYZ", "'ABC'"]),
    "a bad size": ((*PATCH, "--memory", "lots"), ["--memory 'lots'", "2GiB"]),
    "no such device": ((*PATCH, "--device", "tpu"), ["tpu", "cpu"]),
    "no such dtype": ((*PATCH, "--dtype", "float31"), ["float31", "float32"]),
    "a file where the run folder goes": ((*PATCH, "--out", "file"), ["cannot write in file", "--out"]),
    "a run folder below a file": ((*PATCH, "--out", "file/run"), ["cannot write in file/run", "--out"]),
    "--out with --resume of another folder": ((*PATCH, "--out", "a", "--resume", "b"), ["--out a and --resume b"]),
    "nothing to resume in a folder that was named": ((*PATCH, "--resume", "nowhere"), ["nowhere"]),
    "a setting without a task": (("tasks", "--check", "TINY", "--set", "corrupt=ABC"), ["--set belongs to one task"]),
    "a preview without a model": (("tasks", "ioi", "--preview"), ["--check gemma-3-270m"]),
    "a run that is not there": (("runs", "show", "nowhere"), ["nowhere"]),
    "a report of nothing": (("report", "nowhere"), ["nowhere"]),
    "removing what is no run": (("runs", "remove", ".", "--yes"), ["is no run folder"]),
    "a site that cannot be timed": (("bench", "TINY", "--n", "1", "--sites", "resid.pro"), ["resid.pre"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_exits_with_2(case, call, tiny, here):
    """The message names what was given and what to do; standard output stays empty and nothing is written."""
    words, told = CASES[case]
    (here / "file").write_text("in the way")
    result = call(*(str(tiny) if word == "TINY" else word for word in words))
    assert result.exit_code == 2, result.output
    assert "error: " in result.stderr
    for words in told:
        assert words in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert [path.name for path in here.iterdir()] == ["file"]


EARLY = ("no such task", "no such site", "an unfinished selection", "no such metric", "a setting without a value")
EARLY += ("a setting that the task lacks", "a setting that has its own option", "a bad size", "no such task to check")


@pytest.mark.parametrize("case", EARLY)
def test_misspelled_words_are_found_before_the_model_is_opened(case, call, monkeypatch):
    """A typing error costs no waiting: the model is not opened."""
    words, told = CASES[case]
    monkeypatch.setattr("crosspatch.models.open.open_model", lambda *_, **__: pytest.fail("the model was opened"))
    result = call(*words)
    assert result.exit_code == 2
    assert all(words in result.stderr for words in told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("patch", "tiny"), "--task"),
        (("patch",), "MODEL"),
        (("patch", "tiny", "--task", "ioi", "--n", "0"), "--n"),
        (("patch", "tiny", "--task", "ioi", "--n", "many"), "--n"),
        (("patch", "tiny", "--task", "ioi", "--direction", "up"), "denoise"),
        (("patch", "tiny", "--task", "ioi", "--require-accuracy", "90"), "--require-accuracy"),
        (("patch", "tiny", "--task", "ioi", "--nosuch"), "--nosuch"),
        (("report", "x", "--format", "docx"), "html"),
        (("pach", "tiny"), "pach"),
    ],
)
def test_usage_errors_exit_with_2(words, told, call):
    """What cannot be parsed is refused with the name of the option or verb."""
    result = call(*words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stdout == ""


def test_a_damaged_run_is_named(call, tiny, here):
    """A run folder whose file was cut short is refused by `runs show` and `report`, and its file named."""
    assert call("patch", tiny, "--task", "ioi", "--n", 2, "--require-accuracy", 0, "--out", "mine").exit_code == 0
    (here / "mine" / "arrays.safetensors").write_bytes(b"short")
    for words in (
        ("runs", "show", "mine"),
        ("report", "mine"),
        ("patch", tiny, "--task", "ioi", "--n", 2, "--resume", "mine"),
    ):
        result = call(*words)
        assert result.exit_code == 2
        assert "mine/arrays.safetensors" in result.stderr
        assert "Traceback" not in result.output


def test_errors_are_heard_when_quiet(call, tiny):
    """--quiet silences messages, not errors; with --json, standard output stays empty on an error."""
    result = call("patch", tiny, "--task", "nosuch", "--quiet", "--json")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: unknown task 'nosuch'")
    assert result.stdout == ""


def test_traceback_is_shown_on_request(call, tiny, monkeypatch):
    """CROSSPATCH_TRACEBACK=1 shows where an error comes from, before its message; the exit code is the same."""
    monkeypatch.setenv("CROSSPATCH_TRACEBACK", "1")
    result = call("patch", tiny, "--task", "nosuch")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert "error: unknown task" in result.stderr.splitlines()[-1]


def test_a_failed_run_leaves_no_empty_folder(call, tiny, here, monkeypatch):
    """Where the sweep itself fails, its new folder goes again; one that was there before stays."""

    def fail(self, unit):
        raise NotFinite("the metric is NaN")

    monkeypatch.setattr("crosspatch.engine.units.SweepJob.run", fail)
    (here / "old").mkdir()
    for folder in ("old", "new"):
        result = call("patch", tiny, "--task", "ioi", "--n", 2, "--out", folder)
        assert result.exit_code == 2
        assert "the metric is NaN" in result.stderr
    assert [path.name for path in here.iterdir()] == ["old"]


def test_an_unwritable_folder_is_found_before_the_run(call, tiny, here, monkeypatch):
    """Where the run folder cannot be made, not one forward is run."""
    monkeypatch.setattr("crosspatch.engine.units.SweepJob.run", lambda *_: pytest.fail("the model was run"))
    (here / "runs").write_text("a file")
    result = call("patch", tiny, "--task", "ioi", "--n", 2)
    assert result.exit_code == 2
    assert "cannot write in runs/ioi-tiny-llama-" in result.stderr
