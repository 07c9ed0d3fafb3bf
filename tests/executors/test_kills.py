"""Nothing acknowledged is lost: workers, drivers, ranks and whole process groups are killed at random moments.

Every run ends with the table of one that nobody disturbed, and units that were committed are not run again.
"""

import os
import random
import signal
import time

import numpy as np
import pytest

from crosspatch.core.journal import Journal
from executors.killing import SLEEP, children_of, committed, kill, start, wait_for_more, words_of
from executors.toy import check


def finish(folder, executor, workers=0):
    """Run the rest to its end; what was committed before is not run again."""
    before = {path: path.stat().st_size for path in folder.glob("*.log")}
    had = committed(folder)
    driver = start(folder, executor, workers)
    out, err = driver.communicate(timeout=120)
    assert out == "done\n", err
    check(Journal.found(folder).read())
    fresh = [log for log in folder.glob("*.log") if log not in before]
    units = [unit for log in fresh for unit in units_in(log)]
    assert not had & set(units)


def units_in(log):
    """The units of one log, repeated ones included."""
    import pyarrow as pa

    from crosspatch.core.journal import UNIT, records

    return [pa.ipc.open_stream(record).read_all()[UNIT][0].as_py() for record in records(log)]


def test_local_workers_are_killed(tmp_path):
    """Some 15 workers die; the driver goes on with new ones, to the same table."""
    rng, killed = random.Random(1), 0
    for run in range(3):
        folder = tmp_path / str(run) / "sleep-0.1"
        driver = start(folder, "local", 2)
        have = 0
        for _ in range(6):
            if not wait_for_more(folder, have, driver) or have > 30:
                break
            time.sleep(rng.uniform(0, 0.3))
            have = len(committed(folder))
            workers = [pid for pid in children_of(driver.pid) if "spawn_main" in words_of(pid)]
            killed += bool(workers) and kill(rng.choice(workers))
        out, err = driver.communicate(timeout=120)
        assert out == "done\n", err
        check(Journal.found(folder).read())
    assert killed >= 9


@pytest.mark.parametrize(("executor", "workers"), [("inline", 0), ("local", 2)])
def test_drivers_are_killed(executor, workers, tmp_path):
    """Six in a row; the seventh finds what they have done, and runs only the rest."""
    rng, folder, killed = random.Random(2), tmp_path / SLEEP, 0
    for _ in range(6):
        driver = start(folder, executor, workers)
        if wait_for_more(folder, len(committed(folder)), driver):
            time.sleep(rng.uniform(0, 0.05))
            killed += kill(driver.pid)
        driver.communicate()
    assert killed >= 5
    wait_until_quiet(folder)
    finish(folder, executor, workers)


def wait_until_quiet(folder):
    """Workers of a killed driver end a moment after it."""
    have = -1
    while len(committed(folder)) != have:
        have = len(committed(folder))
        time.sleep(0.3)


def test_process_groups_are_killed(tmp_path):
    """Driver and workers at once, as a scheduler or a closed terminal does, six times."""
    rng, folder, killed = random.Random(3), tmp_path / SLEEP, 0
    for _ in range(6):
        driver = start(folder, "local", 2)
        if wait_for_more(folder, len(committed(folder)), driver):
            time.sleep(rng.uniform(0, 0.03))
            os.killpg(driver.pid, signal.SIGKILL)
            killed += 1
        driver.communicate()
    assert killed >= 4
    finish(folder, "local", 2)


def test_ranks_are_killed(tmp_path):
    """Twelve of them, in rounds of three; the same command again does the rest."""
    rng, folder, killed = random.Random(4), tmp_path / SLEEP, 0
    for _ in range(4):
        ranks = [start(folder, "ranks", RANK=str(rank), WORLD_SIZE="3") for rank in range(3)]
        wait_for_more(folder, len(committed(folder)), ranks[0])
        for rank in rng.sample(ranks, 3):
            time.sleep(rng.uniform(0, 0.05))
            killed += rank.poll() is None and kill(rank.pid)
        for rank in ranks:
            rank.communicate()
    assert killed >= 8
    finish(folder, "inline")


def test_the_result_of_an_interrupted_run_is_compacted_while_it_is_written(tmp_path):
    """Compaction beside living writers, again and again, loses nothing and repeats nothing."""
    folder = tmp_path / SLEEP
    driver = start(folder, "local", 2)
    wait_for_more(folder, 2, driver)
    seen = set()
    while driver.poll() is None:
        journal = Journal.found(folder)
        journal.compact()
        now = journal.done()
        assert seen <= now
        seen = now
    assert driver.communicate()[0] == "done\n"
    journal = Journal.found(folder)
    check(journal.read())
    journal.compact()
    assert not list(folder.glob("*.log"))
    rows = journal.read()
    check(rows)
    np.testing.assert_array_equal(rows["unit"], np.sort(rows["unit"]))
