"""Other corruptions, ablations, windows, several metrics, paths and knockouts on the command line."""

import json
import re

import numpy as np
import pytest

import crosspatch as xp
from crosspatch.engine.effects import Effects

FEW = ("--task", "ioi", "--n", 4, "--set", "template=0", "--require-accuracy", 0, "--no-report")


@pytest.fixture(scope="module")
def model(tiny):
    """Open the tiny model once."""
    return xp.open_model(tiny)


@pytest.fixture(scope="module")
def task(model):
    """Make the pairs that FEW asks for."""
    return xp.tasks.get_task("ioi", model, n=4, template=0)


@pytest.fixture
def run(document, tiny, here):
    """Give a function that runs a verb on few pairs; it gives the document and the saved effects."""

    def go(verb, *words):
        told = document(verb, tiny, *FEW, *words)
        return told, Effects.load(here / told["folder"])

    return go


def saved(told, here):
    """Load what a document points to."""
    return Effects.load(here / told["folder"])


def test_noise_has_its_draws_and_size(document, tiny, here, model, task):
    """--corrupt gaussian gives the effects of `tasks.corrupt`, to the last bit, and says so."""
    noise = ("--corrupt", "gaussian", "--draws", 2, "--sigma", 2)
    told = document("patch", tiny, *FEW, "--sites", "mlp.out", *noise)
    noisy = xp.tasks.corrupt(task, "gaussian", sigma=2.0, draws=2, seed=0)
    np.testing.assert_array_equal(saved(told, here).raw, xp.patch(model, noisy, sites="mlp.out").raw)
    assert (told["corruption"]["sigma"], told["corruption"]["draws"]) == (2, 2)


def test_task_alternatives_are_corruptions(document, tiny, here, model, task):
    """--corrupt ABC runs the task's own alternative prompts."""
    told = document("patch", tiny, *FEW, "--sites", "mlp.out@end", "--corrupt", "ABC")
    other = xp.tasks.corrupt(task, "ABC")
    np.testing.assert_array_equal(saved(told, here).raw, xp.patch(model, other, sites="mlp.out@end").raw)


@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_ablations_write_into_the_clean_run(run, model, task, by):
    """--ablate gives the effects of `ablate`; its direction is noise, and each way has its own folder."""
    told, effects = run("patch", "--sites", "attn.head@end", "--ablate", by)
    expected = xp.ablate(model, task, sites="attn.head@end", by=by)
    np.testing.assert_array_equal(effects.raw, expected.raw)
    assert (told["direction"], told["ablation"]["by"]) == ("noise", by)
    assert run("patch", "--sites", "attn.head@end", "--direction", "noise")[0]["folder"] != told["folder"]


def test_a_dry_run_names_the_folder_of_the_ablation(document, run, tiny):
    """The plan of an ablation is that of its sweep, and its folder the one that the run uses."""
    words = ("--sites", "attn.head@end", "--ablate", "mean")
    plan, (told, _) = document("patch", tiny, *FEW, *words, "--dry-run"), run("patch", *words)
    assert (plan["folder"], plan["plan"]["rows"]) == (told["folder"], told["plan"]["rows"])


def test_windows_ride_along(document, tiny, here, model, task):
    """--window patches adjacent layers jointly beside the single ones, of kinds without units, inside the selection."""
    sites = "mlp.out[1:3]@end|S2, attn.head@end"
    told = document("patch", tiny, *FEW, "--sites", sites, "--window", 2)
    effects = saved(told, here)
    joint = [site for site in effects.sites if site.kind == "mlp.out ×2"]
    assert [str(site) for site in joint] == ["mlp.out[1:3]@end", "mlp.out[1:3]@S2"]
    assert effects.only([i for i, s in enumerate(effects.sites) if s.kind == "attn.head"]).raw.shape[0] == 12
    windows = xp.windows(model, task, "mlp.out", 2, positions=["end"])[1:]
    row = next(i for i, site in enumerate(effects.sites) if str(site) == "mlp.out[1:3]@end")
    np.testing.assert_allclose(effects.raw[row], xp.patch(model, task, sites=windows).raw[0], rtol=1e-4, atol=1e-6)


