"""Peak memory of one way to run a sweep, in a process of its own: `python memory.py '{"build": …, "way": …}'`."""

import ctypes
import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

MIB = 1 << 20
STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Footprint:
    """Bytes with the model loaded, and at the highest point of the sweep: resident set, or what torch held on a GPU."""

    way: str
    loaded: int
    peak: int

    @property
    def above(self) -> int:
        """Bytes that the sweep needed beside the loaded model."""
        return self.peak - self.loaded


def footprint(way: str, job: dict[str, object]) -> Footprint:
    """Measure one way in a fresh process; `job` has the `build`, `sites`, `texts`, `pairs`, `length`, `threads`."""
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps(job | {"way": way})]
    threads = {"OMP_NUM_THREADS": str(job["threads"])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | threads)
    if done.returncode:
        sys.exit(f"measuring the memory of {way!r} failed:\n{done.stderr[-3000:]}")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def _child(job: dict) -> Footprint:
    import torch

    from crosspatch.engine.measure import ONE_PASS
    from shapes import Build, make_task, open_shape

    build = Build(**job["build"])
    torch.set_num_threads(job["threads"])
    model = open_shape(build)
    task = make_task(job["texts"], pairs=job["pairs"], length=job["length"], vocab=model.vocab_size)
    loaded = peak_begin(build.device)
    (_sweep if job["way"] == ONE_PASS else _batches)(model, task, job["sites"])
    return Footprint(job["way"], loaded, peak_so_far(build.device))


def _sweep(model, task, sites: str) -> None:
    import crosspatch

    crosspatch.patch(model, task, sites=sites)


def _batches(model, task, sites: str) -> None:
    """Run two layers in batches: all layers need the same memory."""
    from crosspatch.engine.by_hand import by_hand, one_batch
    from crosspatch.engine.select import select_sites

    some = [site for site in select_sites(model, task, sites) if site.layer in (0, 1)]
    one_batch(by_hand(model, task, some), some)


def peak_begin(device: str) -> int:
    """Give back what building the model left over, begin a new peak, and return the bytes in use."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    PEAK_RESET.write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak_so_far(device: str) -> int:
    """Return the most bytes in use since the peak began."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(asdict(_child(json.loads(sys.argv[1])))))
