"""Start the same job on several ranks, as torchrun does, and collect what each of them wrote."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
SECONDS = 120  # after which ranks that wait for each other are ended


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def run_ranks(job, folder, *, size=2):
    """Run a job of `jobs.py` on `size` ranks; return each rank's arrays by name. A rank that fails or hangs fails."""
    port = free_port()
    ranks, logs = [], [folder / f"{job}-{rank}.log" for rank in range(size)]
    for rank, log in enumerate(logs):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        paths = os.pathsep.join(path for path in (str(HERE), str(HERE.parent), *sys.path) if path)
        env = {**os.environ, **{k: str(v) for k, v in own.items()}, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        command = [sys.executable, str(HERE / "jobs.py"), job, str(folder)]
        with log.open("w") as out:
            ranks.append(subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT))
    end = time.monotonic() + SECONDS
    try:
        while any(rank.poll() is None for rank in ranks):
            if time.monotonic() > end or any(rank.poll() not in (None, 0) for rank in ranks):
                break
            time.sleep(0.05)
    finally:
        time.sleep(0.2)
        for rank in ranks:
            rank.kill()
            rank.wait()
    failed = [i for i, rank in enumerate(ranks) if rank.returncode]
    if failed:
        pytest.fail("\n".join(f"rank {i} ({ranks[i].returncode}):\n{logs[i].read_text()[-3000:]}" for i in failed))
    return [dict(np.load(folder / f"{job}-{rank}.npz")) for rank in range(size)]
