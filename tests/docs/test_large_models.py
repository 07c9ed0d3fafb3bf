"""The page on large models: its arithmetic is the script's, its commands have the script's options."""

import argparse
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "large-models.md").read_text(encoding="utf-8")


def test_the_arithmetic_is_that_of_the_planner():
    """On a model without weights, and for one pair: the plan of many is so many times as large."""
    lines = runpy.run_path(str(ROOT / "bench" / "seventy.py"))["lines"]
    given = argparse.Namespace(gpus=8, memory_gib=80, pairs=1, tokens=100, teraflops=400, gather_gb=300)
    found = lines(given)
    assert all(line in PAGE for line in found[:5])
    rows = int(found[5].split()[-2].replace(",", ""))
    assert f"{64 * rows:,} run" in PAGE
    flops = float(found[8].split()[1])
    assert f"arithmetic: {64 * flops:.3g} FLOP" in PAGE


def test_the_commands_are_those_of_the_script():
    """All options that the page shows exist."""
    script = (ROOT / "docs" / "spread.py").read_text(encoding="utf-8")
    shown = {word for line in PAGE.splitlines() if "spread.py org" in line for word in line.split() if word[:2] == "--"}
    assert {option for option in shown if f'"{option}"' not in script} == {"--nproc-per-node"}
