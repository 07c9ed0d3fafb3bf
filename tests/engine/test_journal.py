"""A sweep with a journal loses nothing: it resumes to the same bits after errors, interruptions and kill -9."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from crosspatch.core.errors import BadInput, NotFinite
from crosspatch.core.journal import Journal
from crosspatch.engine import Options, Paths, ablate, patch, patch_metrics, path_patch
from crosspatch.metrics import metric_from
from crosspatch.models.open import open_model
from crosspatch.sites import Group, Site
from crosspatch.tasks import corrupt
from naive.patching import hook
from zoo import fresh, make_pair, make_task, opened

PAIRS = tuple(make_pair(7, (2,), seed=seed) for seed in range(3))
TASK = make_task(*PAIRS)
SITES = "resid.pre, attn.head, mlp.out"

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from crosspatch.engine import Options, patch
from zoo import make_pair, make_task, opened
task = make_task(*(make_pair(7, (2,), seed=seed) for seed in range(3)))
model = opened("gpt2")
print("ready", flush=True)
patch(model, task, sites="resid.pre, attn.head, mlp.out", options=Options(journal=Path(sys.argv[2]), tokens=8))
print("done", flush=True)
"""


def counted(module, layer=0):
    """Count the calls of a block's MLP."""
    calls = []

    def note(value):
        calls.append(value.shape[:-1].numel())
        return value

    hook(module.transformer.h[layer].mlp.c_fc, "in", note)
    return calls


def test_a_second_run_patches_nothing(tmp_path):
    """Not even the two unpatched runs are made again; the numbers are the same to the bit."""
    module = fresh("gpt2")
    model, plain = open_model(module), patch(open_model(fresh("gpt2")), TASK, sites=SITES)
    calls = counted(module)
    first = patch(model, TASK, sites=SITES, options=Options(journal=tmp_path / "j"))
    spent = len(calls)
    again = patch(model, TASK, sites=SITES, options=Options(journal=tmp_path / "j"))
    assert spent > 0
    assert len(calls) == spent
    for effects in (first, again):
        np.testing.assert_array_equal(effects.raw, plain.raw)


def test_work_before_an_error_is_kept(tmp_path):
    """A metric that fails late: what was finished is in the journal, and a sound run goes on from there."""
    count = []

    def late(out):
        count.append(len(out.right))
        value = out.right[:, 0] - out.wrong[:, 0]
        return value * float("nan") if len(count) > 8 else value

    options = Options(journal=tmp_path / "j", tokens=8)
    metric = metric_from(late, name="late")
    with pytest.raises(NotFinite):
        patch(opened("gpt2"), TASK, sites=SITES, metric=metric, options=options)
    with Journal.open(tmp_path / "j", _fingerprint(tmp_path / "j")) as journal:
        kept = len(journal.read()["site"])
    assert kept > 0
    sound = metric_from(lambda out: out.right[:, 0] - out.wrong[:, 0], name="late")
    resumed = patch(opened("gpt2"), TASK, sites=SITES, metric=sound, options=options)
    whole = patch(opened("gpt2"), TASK, sites=SITES, metric=sound, options=Options(tokens=8))
    np.testing.assert_array_equal(resumed.raw, whole.raw)


def _fingerprint(folder):
    import json

    return json.loads((folder / "journal.json").read_text())["fingerprint"]


def test_a_sweep_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    """kill -9 at random moments until it gets through; the table equals an uninterrupted one exactly."""
    rng, folder, killed = random.Random(1), tmp_path / "j", 0
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parents[1]), str(folder)]
    for attempt in range(4):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline().strip() == "ready"
        time.sleep(rng.uniform(0.05, 0.15) * (attempt + 1))
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        rest = child.communicate()[0]
        if "done" in rest:
            break
    assert killed > 0
    resumed = patch(opened("gpt2"), TASK, sites=SITES, options=Options(journal=folder, tokens=8))
    whole = patch(opened("gpt2"), TASK, sites=SITES, options=Options(tokens=8))
    np.testing.assert_array_equal(resumed.raw, whole.raw)


def test_every_kind_of_sweep_can_be_kept(tmp_path):
    """Several metrics, noise draws, ablations and paths, each in its own folder."""
    model = opened("gpt2")

    def options(name):
        return Options(journal=tmp_path / name)

    jobs = {
        "metrics": lambda o: patch_metrics(model, TASK, ["logit_diff", "prob"], sites=SITES, options=o)["prob"],
        "noise": lambda o: patch(model, corrupt(TASK, "gaussian", draws=2), sites=SITES, options=o),
        "ablation": lambda o: ablate(model, TASK, sites=SITES, by="mean", options=o),
        "paths": lambda o: path_patch(model, TASK, paths=Paths("attn.head@end", "attn.q[2, 0]@end"), options=o),
    }
    for name, job in jobs.items():
        first, second = job(options(name)), job(options(name))
        np.testing.assert_array_equal(first.raw, second.raw)
        np.testing.assert_array_equal(first.raw, job(Options()).raw)


def test_groups_of_one_name_are_told_by_their_members(tmp_path):
    """A journal never gives one group's numbers for another's."""
    model, options = opened("gpt2"), Options(journal=tmp_path)
    first, other = ([Group("both", (Site("mlp.out", i, None, 2), Site("attn.out", 0, None, 2)))] for i in (0, 1))
    patch(model, TASK, sites=first, options=options)
    with pytest.raises(BadInput, match="unfinished work of another question"):
        patch(model, TASK, sites=other, options=options)


def test_another_question_cannot_use_the_journal(tmp_path):
    """Other sites, direction, metric, corruption, task or paths: refused, so that results never mix."""
    model, options = opened("gpt2"), Options(journal=tmp_path)
    patch(model, TASK, sites="mlp.out[0]@2", options=options)
    others = (
        lambda: patch(model, TASK, sites="mlp.out[1]@2", options=options),
        lambda: patch(model, TASK, sites="mlp.out[0]@2", direction="noise", options=options),
        lambda: patch(model, TASK, sites="mlp.out[0]@2", metric="prob", options=options),
        lambda: patch(model, corrupt(TASK, "gaussian"), sites="mlp.out[0]@2", options=options),
        lambda: patch(model, make_task(*PAIRS[:2]), sites="mlp.out[0]@2", options=options),
        lambda: patch(opened("llama"), TASK, sites="mlp.out[0]@2", options=options),
        lambda: path_patch(model, TASK, paths=Paths("mlp.out[0]@2", direction="denoise"), options=options),
        lambda: ablate(model, TASK, sites="mlp.out[0]@2", options=options),
        lambda: patch(model, TASK, sites=[Group("mlp.out[0]@2", (Site("mlp.out", 1, None, 2),))], options=options),
    )
    for other in others:
        with pytest.raises(BadInput, match="unfinished work of another question"):
            other()