def test_several_metrics_are_one_sweep_with_a_run_each(call, document, tiny, here, monkeypatch):
    """Each metric has a finding, a run and a page; the model is swept once."""
    from crosspatch.engine.sweep import Sweep

    run, sweeps = Sweep.take, []
    monkeypatch.setattr(Sweep, "take", lambda self, rows: sweeps.append(1) or run(self, rows))
    words = ("patch", tiny, *FEW[:-1], "--sites", "mlp.out", "--metric", "prob,kl", "--out", "both")
    lines = call(*words).stdout.splitlines()
    assert len(sweeps) == 1
    findings = [Effects.load(here / "both" / name).finding() for name in ("prob", "kl")]
    assert lines[-4:] == [findings[0], "report → both/prob/report.html", findings[1], "report → both/kl/report.html"]
    told = document(*words)["runs"]
    assert [one["metric"] for one in told] == ["prob", "kl"]
    assert [one["folder"] for one in told] == ["both/prob", "both/kl"]
    alone = document("patch", tiny, *FEW, "--sites", "mlp.out", "--metric", "kl")
    np.testing.assert_allclose(saved(alone, here).raw, Effects.load(here / "both" / "kl").raw, rtol=1e-5, atol=1e-7)
    assert (
        document("patch", tiny, *FEW, "--sites", "mlp.out", "--metric", "prob,kl")["runs"][1]["folder"]
        == (alone["folder"])
    )


