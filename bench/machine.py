"""What a benchmark ran on."""

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import torch

from crosspatch.core.provenance import here


def describe(given: argparse.Namespace) -> dict[str, Any]:
    """Return processor, threads, device, versions, commit and command line."""
    cuda = torch.cuda.get_device_name() if given.device.startswith("cuda") else None
    machine = {
        "cpu": cpu_name(),
        "cpu_features": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "gpu": cuda,
        "load": os.getloadavg()[0],
    }
    return {"machine": machine, "provenance": here(seed=given.seed)}


def cpu_name() -> str:
    """Return the processor's model name."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
