"""Files are whole or absent: hashes, atomic writes, locks, and cached folders under damage, races and kills."""

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from crosspatch.core import files
from crosspatch.core.errors import BadInput, CorruptFile, MissingExtra
from crosspatch.core.files import (
    MANIFEST,
    cache_dir,
    cached_folder,
    check_folder,
    file_sha256,
    locked,
    sample_sha256,
    write_atomic,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Fill a folder and count how often."""

    def __init__(self):
        self.times = 0

    def __call__(self, folder):
        self.times += 1
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"w" * 1000)
        (folder / "config").write_text("settings")


def names(cache):
    return sorted(path.name for path in cache.iterdir())


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("CROSSPATCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "crosspatch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "crosspatch"
    assert not (tmp_path / "cache").exists()


def test_hashes_equal_their_naive_twins(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SAMPLES", 4)
    monkeypatch.setattr(files, "_BLOCK", 10)
    path, data = tmp_path / "file", bytes(range(100))
    path.write_bytes(data)
    assert file_sha256(path) == hashlib.sha256(data).hexdigest()
    blocks = b"".join(data[start : start + 10] for start in (0, 30, 60, 90))
    assert sample_sha256(path) == hashlib.sha256(blocks).hexdigest()
    path.write_bytes(data[:40])
    assert sample_sha256(path) == hashlib.sha256(data[:40]).hexdigest()


def test_an_atomic_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_atomic(path, "älter")
    assert path.read_bytes() == "älter".encode()
    write_atomic(path, b"newer")
    monkeypatch.setattr(files.os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_atomic(path, "part")
    assert path.read_bytes() == b"newer"
    assert names(path.parent) == ["file"]


def test_a_folder_is_built_once_and_has_a_manifest(cache):
    build = Builder()
    folder = cached_folder("thing-1.0", build, source="origin")
    assert cached_folder("thing-1.0", build, source="origin") == folder == cache / "thing-1.0"
    assert build.times == 1
    assert names(cache) == ["thing-1.0", "thing-1.0.lock"]
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["source"] == "origin"
    assert manifest["files"]["inner/weights"]["sha256"] == hashlib.sha256(b"w" * 1000).hexdigest()
    assert set(manifest["files"]) == {"inner/weights", "config"}
    assert check_folder(folder, by="sha256") == manifest


def damage_size(folder):
    (folder / "config").write_text("setting")


def damage_content(folder):
    (folder / "inner" / "weights").write_bytes(b"w" * 999 + b"x")


def damage_absent(folder):
    (folder / "config").unlink()


def damage_manifest(folder):
    (folder / MANIFEST).write_text('{"format"')


def damage_no_manifest(folder):
    (folder / MANIFEST).unlink()


def damage_format(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 0}))


def damage_shape(folder):
    (folder / MANIFEST).write_text("[]")


DAMAGES = {
    damage_size: ["config", "7 bytes; 8 were written"],
    damage_content: ["weights", "SHA-256"],
    damage_absent: ["not whole", "config"],
    damage_manifest: ["not whole"],
    damage_no_manifest: ["not whole", MANIFEST],
    damage_format: ["format 0", "reads 1"],
    damage_shape: ["not whole"],
}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_and_leaves_nothing(cache, error):
    def build(folder):
        (folder / "half").write_bytes(b"x")
        raise error

    with pytest.raises(BadInput, match=r"no room left.*CROSSPATCH_CACHE"):
        cached_folder("thing", build)
    assert [path.name for path in cache.iterdir()] in ([], ["thing.lock"])


def test_another_fault_of_the_disk_stays_what_it_is(cache):
    def build(folder):
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        cached_folder("thing", build)


@pytest.mark.parametrize(("damage", "words"), DAMAGES.items())
def test_a_damaged_folder_is_built_again_and_logged(damage, words, caplog, cache):
    build = Builder()
    folder = cached_folder("thing", build)
    damage(folder)
    with pytest.raises(CorruptFile) as raised:
        check_folder(folder)
    assert all(word in str(raised.value) for word in [str(folder), *words])
    with caplog.at_level(logging.WARNING):
        assert cached_folder("thing", build) == folder
    assert build.times == 2
    assert all(word in caplog.text for word in [str(folder), "built again", *words])
    check_folder(folder, by="sha256")
    assert names(cache) == ["thing", "thing.lock"]


def test_a_folder_made_from_another_source_is_built_again(caplog):
    build = Builder()
    cached_folder("thing", build, source="old")
    cached_folder("thing", build, source="new")
    assert build.times == 2
    assert "another source ('old', not 'new')" in caplog.text


def test_damage_outside_the_sample_is_found_by_the_whole_hash(monkeypatch, cache):
    monkeypatch.setattr(files, "_SAMPLES", 4)
    monkeypatch.setattr(files, "_BLOCK", 10)
    folder = cached_folder("thing", Builder())
    weights = folder / "inner" / "weights"
    weights.write_bytes(b"w" * 100 + b"x" + b"w" * 899)
    check_folder(folder)
    with pytest.raises(CorruptFile, match="sha256"):
        check_folder(folder, by="sha256")


def test_a_build_that_fails_leaves_nothing(cache):
    def fail(folder):
        (folder / "half").write_text("half")
        raise MissingExtra("pip install something")

    with pytest.raises(MissingExtra, match="pip install something"):
        cached_folder("thing", fail)
    assert names(cache) == ["thing.lock"]
    build = Builder()
    damage_size(cached_folder("thing", build))
    with pytest.raises(CorruptFile, match=r"thing.*could not be built again: pip install something.*delete .*thing"):
        cached_folder("thing", fail)
    assert names(cache) == ["thing", "thing.lock"]


def test_a_cache_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(BadInput, match=r"cannot be written.*CROSSPATCH_CACHE"):
        cached_folder("thing", Builder())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CROSSPATCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BadInput, match=r"cannot be made.*CROSSPATCH_CACHE"):
        cached_folder("thing", Builder())


@pytest.mark.parametrize("key", ["", "a/b", "..", "a b"])
def test_a_key_that_is_no_file_name_is_refused(key):
    with pytest.raises(BadInput, match="letters, digits"):
        cached_folder(key, Builder())


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


SLOW_BUILD = """
    import os, sys, time
    from pathlib import Path
    from crosspatch.core.files import cached_folder
    trace = Path(sys.argv[1])
    def build(folder):
        with trace.open("a") as file: file.write(f"{os.getpid()}\\n")
        for index in range(5):
            (folder / str(index)).write_text(str(os.getpid()))
            time.sleep(0.2)
    folder = cached_folder("shared", build, say=print)
    print(sorted(path.read_text() for path in folder.glob("[0-9]")))
"""


def test_of_two_processes_one_builds_and_both_see_the_whole(tmp_path, cache):
    trace = tmp_path / "trace"
    processes = [start(SLOW_BUILD, trace) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    builders = trace.read_text().split()
    assert len(builders) == 1
    assert [lines[-1] for lines in said] == [str(builders * 5)] * 2
    assert sorted(len(lines) for lines in said) == [1, 2]
    waiting = "Another process is preparing shared; waiting for it."
    assert [lines[0] for lines in said if len(lines) == 2] == [waiting]
    assert names(cache) == ["shared", "shared.lock"]


def wait_for(path, pattern):
    end = time.monotonic() + 60
    while not list(path.glob(pattern)):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_build_leaves_no_folder_and_no_lock(tmp_path, cache):
    process = start(SLOW_BUILD, tmp_path / "trace")
    wait_for(cache, "shared.partial-*/0")
    process.kill()
    process.communicate(timeout=60)
    assert not (cache / "shared").exists()
    assert [name.partition("-")[0] for name in names(cache)] == ["shared.lock", "shared.partial"]
    build = Builder()
    check_folder(cached_folder("shared", build), by="sha256")
    assert build.times == 1
    assert names(cache) == ["shared", "shared.lock"]


def test_a_lock_is_free_again_after_an_error(tmp_path):
    waited = []
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        1 / 0  # noqa: B018
    with locked(tmp_path / "lock", on_wait=lambda: waited.append(1)):
        pass
    assert not waited