REFUSED = {
    "an ablation that denoises": (("--ablate", "mean", "--direction", "denoise"), "into the clean run"),
    "an ablation of embeddings": (("--ablate", "zero", "--corrupt", "gaussian"), "reference from corrupt prompts"),
    "an ablation by two metrics": (("--ablate", "zero", "--metric", "prob,kl"), "one --metric"),
    "draws without noise": (("--draws", 3), "--corrupt gaussian"),
    "a size without noise": (("--corrupt", "zero", "--sigma", 3), "--corrupt gaussian"),
    "no such corruption": (("--corrupt", "gausian"), "Did you mean 'gaussian'"),
    "one metric twice": (("--metric", "prob,prob"), "each once"),
    "one misspelled metric": (("--metric", "prob,kll"), "kll"),
    "a window of heads": (("--sites", "attn.head", "--window", 2), "2 adjacent layers"),
    "a window wider than the model": (("--window", 9), "this model has 3"),
    "resuming one folder of two metrics": (("--metric", "prob,kl", "--resume", "x"), "--resume alone"),
    "settings of a cluster that is none": (("--cluster", "slurm_partition=gpu"), "--executor slurm"),
    "a setting without a value": (("--executor", "slurm", "--cluster", "gpu"), "KEY=VALUE"),
    "no such setting of a layout": (("--layout", "tensor=2"), "setting of --layout"),
    "a layout without a value": (("--layout", "bits=many"), "KEY=VALUE"),
    "tensor parallel without a launcher": (("--layout", "tp=2"), "torchrun"),
    "several workers inline": (("--executor", "inline", "--workers", 2), "this process alone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case, call, tiny, here):
    """The message says what does not go together; nothing is written."""
    words, told = REFUSED[case]
    result = call("patch", tiny, *FEW, *words)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert list(here.iterdir()) == []


WAYS = {
    "ablation": ("patch", "--sites", "mlp.out", "--ablate", "zero"),
    "two metrics": ("patch", "--sites", "mlp.out", "--metric", "prob,kl"),
    "noise draws": ("patch", "--sites", "mlp.out", "--corrupt", "gaussian", "--draws", 2),
    "paths": ("path", "--senders", "attn.head@end", "--to", "attn.q[2, 1]@end"),
    "knockout": ("knockout", "--key", "S1"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_patching_can_be_resumed(way, call, tiny, here, monkeypatch):
    """An interrupted run stands in the way of a new one; --resume takes its finished units over, to the same bits."""
    from crosspatch.cli.running import SavingProgress

    verb, *more = WAYS[way]
    words = (verb, tiny, *FEW, *more, "--tokens", 8, "--no-report")

    def stop(self, done, note=""):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(SavingProgress, "advance", stop)
        result = call(*words)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].endswith("--resume")
    assert call(*words).exit_code == 2
    again = call(*words, "--resume")
    assert again.exit_code == 0, again.output
    assert re.search(r"[1-9]\d* of \d+ units are done; the rest is run now", again.stderr)
    assert not list(here.rglob("journal"))
    assert call(*words, "--out", here / "whole").exit_code == 0
    for whole in (here / "whole").rglob("meta.json"):
        effects = xp.load(whole.parent)
        (resumed,) = [
            found
            for path in (here / "runs").rglob("meta.json")
            if (found := xp.load(path.parent)).metric == effects.metric
        ]
        np.testing.assert_array_equal(resumed.raw, effects.raw)


def test_path_is_that_of_the_library(run, call, tiny, model, task):
    """`path` gives the effects of `path_patch`, and its title and page say which paths."""
    words = ("--senders", "attn.head@end", "--to", "attn.q[2, 1]@end", "--through", "nothing")
    told, effects = run("path", *words)
    paths = xp.Paths("attn.head@end", "attn.q[2, 1]@end", through="nothing")
    np.testing.assert_array_equal(effects.raw, xp.path_patch(model, task, paths=paths).raw)
    assert (told["to"], told["through"], told["direction"]) == ("attn.q[2, 1]@end", "nothing", "noise")
    assert "noise, paths to attn.q[2, 1]@end" in call("path", tiny, *FEW, *words).stdout.splitlines()[0]
    assert told["folder"] in call("path", tiny, *FEW, *words, "--dry-run").stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--to", "attn.qq"), "attn.qq"),
        (("--to", "attn.head@end"), "cannot receive"),
        (("--senders", "attn.q"), "cannot send"),
        (("--metric", "prob,kl"), "one metric"),
    ],
)
def test_paths_that_are_none_are_refused(call, tiny, words, told):
    """A kind that cannot send or receive is named."""
    result = call("path", tiny, *FEW, *words)
    assert result.exit_code == 2
    assert told in result.stderr


def test_knockout_is_a_sweep_of_cuts(run, call, tiny, model, task):
    """`knockout` gives the effects of `cuts`; other heads are another question."""
    told, effects = run("knockout", "--key", "S2", "--heads", "0,3", "--width", 2)
    groups = xp.cuts(model, "end", "S2", heads=[0, 3], width=2)
    np.testing.assert_array_equal(effects.raw, xp.patch(model, task, sites=groups, direction="noise").raw)
    assert told["selection"] == "cuts of attention from end to S2 of heads 0, 3, 2 layers at a time"
    every, by_name = run("knockout", "--key", "S2", "--width", 2)
    assert every["folder"] != told["folder"]
    _, by_number = run("knockout", "--query", "-1", "--key", task.pairs[0].names["S2"], "--width", 2)
    np.testing.assert_array_equal(by_number.raw, by_name.raw)
    result = call("knockout", tiny, *FEW, "--key", "S2", "--heads", "0,x")
    assert (result.exit_code, "whole numbers" in result.stderr) == (2, True)


def test_a_file_of_prompts_is_a_task(document, call, tiny, here, task):
    """--task takes a path; without --n all its rows are run, and its own options are checked."""
    rows = [
        {"clean": p.clean_text, "corrupt": p.corrupt_text, "right": r, "wrong": w}
        for p, r, w in ((p, *answers(p, tiny)) for p in task.pairs[:3])
    ]
    (here / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("patch", tiny, "--task", "mine.jsonl", "--sites", "mlp.out", "--require-accuracy", 0, "--no-report")
    assert document(*words)["n"] == 3
    assert document(*words, "--n", 2)["n"] == 2
    result = call(*words, "--set", "template=0")
    assert (result.exit_code, "unknown option of task 'mine.jsonl'" in result.stderr) == (2, True)
    told = document("tasks", "mine.jsonl", "--check", tiny, code=document_code(call, tiny))
    assert told["tasks"][0]["n"] == 3


def document_code(call, tiny):
    """Give the exit code of the check: a random model may fail it."""
    return call("tasks", "mine.jsonl", "--check", tiny, "--no-preview").exit_code


def answers(pair, folder):
    """Write a pair's answers as text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tuple(tokenizer.decode(answer[0]) for answer in (pair.right, pair.wrong))
