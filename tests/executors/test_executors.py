"""Executors run every unit once, whoever dies: toy units by all executors, dealing, shares, errors, choices."""

import os
import time

import numpy as np
import pytest

from crosspatch.core.errors import BadInput, NotFinite, UnknownName, WorkerLost
from crosspatch.core.journal import Journal, Notes
from crosspatch.core.progress import SilentProgress
from crosspatch.executors import Crew, Job, Setup, execute, pick, share_of
from crosspatch.executors.job import Dealer
from crosspatch.executors.ranks import place_of
from executors.killing import HERE, children_of, committed, start, wait_for_more, words_of
from executors.toy import FINGERPRINT, ROWS, UNITS, Toy, check

OPENER = "executors.toy:open_toy"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let spawned processes import this folder's toy, and be no rank ourselves."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


class Count(SilentProgress):
    """Adds up what it is told."""

    done = 0

    def advance(self, done, note=""):
        self.done += done


def run(folder, executor, workers=None, job=None):
    """Run the toy with an executor; give its rows and what progress was told."""
    folder.mkdir(parents=True, exist_ok=True)
    progress, job = Count(), job or Toy()
    with Journal.open(folder, FINGERPRINT) as journal:
        crew = Crew(executor, workers)
        execute(job, journal, Setup(OPENER, folder), crew=crew, progress=progress)
        return journal.read(), progress.done


def test_the_toy_is_a_job():
    assert isinstance(Toy(), Job)


@pytest.mark.parametrize("executor", ["inline", "local", "ranks"])
def test_every_unit_is_run_once(executor, tmp_path):
    """With its numbers, and progress that adds up; a second time nothing is run."""
    for _ in range(2):
        rows, told = run(tmp_path / "sleep-0", executor, 2 if executor == "local" else None)
        check(rows)
        assert told == UNITS * ROWS
    job = Toy()
    run(tmp_path / "sleep-0", "inline", job=job)
    assert job.ran == []
    assert job.closed == 1


def test_notes_hold_what_a_journal_would(tmp_path):
    """In memory the same rows come back."""
    notes = Notes({})
    execute(Toy(), notes, Setup("", tmp_path), crew=Crew(), progress=SilentProgress())
    check(notes.read())
    assert notes.done() == set(range(UNITS))
    assert Notes({}).read() == {}


def test_the_driver_helps_until_its_workers_are_ready(tmp_path):
    """Where it may, it runs the first units itself and leaves the rest; nothing is run twice."""
    folder, job = tmp_path / "sleep-0.02", Toy(0.02)
    folder.mkdir()
    with Journal.open(folder, FINGERPRINT) as journal:
        setup = Setup(OPENER, folder, helps=True)
        execute(job, journal, setup, crew=Crew("local", 1), progress=SilentProgress())
        check(journal.read())
    assert 0 < len(job.ran) < UNITS
    assert len(list(folder.glob("*.log"))) == 2


def test_local_workers_share_out_devices(tmp_path):
    """Each worker opens the job on its own device."""
    folder = tmp_path / "sleep-0.02"
    folder.mkdir()
    with Journal.open(folder, FINGERPRINT) as journal:
        setup = Setup(OPENER, folder, devices=("one", "two"))
        execute(Toy(), journal, setup, crew=Crew("local"), progress=SilentProgress())
    assert {path.name for path in folder.glob("opened-*")} == {"opened-one", "opened-two"}


def test_a_unit_that_fails_tells_and_keeps_the_rest(tmp_path):
    """Its own error reaches the driver; what others finished stays."""
    for executor, workers in (("inline", None), ("local", 2)):
        folder = tmp_path / executor / "spoiled-7"
        with pytest.raises(NotFinite, match="unit 7 gives no number"):
            run(folder, executor, workers, job=Toy(spoiled=7))
        assert 7 not in Journal.found(folder).done()


def test_a_worker_that_dies_again_and_again(tmp_path):
    """Four deaths at one unit end the run with what to do; the rest is kept."""
    folder = tmp_path / "deadly-37"
    with pytest.raises(WorkerLost, match=r"unit 37 killed its worker 4 times.*fewer --workers"):
        run(folder, "local", 1)
    assert len(Journal.found(folder).done()) > UNITS // 2


def test_a_job_that_cannot_be_opened(tmp_path):
    """The worker's own error is told, not that it died."""
    folder = tmp_path / "sleep-soon"
    with pytest.raises(ValueError, match="soon"):
        run(folder, "local", 2)


