"""A journal keeps what it has acknowledged: killed writers, torn and damaged records, full disks, several writers."""

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

from crosspatch.core.errors import BadInput, CorruptFile, DiskFull
from crosspatch.core.files import hold
from crosspatch.core.journal import ABOUT, HEAD, LOCK, Journal, records

WRITER = """
import sys
import numpy as np
from crosspatch.core.journal import Journal
with Journal.open(sys.argv[1], "same") as journal:
    print("ready", flush=True)
    for number in range(100000):
        value = np.random.default_rng(number).random(50)
        journal.append(number, {"cell": np.full(50, number, np.int64), "value": value})
        print(number, flush=True)
"""


def some(start, count=3):
    return {"cell": np.arange(start, start + count), "value": np.linspace(0, 1, count).astype(np.float32)}


def test_rows_come_back_as_they_went_in(tmp_path):
    """Types and order included; an empty journal gives nothing."""
    with Journal.open(tmp_path / "j", "a") as journal:
        assert journal.read() == {}
        journal.append(0, some(0))
        journal.append(1, some(3))
    found = Journal.open(tmp_path / "j", "a").read()
    np.testing.assert_array_equal(found["cell"], np.arange(6))
    assert found["value"].dtype == np.float32


def test_compacting_keeps_all_rows_and_removes_the_logs(tmp_path):
    """Also when it is done again after more work; the table is plain Parquet."""
    import pyarrow.parquet as pq

    with Journal.open(tmp_path, "a") as journal:
        journal.append(0, some(0))
        path = journal.compact()
        journal.append(1, some(3))
        journal.compact()
    assert not list(tmp_path.glob("*.log"))
    assert pq.read_table(path)["cell"].to_pylist() == list(range(6))


def test_another_question_and_a_newer_format_are_refused(tmp_path):
    """Results of two questions never mix."""
    late = Journal.open(tmp_path, "b")
    with Journal.open(tmp_path, "a") as first:
        assert list(tmp_path.iterdir()) == []
        first.append(0, some(0))
    for act in (lambda: Journal.open(tmp_path, "b"), lambda: late.append(1, some(3))):
        with pytest.raises(BadInput, match="unfinished work of another question"):
            act()
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(BadInput, match="newer crosspatch"):
        Journal.open(tmp_path, "a")
    (tmp_path / ABOUT).write_text("{")
    with pytest.raises(CorruptFile, match="no description of a journal"):
        Journal.open(tmp_path, "a")


def test_a_torn_tail_is_left_out_wherever_it_is_cut(tmp_path):
    """Every length of a log gives the whole records in it, never an error, never half a record."""
    with Journal.open(tmp_path, "a") as journal:
        for number in range(3):
            journal.append(number, some(3 * number))
    (log,) = tmp_path.glob("*.log")
    data = log.read_bytes()
    ends, at = [], 0
    while at < len(data):
        at += HEAD.size + HEAD.unpack_from(data, at)[1]
        ends.append(at)
    for length in range(0, len(data) + 1, 7):
        log.write_bytes(data[:length])
        assert len(list(records(log))) == sum(end <= length for end in ends)


def test_a_damaged_record_is_an_error_unless_it_is_the_last(tmp_path):
    """A flipped byte in acknowledged work must not pass; in the last record it is a torn write."""
    with Journal.open(tmp_path, "a") as journal:
        journal.append(0, some(0))
        journal.append(1, some(3))
    (log,) = tmp_path.glob("*.log")
    data = bytearray(log.read_bytes())
    data[HEAD.size + 40] ^= 1
    log.write_bytes(data)
    with pytest.raises(CorruptFile, match="damaged at byte 0"):
        journal.read()
    data[HEAD.size + 40] ^= 1
    data[-20] ^= 1
    log.write_bytes(data)
    assert journal.read()["cell"].tolist() == [0, 1, 2]


