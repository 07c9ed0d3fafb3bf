"""Ray and SLURM (submitit on this machine): the toy's table, killed actors and drivers, settings that are refused."""

import random
import time

import pytest

from crosspatch.core.errors import BadInput, WorkerLost
from crosspatch.core.journal import Journal
from crosspatch.core.progress import SilentProgress
from crosspatch.executors import Crew, Setup, execute
from executors.killing import HERE, children_of, committed, kill, start, wait_for_more, words_of
from executors.toy import FINGERPRINT, Toy, check

ray = pytest.importorskip("ray", reason="the executor needs Ray: pip install 'crosspatch[ray]'")
pytest.importorskip("submitit", reason="the executor needs submitit: pip install 'crosspatch[slurm]'")
QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def actors_of(driver):
    """The processes of a driver's Ray workers."""
    return [pid for pid in children_of(driver.pid) if words_of(pid).startswith("ray::RayWorker")]


def test_ray_actors_are_killed(tmp_path):
    """Six actors die; Ray starts others, and the table is whole."""
    rng, folder, killed, have = random.Random(5), tmp_path / "sleep-0.1", 0, 0
    driver = start(folder, "ray", 2, **QUIET)
    for _ in range(6):
        if not wait_for_more(folder, have, driver, seconds=120):
            break
        time.sleep(rng.uniform(0, 0.2))
        have = len(committed(folder))
        actors = actors_of(driver)
        killed += bool(actors) and kill(rng.choice(actors))
    out, err = driver.communicate(timeout=180)
    assert out == "done\n", err
    assert killed >= 2
    check(Journal.found(folder).read())


def test_a_ray_driver_is_killed(tmp_path):
    """What the actors had finished is there; another executor does the rest."""
    folder = tmp_path / "sleep-0.1"
    driver = start(folder, "ray", 2, **QUIET)
    assert wait_for_more(folder, 3, driver, seconds=120)
    kill(driver.pid)
    driver.communicate()
    time.sleep(1)
    had, job = committed(folder), Toy()
    assert had
    with Journal.open(folder, FINGERPRINT) as journal:
        execute(job, journal, Setup("", folder), crew=Crew("inline"), progress=SilentProgress())
        check(journal.read())
    assert not had & set(job.ran)


def run_slurm(folder, workers, cluster):
    """Run the toy as an array; its plan's opener is not one of crosspatch."""
    with Journal.open(folder, FINGERPRINT, plan={"opener": "os:system"}) as journal:
        crew = Crew("slurm", workers, cluster)
        execute(Toy(), journal, Setup("", folder), crew=crew, progress=SilentProgress())


def test_settings_that_submitit_does_not_know(tmp_path, monkeypatch):
    """A misspelled setting, and SLURM where there is none, are told with what is allowed."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    for cluster in ({"cluster": "local", "slum_partition": "x"}, {"cluster": "nowhere"}):
        with pytest.raises(BadInput, match=r"submitit cannot use these settings(.|\n)*slurm_partition"):
            run_slurm(tmp_path / "j", 2, cluster)


def test_a_task_that_fails_is_told(tmp_path):
    """A journal whose plan no task can run: the task's own words reach the driver."""
    with pytest.raises(WorkerLost, match=r"40 of 40 units are missing(.|\n)*its opener is 'os:system'"):
        run_slurm(tmp_path / "j", 1, {"cluster": "local"})
    assert list((tmp_path / "j" / "slurm").iterdir())