def test_workers_end_with_their_driver(tmp_path):
    """kill -9 on the driver takes its workers along; what they finished is there for the next."""
    folder = tmp_path / "sleep-0.05"
    driver = start(folder, "local", 2)
    wait_for_more(folder, 0, driver)
    children = children_of(driver.pid)
    assert children
    driver.kill()
    driver.communicate()
    deadline = time.monotonic() + 20
    while any(children_of(child) or words_of(child) for child in children):
        assert time.monotonic() < deadline, "a worker outlived its driver"
        time.sleep(0.1)
    had = committed(folder)
    assert 0 < len(had) < UNITS
    job = Toy()
    check(run(folder, "inline", job=job)[0])
    assert set(job.ran) == set(range(UNITS)) - had


def test_ranks_share_the_work_and_the_first_waits(tmp_path):
    """Three ranks: shares are disjoint and whole; rank 0 returns when all is there."""
    folder = tmp_path / "sleep-0.01"
    ranks = [start(folder, "auto", RANK=str(rank), WORLD_SIZE="3") for rank in range(3)]
    assert [rank.communicate(timeout=60)[0] for rank in ranks] == ["done\n"] * 3
    check(Journal.found(folder).read())
    assert len(list(folder.glob("*.log"))) == 3


def test_rank_0_does_what_a_silent_rank_left(tmp_path, monkeypatch):
    """A rank that never came costs time, not the result."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("crosspatch.executors.ranks.PATIENCE", 0.1)
    job = Toy()
    rows, told = run(tmp_path / "sleep-0", "auto", job=job)
    check(rows)
    assert told == UNITS * ROWS
    assert len(job.ran) == UNITS


def test_shares_are_whole_disjoint_and_even():
    """Whatever the number of ranks; neighbours stay together."""
    for world in (1, 2, 3, 7, 40, 50):
        shares = [share_of(Toy(), rank, world) for rank in range(world)]
        assert sorted(unit for share in shares for unit in share) == list(range(UNITS))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    order = [unit for group in Toy().groups for unit in group]
    assert [unit for rank in range(3) for unit in share_of(Toy(), rank, 3)] == order


def test_a_dealer_keeps_workers_in_their_groups():
    """Each worker has a group of its own while there are enough; then they help each other."""
    dealer = Dealer.of(Toy(), done={0, 1})
    taken = {worker: [dealer.take(worker) for _ in range(5)] for worker in range(3)}
    groups = [{unit % 3 for unit in units} for units in taken.values()]
    assert all(len(group) == 1 for group in groups)
    assert len(set.union(*groups)) == 3
    dealer.give_back(taken[1][2:])
    rest = []
    while (unit := dealer.take(1)) is not None:
        rest.append(unit)
    assert rest[:3] != taken[1][2:]  # dealt again last of their group
    assert dealer.left == 0
    assert sorted([*rest, *taken[0], *taken[2], *taken[1][:2]]) == list(range(2, UNITS))


def test_places_of_launchers():
    """torchrun, SLURM's steps and arrays; one rank alone is none; nonsense is refused."""
    assert place_of({}) is None
    assert place_of({"RANK": "1", "WORLD_SIZE": "4"}) == (1, 4)
    assert place_of({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert place_of({"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}) == (2, 3)
    array = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    assert place_of(array) == (0, 2)
    for bad in ({"RANK": "one", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}):
        with pytest.raises(BadInput, match="RANK="):
            place_of(bad)


def test_choices(monkeypatch):
    """auto never starts a cluster; what does not exist or fit is refused."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert pick(Crew()) == "inline"
    assert pick(Crew(workers=2)) == "local"
    assert pick(Crew("ray")) == "ray"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert pick(Crew()) == "ranks"
    with pytest.raises(UnknownName, match="Did you mean 'local'"):
        Crew("locale")
    with pytest.raises(BadInput, match="0 workers"):
        Crew("local", 0)
    with pytest.raises(BadInput, match="this process alone"):
        Crew("inline", 2)


def test_numbers_do_not_depend_on_the_executor(tmp_path):
    """The tables of all executors are the same to the bit."""
    tables = []
    for executor, workers in (("inline", None), ("local", 1), ("local", 3)):
        rows, _ = run(tmp_path / f"{executor}{workers}" / "sleep-0", executor, workers)
        order = np.argsort(rows["unit"], kind="stable")
        tables.append(rows["value"][order])
    for table in tables[1:]:
        np.testing.assert_array_equal(table, tables[0])
