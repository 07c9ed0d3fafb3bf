"""`patch`: what it prints where, what it writes, what its exit code says."""

import json

import numpy as np
import pytest

from crosspatch.cli.estimate import clock
from crosspatch.cli.question import parse_size
from crosspatch.cli.running import resume_command, short
from crosspatch.core.errors import BadInput
from crosspatch.engine.effects import Effects

FEW = ("--task", "ioi", "--n", 4, "--require-accuracy", 0)


def only_run(folder):
    """Give the one run folder."""
    found = list((folder / "runs").iterdir())
    assert len(found) == 1
    return found[0]


def test_result_ends_with_finding_and_report(call, tiny, here):
    """The last lines on standard output are the finding and the path of a report that is there."""
    result = call("patch", tiny, *FEW)
    assert result.exit_code == 0, result.output
    *_, finding, last = result.stdout.splitlines()
    folder = only_run(here)
    assert last == f"report → {folder.relative_to(here) / 'report.html'}"
    assert finding == Effects.load(folder).finding()
    assert (here / last.removeprefix("report → ")).read_text().startswith("<!doctype html")
    assert folder.name.startswith("ioi-tiny-llama-")


def test_result_has_a_map_a_kind_the_table_and_the_cautions(call, tiny):
    """Between title and finding stand one heat map a kind, the strongest sites and the cautions."""
    lines = call("patch", tiny, *FEW, "--top", 3).stdout.splitlines()
    assert lines[0].startswith("tiny-llama · ioi · denoise · logit_diff: 54 sites × 4 pairs in ")
    assert [line for line in lines if line in ("resid.pre", "attn.out", "mlp.out")] == [
        "resid.pre",
        "attn.out",
        "mlp.out",
    ]
    table = next(place for place, line in enumerate(lines) if line.split()[:1] == ["site"])
    assert len([line for line in lines[table:] if "@" in line and "[" in line and line.startswith(" ")]) == 3
    assert any(line.startswith("! Only 4 pairs") for line in lines)
    assert not any(line != line.rstrip() for line in lines)


def test_messages_go_to_standard_error(call, tiny):
    """The model, the task and the plan are said on standard error, before the run."""
    result = call("patch", tiny, *FEW)
    for words in ("opening ", "3 layers, float32 on cpu", "ioi: 4 pairs of", "216 patches:", "saved"):
        assert words in result.stderr
    assert "opening" not in result.stdout


def test_quiet_says_results_only(call, tiny):
    """--quiet leaves standard error empty and the result whole."""
    result = call("patch", tiny, *FEW, "--quiet")
    assert result.stderr == ""
    assert "report → " in result.stdout


def test_json_is_one_document(document, tiny, here):
    """--json gives one document with the question, the finding, the strongest sites, the plan and the paths."""
    told = document("patch", tiny, *FEW, "--top", 2, "--set", "corrupt=ABC", "--direction", "noise", "--seed", 3)
    effects = Effects.load(here / told["folder"])
    assert told["complete"] is True
    assert (told["task"], told["n"], told["seed"], told["direction"]) == ("ioi", 4, 3, "noise")
    assert told["task_settings"]["corrupt"] == "ABC"
    assert told["finding"] == effects.finding()
    assert [row["site"] for row in told["top"]] == [str(row.site) for row in effects.top(2)]
    assert told["top"][0]["effect"] == pytest.approx(float(effects.top(1)[0].effect))
    assert told["plan"]["forwards_saved"] > 0
    assert told["checks"][0]["ok"] is True
    assert (here / told["report"]).is_file()
    assert json.loads((here / told["folder"] / "summary.json").read_text()) == told


def test_effects_are_those_of_the_library(document, tiny, here):
    """The saved numbers are the ones that `crosspatch.patch` gives, to the last bit."""
    import crosspatch as xp

    folder = document("patch", tiny, *FEW, "--sites", "attn.head@end", "--tokens", 64, "--no-report")["folder"]
    model = xp.open_model(tiny)
    task = xp.tasks.get_task("ioi", model, n=4, seed=0)
    expected = xp.patch(model, task, sites="attn.head@end", options=xp.Options(tokens=64))
    np.testing.assert_array_equal(Effects.load(here / folder).raw, expected.raw)


def test_no_report_ends_with_the_folder(call, tiny, here):
    """--no-report writes no page; the last line is the run folder."""
    result = call("patch", tiny, *FEW, "--no-report", "--out", "mine")
    assert result.stdout.splitlines()[-1] == "saved → mine"
    assert sorted(path.name for path in (here / "mine").iterdir()) == [
        "arrays.safetensors",
        "meta.json",
        "summary.json",
    ]


