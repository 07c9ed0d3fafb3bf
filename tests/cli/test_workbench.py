"""`workbench`: served as a command, ended by Ctrl-C, refused where it cannot be served."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

# The command with packs that take a second each, and streams that do not end by themselves.
SLOW = """
import sys, time
from crosspatch.cli import main
from crosspatch.engine.units import SweepJob
import crosspatch.workbench.app as app, crosspatch.workbench.sweeps as sweeps
run, sweeps.PACK, app.STREAM = SweepJob.run, 4, 60
SweepJob.run = lambda job, unit: (time.sleep(1 if unit else 0), run(job, unit))[1]
main()
"""


def test_it_serves_until_interrupted(tiny, tmp_path):
    """The address is printed, answers with its token and to nobody without, and Ctrl-C ends it well."""
    words = [sys.executable, "-m", "crosspatch", "workbench", str(tiny), "--no-open"]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", running.stdout.readline()).group()
        assert "Ctrl-C ends it" in running.stdout.readline()
        with urllib.request.urlopen(f"{address}api/model", timeout=20) as answer:
            assert b'"layers"' in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(re.sub(r"/[\w-]+/$", "/", address), timeout=20)
        running.send_signal(signal.SIGINT)
        err = running.communicate(timeout=20)[1]
    finally:
        running.kill()
    assert running.returncode == 0
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []  # nothing was kept, so no folder is left


def test_it_ends_quietly_in_the_middle_of_a_sweep(tiny, tmp_path):
    """Ctrl-C while a page listens: its stream ends, nothing is dumped."""
    words = [sys.executable, "-c", SLOW, "workbench", str(tiny), "--no-open"]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", running.stdout.readline()).group()
        pair = {
            "clean": "When Mary went to the",
            "corrupt": "When John went to the",
            "right": ["Mary"],
            "wrong": ["John"],
        }
        body = json.dumps({"pair": pair, "sites": "resid.post"}).encode()
        asked = urllib.request.Request(f"{address}api/sweeps", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=20) as answer:
            sweep = json.load(answer)["sweep"]
        with urllib.request.urlopen(f"{address}api/sweeps/{sweep}/events", timeout=20) as stream:
            while not stream.readline().startswith(b"event: begun"):
                pass
            began = time.monotonic()
            running.send_signal(signal.SIGINT)
            err = running.communicate(timeout=20)[1]
    finally:
        running.kill()
    assert running.returncode == 0
    assert time.monotonic() - began < 10
    assert "Traceback" not in err, err


def test_a_port_that_is_taken_is_told(call, tiny, tmp_path):
    """With what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = call("workbench", tiny, "--no-open", "--port", port, "--out", tmp_path)
    assert result.exit_code == 2
    assert f"port {port} cannot be taken" in result.stderr
    assert "--port" in result.stderr


def test_what_is_missing_is_named(call, tiny, monkeypatch):
    """Without the extra, before the model is loaded."""
    monkeypatch.setattr("crosspatch.workbench.serving.find_spec", lambda name: None)
    result = call("workbench", tiny)
    assert result.exit_code == 2
    assert "pip install 'crosspatch[workbench]'" in result.stderr
    assert "opening" not in result.stderr
