"""The timing of pages, run on a tiny result: its table and its file hold every way; the seconds are not checked."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "page.py"


def test_pages_of_a_tiny_result_are_timed(tmp_path):
    sizes = ("--layers", 2, "--heads", 2, "--positions", 9, "--pairs", 3, "--repeat", 1)
    command = [sys.executable, str(SCRIPT), *map(str, sizes), "--json", str(tmp_path / "page.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads((tmp_path / "page.json").read_text())
    assert found["sizes"] == {"layers": 2, "heads": 2, "positions": 9, "pairs": 3, "repeat": 1}
    plain, inside, metrics, circuit, _ = (row["kib"] for row in found["pages"].values())
    assert list(found["pages"]) == [
        "a result",
        "with attention",
        "with attention and a second metric",
        "with a circuit",
        "two results compared",
    ]
    assert all(name in done.stdout for name in found["pages"])
    assert 30 < plain < inside < metrics
    assert plain < circuit
    assert all(0 < row["least"] <= row["seconds"] <= row["most"] for row in found["pages"].values())