def test_dry_run_runs_nothing(call, tiny, here, monkeypatch):
    """--dry-run prints plan, memory and time, never starts a sweep and writes nothing."""
    monkeypatch.setattr("crosspatch.engine.units.SweepJob.run", lambda *_: pytest.fail("the model was run"))
    result = call("patch", tiny, *FEW, "--dry-run")
    assert result.exit_code == 0, result.output
    named = [line.split()[0] for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert named == ["run", "sites", "patches", "work", "memory", "time", "folder"]
    assert list(here.iterdir()) == []


def test_dry_run_names_the_folder_of_the_run(call, document, tiny):
    """The plan as JSON has memory, time and speed, and names the folder that the run then uses."""
    plan = document("patch", tiny, *FEW, "--dry-run")
    assert plan["plan"]["rows"] > 0
    assert 0 < plan["estimate"]["least"] < plan["estimate"]["usual"]
    assert plan["estimate"]["speed"] > 1e6
    assert plan["estimate"]["bytes"] == plan["plan"]["peak_bytes"]
    assert document("patch", tiny, *FEW)["folder"] == plan["folder"]


@pytest.mark.parametrize(
    "change", [("--seed", 1), ("--n", 5), ("--direction", "noise"), ("--sites", "resid.pre"), ("--metric", "prob")]
)
def test_another_question_has_another_folder(document, tiny, change):
    """The default folder's name differs as soon as the question does."""
    first = document("patch", tiny, *FEW, "--dry-run")["folder"]
    assert document("patch", tiny, *FEW, *change, "--dry-run")["folder"] != first


def test_too_few_right_prompts_exit_with_3(call, document, tiny, here):
    """A random model gets some clean prompts wrong: required to get all right, the run is kept and exits with 3."""
    told = document("patch", tiny, "--task", "ioi", "--n", 8, "--require-accuracy", 1, code=3)
    assert told["checks"] == [{"name": "clean accuracy", "ok": False, "detail": told["checks"][0]["detail"]}]
    assert told["accuracy"] < 1
    effects = Effects.load(here / told["folder"])
    assert told["accuracy"] == pytest.approx(float((effects.source > 0).mean()))
    result = call("patch", tiny, "--task", "ioi", "--n", 8, "--require-accuracy", 1, "--quiet")
    assert result.exit_code == 3
    assert result.stderr.startswith("check failed: ")
    assert result.stdout.splitlines()[-1].startswith("report → ")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_accuracy_is_that_of_the_clean_prompts(document, tiny, direction):
    """Whatever is patched and measured, the accuracy is that of the clean prompts."""
    import crosspatch as xp
    from crosspatch.tasks import check, get_task

    model = xp.open_model(tiny)
    expected = check(model, get_task("ioi", model, n=8, seed=0)).accuracy
    asked = ("patch", tiny, "--task", "ioi", "--n", 8, "--require-accuracy", 0, "--direction", direction)
    assert document(*asked)["accuracy"] == pytest.approx(expected)
    assert document(*asked, "--metric", "logprob")["accuracy"] == pytest.approx(expected)


def test_the_same_question_again_replaces_its_run(call, document, tiny, here):
    """Running a complete question again says so and gives the same numbers in the same folder."""
    folder = here / document("patch", tiny, *FEW)["folder"]
    before = Effects.load(folder).raw
    result = call("patch", tiny, *FEW)
    assert result.exit_code == 0, result.output
    assert "holds this run already" in result.stderr
    np.testing.assert_array_equal(Effects.load(only_run(here)).raw, before)


def test_a_damaged_run_may_be_replaced(call, tiny, here):
    """A run whose file was cut short does not stand in the way of running it again."""
    assert call("patch", tiny, *FEW, "--out", "mine").exit_code == 0
    (here / "mine" / "arrays.safetensors").write_bytes(b"short")
    result = call("patch", tiny, *FEW, "--out", "mine")
    assert result.exit_code == 0, result.output
    assert "damaged" in result.stderr
    Effects.load(here / "mine")


def test_an_unusual_model_name_makes_a_plain_folder(call, tiny, tmp_path):
    """Blanks and signs in a model's name do not get into the folder's name."""
    odd = tmp_path / "my model (v2)"
    odd.symlink_to(tiny)
    told = json.loads(call("patch", odd, *FEW, "--dry-run", "--json").stdout)
    assert told["folder"].rsplit("-", 1)[0] in ("runs/ioi-my-model-v2", "runs/ioi-tiny-llama")


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("500MB", 500_000_000), ("1.5 g", 1_500_000_000), ("1024", 1024), (None, None)],
)
def test_sizes_are_read_with_their_units(text, size):
    """Memory sizes are bytes with decimal or binary units."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "two", "-1GiB", "0", "1e9", "2 XB"])
def test_other_sizes_are_refused_with_an_example(text):
    """What is no size above zero is refused, with an example of one."""
    with pytest.raises(BadInput, match="such as 2GiB"):
        parse_size(text)


@pytest.mark.parametrize(("seconds", "text"), [(0.42, "0.4 s"), (12.3, "12 s"), (180, "3 min"), (9000, "2.5 h")])
def test_times_are_written_as_one_says_them(seconds, text):
    """Seconds become minutes and hours where those are shorter."""
    assert clock(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(940.2, "940"), (4939, "4.9k"), (128_000, "128k"), (1.23e6, "1.2M")])
def test_counts_are_short(count, text):
    """Counts in the progress bar take at most four signs."""
    assert short(count) == text


def test_resume_command_can_be_pasted():
    """The command that continues a run quotes what needs it, and has --resume once."""
    words = ["patch", "gemma-3-270m", "--task", "ioi", "--sites", "attn.head[5, 3]@S2"]
    command = resume_command(words)
    assert command == "crosspatch patch gemma-3-270m --task ioi --sites 'attn.head[5, 3]@S2' --resume"
    assert resume_command([*words, "--resume", "runs/a"]).count("--resume") == 1
    assert resume_command([*words, "--resume=runs/a"]).count("--resume") == 1
