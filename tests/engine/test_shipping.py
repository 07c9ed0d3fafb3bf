"""Real sweeps by every executor: the same bits; what cannot be told to other processes is refused; nothing is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.core.journal import ABOUT, Journal
from crosspatch.engine import Ablation, Options, Paths, ablate, patch, patch_metrics, path_patch, windows
from crosspatch.engine.shipping import open_job
from crosspatch.executors import Crew
from crosspatch.metrics import metric_from
from crosspatch.models import Layout
from crosspatch.models.open import open_model
from crosspatch.tasks import corrupt
from executors.killing import children_of, words_of
from handmade import handmade
from zoo import fresh, make_pair, make_task, opened, uneven

HERE = Path(__file__).parents[1]
TASK = make_task(*uneven(), *(make_pair(7, (2,), seed=seed) for seed in range(5)))
ALIKE = make_task(*(make_pair(7, (2,), seed=seed) for seed in range(5)))  # of one layout, as means need
SITES = "resid.pre, attn.head, mlp.out"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model on disk, as users have theirs."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    fresh("llama").save_pretrained(place)
    return place


def with_crew(executor, workers, **more):
    cluster = {"cluster": "local"} if executor == "slurm" else {}
    return Options(tokens=60, memory=60_000, threads=1, crew=Crew(executor, workers, cluster), **more)


@pytest.mark.parametrize(("executor", "workers"), [("local", 1), ("local", 2), ("slurm", 2), ("ray", 2)])
def test_every_executor_gives_the_same_bits(executor, workers, folder, tmp_path):
    """Several chunks and packs; raw effects and both runs' metrics equal the inline sweep exactly."""
    if executor == "ray":
        pytest.importorskip("ray", reason="the executor needs Ray: pip install 'crosspatch[ray]'")
    if executor == "slurm":
        pytest.importorskip("submitit", reason="the executor needs submitit: pip install 'crosspatch[slurm]'")
    model = open_model(folder)
    inline = patch(model, TASK, sites=SITES, options=with_crew("inline", None))
    there = patch(model, TASK, sites=SITES, options=with_crew(executor, workers, journal=tmp_path / "j"))
    for name in ("raw", "base", "source"):
        np.testing.assert_array_equal(getattr(there, name), getattr(inline, name))
    assert there.provenance["settings"]["complete"] is True
    assert there.provenance["settings"]["executor"] == executor
    assert inline.provenance["settings"]["plan"]["chunks"] > 1
    logs = len(list((tmp_path / "j").glob("*.log")))
    assert logs == workers if executor != "local" else 1 <= logs <= workers + 1  # the driver helps until they are ready