def test_two_writers_share_a_folder(tmp_path):
    """Each has its own log; a reader sees both."""
    with Journal.open(tmp_path, "a") as first, Journal.open(tmp_path, "a") as second:
        first.append(0, some(0))
        second.append(1, some(3))
        first.append(2, some(6))
    assert sorted(Journal.open(tmp_path, "a").read()["cell"].tolist()) == list(range(9))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_and_keeps_the_rest(tmp_path):
    """The error tells what to do; what was written before can be read."""
    with Journal.open(tmp_path, "a") as journal:
        journal.append(0, some(0))
    full = Journal.open(tmp_path, "a")
    full._log = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115
    with pytest.raises(DiskFull, match="make room, resume"):
        full.append(1, some(3))
    full.append(1, some(3))
    full.close()
    assert sorted(journal.read()["cell"].tolist()) == list(range(6))


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    """Twelve writers are killed at random moments; every number they printed is in the journal, whole."""
    rng, acknowledged = random.Random(0), []
    for round_ in range(3):
        writers = []
        for _ in range(4):
            command = [sys.executable, "-c", WRITER, str(tmp_path / str(round_))]
            writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for writer in writers:
            assert writer.stdout.readline().strip() == "ready"
            assert writer.stdout.readline().strip() == "0"
        time.sleep(rng.uniform(0.02, 0.3))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            printed = [int(line) for line in writer.communicate()[0].split() if line.isdigit()]
            acknowledged.append(max(printed[:-1], default=-1))  # the last line may be cut itself
        found = Journal.open(tmp_path / str(round_), "same").read()
        for most in acknowledged[-4:]:
            counts = np.bincount(found["cell"], minlength=most + 1)[: most + 1]
            assert (counts >= 50).all()
            assert (counts % 50 == 0).all()
    assert max(acknowledged) > 5


def test_a_unit_that_two_writers_ran_is_read_once(tmp_path):
    """Delivery is at least once, before and after compaction, also with a log beside the table."""
    with Journal.open(tmp_path, "a") as first, Journal.open(tmp_path, "a") as second:
        for writer in (first, second):
            writer.append(7, some(0))
        second.append(8, some(3))
    journal = Journal.found(tmp_path)
    for _ in range(2):
        assert journal.read()["unit"].tolist() == [7] * 3 + [8] * 3
        assert journal.done() == {7, 8}
        journal.compact()
    with journal:
        journal.append(7, some(0))
    assert journal.read()["cell"].tolist().count(1) == 1


def test_the_first_writers_plan_stands(tmp_path):
    """Whoever comes later takes it over; an older format is told."""
    with Journal.open(tmp_path, "a", plan={"cuts": 1}) as first, Journal.open(tmp_path, "a", plan={"cuts": 2}) as late:
        first.append(0, some(0))
        late.append(1, some(3))
        assert late.plan == {"cuts": 1}
    assert Journal.open(tmp_path, "a", plan={"cuts": 3}).plan == {"cuts": 1}
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps(about | {"format": 1}))
    with pytest.raises(BadInput, match="written by an older crosspatch"):
        Journal.found(tmp_path)


def test_compaction_leaves_the_logs_of_living_writers(tmp_path):
    """What is still written to stays; another compaction at the same time is refused; without any there is no table."""
    with Journal.open(tmp_path, "a") as alive:
        alive.append(0, some(0))
        assert Journal.found(tmp_path).compact() is None
        with Journal.open(tmp_path, "a") as ended:
            ended.append(1, some(3))
        assert Journal.found(tmp_path).compact() is not None
        assert len(list(tmp_path.glob("*.log"))) == 1
        assert Journal.found(tmp_path).done() == {0, 1}
        with (tmp_path / LOCK).open("ab") as turn:
            assert hold(turn)
            with pytest.raises(BadInput, match="compacted by another process"):
                ended.compact()
        alive.append(2, some(6))
    assert Journal.found(tmp_path).done() == {0, 1, 2}


def test_journals_of_one_question_are_merged(tmp_path):
    """Units that are there already are not taken twice; another question or another cut is refused."""
    for name, units, plan in (("a", (0, 1), {"cuts": 1}), ("b", (1, 2), {"cuts": 1}), ("c", (3,), {"cuts": 2})):
        with Journal.open(tmp_path / name, "same", plan=plan) as journal:
            for unit in units:
                journal.append(unit, some(3 * unit))
    with Journal.open(tmp_path / "a", "same") as joined:
        assert joined.merge(Journal.found(tmp_path / "b")) == 1
        assert sorted(joined.read()["cell"].tolist()) == list(range(9))
        with pytest.raises(BadInput, match="was cut otherwise"):
            joined.merge(Journal.found(tmp_path / "c"))
        with pytest.raises(BadInput, match="answers another question"):
            joined.merge(Journal(tmp_path / "b", "other"))
