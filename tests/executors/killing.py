"""Start processes of a run, watch what they commit, kill them at random moments."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from crosspatch.core.errors import CrosspatchError
from crosspatch.core.journal import Journal

HERE = Path(__file__).parents[1]
SLEEP = "sleep-0.02"


def start(folder: Path, executor: str, workers: int = 0, **environment: str) -> subprocess.Popen:
    """Start a driver in a process group of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]), **environment}
    command = [sys.executable, str(HERE / "executors" / "drive.py"), str(folder), executor, str(workers)]
    return subprocess.Popen(
        command, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def committed(folder: Path) -> set[int]:
    """The units that anybody has acknowledged."""
    try:
        return Journal.found(folder).done()
    except CrosspatchError:
        return set()


def wait_for_more(folder: Path, than: int, driver: subprocess.Popen, seconds: float = 60) -> bool:
    """Wait until more units are committed; False if the driver ended first."""
    deadline = time.monotonic() + seconds
    while len(committed(folder)) <= than:
        if driver.poll() is not None:
            return False
        assert time.monotonic() < deadline, "nothing is committed any more"
        time.sleep(0.01)
    return True


def children_of(pid: int) -> list[int]:
    """The living processes below one, deepest last."""
    found = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in found.splitlines()]
    direct = [int(child) for child, parent, stat in lines if int(parent) == pid and not stat.startswith("Z")]
    return direct + [deeper for child in direct for deeper in children_of(child)]


def kill(pid: int) -> bool:
    """kill -9; False if it was gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def words_of(pid: int) -> str:
    """The command line of a process; '' if it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