WAYS = {
    "metrics": lambda m, o: list(patch_metrics(m, TASK, ["logit_diff", "kl"], sites=SITES, options=o).values())[1],
    "noise draws": lambda m, o: patch(m, corrupt(TASK, "gaussian", draws=2), sites="resid.pre", options=o),
    "mean embeddings": lambda m, o: patch(m, corrupt(ALIKE, "mean"), sites="resid.pre", options=o),
    "mean ablation": lambda m, o: ablate(m, ALIKE, sites="mlp.out", by="mean", options=o),
    "resampling": lambda m, o: ablate(m, ALIKE, sites="mlp.out", by=Ablation("resample", seed=3), options=o),
    "paths": lambda m, o: path_patch(m, TASK, paths=Paths("attn.head@mid", "attn.q[2, 0]"), options=o),
    "paths to logits": lambda m, o: path_patch(m, TASK, paths=Paths("mlp.out@mid", through="nothing"), options=o),
    "windows": lambda m, o: patch(m, TASK, sites=windows(m, TASK, "mlp.out", 2), options=o),
    "noise direction": lambda m, o: patch(m, TASK, sites="attn.pattern", direction="noise", options=o),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_sweep_can_be_told_to_others(way, folder, tmp_path):
    """A process that has only the journal's folder gives each unit's rows, to the bit."""
    task_model = open_model(folder)
    inline = WAYS[way](task_model, with_crew("inline", None, journal=tmp_path / "j"))
    assert not np.isnan(inline.raw).all()
    before = torch.get_num_threads()
    job = open_job(tmp_path / "j")
    torch.set_num_threads(before)
    rows = Journal.found(tmp_path / "j").read()
    for unit in range(len(job.sweep.units)):
        mine = rows["unit"] == unit
        for name, values in job.run(unit).items():
            np.testing.assert_array_equal(values, rows[name][mine])
    job.close()


def test_a_module_that_was_given_as_such_is_saved_for_the_workers(tmp_path):
    """Its weights go beside the journal, as safetensors; the worker proves that it is the same model."""
    inline = patch(opened("gemma3"), TASK, sites="resid.pre", options=with_crew("inline", None))
    model = open_model(fresh("gemma3"))
    there = patch(model, TASK, sites="resid.pre", options=with_crew("local", 1, journal=tmp_path / "j"))
    assert model.module.config.architectures is None
    np.testing.assert_array_equal(there.raw, inline.raw)
    assert list((tmp_path / "j" / "model").glob("*.safetensors"))


def test_workers_lay_the_model_out_as_it_was(folder, tmp_path):
    """Blocks on disk in every process; the bits are those of the model in memory."""
    parts = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", "model.layers.0")
    place = dict.fromkeys(parts, "cpu") | {"model.layers.1": "disk", "model.layers.2": "disk"}
    spread = open_model(folder, layout=Layout(device_map=place, offload=tmp_path / "off"))
    whole = patch(open_model(folder), TASK, sites="resid.pre", options=with_crew("inline", None))
    there = patch(spread, TASK, sites="resid.pre", options=with_crew("local", 1, journal=tmp_path / "j"))
    np.testing.assert_array_equal(there.raw, whole.raw)
    told = json.loads((tmp_path / "j" / ABOUT).read_text())["plan"]["question"]["model"]["layout"]
    assert told["device_map"]["model.layers.1"] == "disk"
    memory = Layout(device_map="auto", max_memory={0: "1GiB", "cpu": 1 << 30}, bits=8)
    assert Layout.from_json(json.loads(json.dumps(memory.to_json()))) == memory


def test_what_cannot_be_told_is_refused(folder, tmp_path):
    """A metric of one's own, hooks of one's own, a class that nobody can import: before anything is run."""
    own = metric_from(lambda out: out.right[:, 0], name="mine")
    local = with_crew("local", 2)
    with pytest.raises(BadInput, match=r"metric 'mine' is a function of your own.*executor inline"):
        patch(open_model(folder), TASK, sites="mlp.out", metric=own, options=local)
    module = fresh("llama")
    handle = module.model.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(BadInput, match=r"hooks of your own \(on 'model.layers.0'\)"):
        patch(open_model(module), TASK, sites="mlp.out", options=local)
    handle.remove()
    with pytest.raises(BadInput, match="cannot open a Handmade that was given as a module"):
        patch(open_model(handmade()), make_task(make_pair(6, (2,))), sites="resid.pre", options=local)
    with pytest.raises(BadInput, match="ranks work through a folder"):
        patch(open_model(folder), TASK, sites="mlp.out", options=with_crew("ranks", None))


def test_plans_that_are_none(folder, tmp_path):
    """A damaged plan, a plan of a question that was not told, another model in the folder: each says so."""
    options = with_crew("inline", None, journal=tmp_path / "j")
    model = open_model(folder)
    patch(model, TASK, sites="mlp.out[1]", options=options)
    about = json.loads((tmp_path / "j" / ABOUT).read_text())
    question = about["plan"]["question"]
    plans = {
        "holds no plan that other processes can run": {"question": question | {"sites": 3}},
        "begun by a process that held the model": {"question": None},
        "is not the model that this work was begun with": {
            "question": question | {"model": question["model"] | {"fingerprint": "other"}}
        },
    }
    for words, changes in plans.items():
        changed = about | {"plan": about["plan"] | changes}
        (tmp_path / "j" / ABOUT).write_text(json.dumps(changed))
        with pytest.raises((BadInput, CorruptFile), match=words):
            open_job(tmp_path / "j")


DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
def main():
    from crosspatch.engine import Options, patch
    from crosspatch.executors import Crew
    from crosspatch.models.open import open_model
    from zoo import make_pair, make_task, uneven
    task = make_task(*uneven(), *(make_pair(7, (2,), seed=seed) for seed in range(5)))
    options = Options(tokens=60, memory=60_000, threads=1, crew=Crew("local", 2), journal=Path(sys.argv[3]))
    patch(open_model(sys.argv[2]), task, sites="resid.pre, attn.head, mlp.out, mlp.hidden", options=options)
    print("done")
if __name__ == "__main__":
    main()
"""


def test_a_real_sweep_whose_processes_are_killed_ends_with_the_same_bits(folder, tmp_path):
    """Workers and driver of a real sweep die at random; the table is that of an undisturbed one."""
    rng, journal, killed = random.Random(0), tmp_path / "j", 0
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, str(tmp_path / "driver.py"), str(HERE), str(folder), str(journal)]
    for target in ("worker", "driver", "group"):
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        have = len(done(journal))
        while driver.poll() is None and len(done(journal)) <= have:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.1))
        workers = [pid for pid in children_of(driver.pid) if "spawn_main" in words_of(pid)]
        if target == "worker" and workers:
            os.kill(workers[0], signal.SIGKILL)
            killed += 1
        elif driver.poll() is None:
            (os.killpg if target == "group" else os.kill)(driver.pid, signal.SIGKILL)
            killed += 1
        driver.communicate(timeout=240 if target == "worker" else 60)
        if target == "worker":
            whole = Journal.found(journal)
            assert len(whole.done()) == whole.plan["units"]
            for log in sorted(journal.glob("*.log"))[1:]:
                log.unlink()  # so that the next drivers find work to do
    model, sites = open_model(folder), f"{SITES}, mlp.hidden"
    resumed = patch(model, TASK, sites=sites, options=with_crew("inline", None, journal=journal))
    inline = patch(model, TASK, sites=sites, options=with_crew("inline", None))
    np.testing.assert_array_equal(resumed.raw, inline.raw)
    assert killed >= 2


def done(journal):
    """The finished units of a journal that may not be there yet."""
    return Journal.found(journal).done() if (journal / ABOUT).exists() else set()
