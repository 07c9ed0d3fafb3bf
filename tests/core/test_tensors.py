"""A file of tensors that is filled in any order: readers, writers that die, full disks, other content."""

import random
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file

from crosspatch.core.errors import BadInput, CorruptFile, DiskFull
from crosspatch.core.tensors import TensorFile

PARTS = [3, 1, 4, 2, 5, 1, 2, 6] * 20
WIDTHS = {"small": ("F32", 5), "half": ("BF16", 3), "byte": ("U8", 7)}
WRITER = """
import sys
from crosspatch.core.tensors import TensorFile
sys.path.insert(0, sys.argv[1])
from core.test_tensors import PARTS, WIDTHS, body
file = TensorFile.open(sys.argv[2], "same", widths=WIDTHS, parts=PARTS)
for part in range(int(sys.argv[3]), len(PARTS), 3):
    if not file.done[part]:
        file.fill(part, body(part))
        print(part, flush=True)
"""


def body(part):
    """The bytes of a part."""
    rng = np.random.default_rng(part)
    return {
        name: rng.integers(0, 255, PARTS[part] * width * {"F32": 4, "BF16": 2, "U8": 1}[dtype], np.uint8).tobytes()
        for name, (dtype, width) in WIDTHS.items()
    }


def opened(path, fingerprint="same"):
    return TensorFile.open(path, fingerprint, widths=WIDTHS, parts=PARTS)


def bytes_of(file, part):
    """What a file holds of a part."""
    first, last = file.part(part)
    return {
        name: file.array(name, {"F32": "<f4", "BF16": "<u2", "U8": "u1"}[dtype])[first:last].tobytes()
        for name, (dtype, _) in WIDTHS.items()
    }


def test_parts_come_back_in_any_order(tmp_path):
    """Also through safetensors' own reader, before all is there; the file has its whole size and takes no room yet."""
    file = opened(tmp_path / "x.safetensors")
    assert file.path.stat().st_blocks * 512 < 64 * 1024
    order = list(range(len(PARTS)))
    random.Random(0).shuffle(order)
    for count, part in enumerate(order):
        assert file.done.sum() == count
        file.fill(part, body(part))
        assert file.done[part]
    assert all(bytes_of(file, part) == body(part) for part in order)
    held = load_file(file.path)
    assert held["half"].shape == (sum(PARTS), 3)
    assert held["offsets"].tolist() == np.cumsum([0, *PARTS]).tolist()


def test_killed_writers_lose_nothing(tmp_path):
    """Nine writers of three shares die at random moments; what was marked is whole, the rest is run, once each."""
    rng, path = random.Random(1), tmp_path / "x.safetensors"
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(__file__).rsplit("/", 2)[0], str(path)]
        writers = [subprocess.Popen([*command, str(share)], stdout=subprocess.PIPE, text=True) for share in range(3)]
        for writer in writers:
            writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.01))
        for writer in writers:
            writer.kill()
            writer.communicate()
        file = TensorFile.found(path)
        assert file.done.any()
        assert all(bytes_of(file, part) == body(part) for part in np.flatnonzero(file.done).tolist())
    for share in range(3):
        done = TensorFile.found(path).done
        told = subprocess.run([*command, str(share)], capture_output=True, text=True, check=True).stdout
        assert not set(map(int, told.split())) & set(np.flatnonzero(done).tolist())
    file = TensorFile.found(path)
    assert file.done.all()
    assert all(bytes_of(file, part) == body(part) for part in range(len(PARTS)))


def test_what_is_refused(tmp_path):
    """Other content, bytes that do not fit, no file, a file cut short, a foreign file."""
    file = opened(tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match="another question"):
        opened(file.path, "other")
    with pytest.raises(BadInput, match=r"part 0 .* takes"):
        file.fill(0, body(1))
    with pytest.raises(BadInput, match="there is no file"):
        TensorFile.found(tmp_path / "none")
    data = file.path.read_bytes()
    file.path.write_bytes(data[:-1])
    with pytest.raises(CorruptFile, match="cut short"):
        TensorFile.found(file.path)
    (tmp_path / "foreign").write_bytes(b"\xff" * 100)
    with pytest.raises(CorruptFile, match="no cache of activations"):
        TensorFile.found(tmp_path / "foreign")
    with pytest.raises(BadInput, match="cannot write"):
        opened(tmp_path / "foreign" / "y")


def test_a_full_disk_keeps_what_is_marked(tmp_path, monkeypatch):
    """The part that does not fit is not marked."""
    import errno
    import os

    file = opened(tmp_path / "x.safetensors")
    file.fill(0, body(0))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as short:
        short.setattr(os, "pwrite", full)
        with pytest.raises(DiskFull, match="make room"):
            file.fill(1, body(1))
    assert file.done.sum() == 1
    file.fill(1, body(1))
    assert bytes_of(file, 0) == body(0)
