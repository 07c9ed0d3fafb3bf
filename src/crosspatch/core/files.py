"""Files that are whole or absent: the cache folder, atomic writes, hashes, locks."""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal
from uuid import uuid4

from safetensors import SafetensorError

from crosspatch.core.errors import BadInput, CorruptFile, CrosspatchError

logger = logging.getLogger(__name__)

Say = Callable[[str], None]

MANIFEST = "crosspatch-manifest.json"
FORMAT = 1  # of the manifest; a folder of another format is built again
_SAMPLES = 64
_BLOCK = 256 * 1024
_POLL = 0.2  # seconds between two tries to take a lock


def cache_dir() -> Path:
    """Return the folder for files that can be made again: $CROSSPATCH_CACHE, or crosspatch in the user's cache.

    It is not created. $XDG_CACHE_HOME is honoured where it is set.
    """
    own = os.environ.get("CROSSPATCH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "crosspatch"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_sha256(path: Path) -> str:
    """Return the SHA-256 of a file up to 16 MiB, or of 64 blocks spread over a larger one (about 0.1 s)."""
    size = path.stat().st_size
    if size <= _SAMPLES * _BLOCK:
        return file_sha256(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(_SAMPLES):
            file.seek((size - _BLOCK) * index // (_SAMPLES - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_DIGESTS: Mapping[str, Callable[[Path], str]] = {"sample": sample_sha256, "sha256": file_sha256}


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that other readers, and a crash, meet the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def compact_json(path: Path) -> None:
    """Write JSON again without indentation: a large vocabulary is then read twice as fast."""
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def name_first(partial: Path, path: Path) -> None:
    """Give a finished file its name unless there is one of that name: of several writers the first one's stands."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError as error:  # a file system without hard links, such as a mounted bucket
        if error.errno in NO_ROOM:
            raise
        if not path.exists():
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system frees it when its holder ends, killed or not.

    `on_wait` is called once if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if not hold(file):
            if on_wait:
                on_wait()
            while not hold(file):
                time.sleep(_POLL)
        try:
            yield
        finally:
            _free(file)


def hold(file: IO[bytes]) -> bool:
    """Lock an open file if no other process does; tell whether it is ours now. The lock ends with the file."""
    with suppress(BlockingIOError, PermissionError):  # Windows says PermissionError for a lock that is held
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _free(file: IO[bytes]) -> None:
    if os.name == "nt":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)


def cached_folder(key: str, build: Callable[[Path], None], *, source: str = "", say: Say | None = None) -> Path:
    """Return the cache's folder of that key, whole and checked; `build` fills an empty folder when it is missing.

    The folder appears by one rename, with a manifest of its files and of `source` (what it was made from), so no
    other process ever sees a part of it; only one process builds at a time. A damaged folder, or one made from
    another source, is built again. Raises CorruptFile when that fails, BadInput when the cache cannot be written,
    and whatever `build` raises.
    """
    if not re.fullmatch(r"[\w.-]*\w", key):
        raise BadInput(f"{key!r} cannot name a folder: use letters, digits, '.', '_' and '-'.")
    folder = cache_dir() / key
    if folder.exists() and _damage(folder, source) is None:
        return folder
    _need_writable(folder.parent)
    wait = f"Another process is preparing {key}; waiting for it."
    with locked(folder.with_name(f"{key}.lock"), on_wait=lambda: say(wait) if say else logger.info(wait)):
        damage = _damage(folder, source) if folder.exists() else None
        if damage is None and folder.exists():  # another process built it in the meantime
            return folder
        if damage:
            logger.warning("%s It is built again.", damage)
        _build(folder, build, source=source, damage=damage)
    return folder


def check_folder(folder: Path, *, by: Literal["sample", "sha256"] = "sample") -> Mapping[str, Any]:
    """Compare a folder with its manifest and return the manifest; "sha256" reads every byte of its files.

    Raises CorruptFile that names the folder and what differs.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise CorruptFile(f"{folder} has format {manifest['format']}, and this version reads {FORMAT}.")
        for name, expected in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != expected["size"]:
                raise CorruptFile(f"{path} has {path.stat().st_size} bytes; {expected['size']} were written.")
            if _DIGESTS[by](path) != expected[by]:
                raise CorruptFile(f"{path} is not what was written: its SHA-256 ({by}) differs.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(f"{folder} is not whole ({type(error).__name__}: {error}).") from error
    return manifest


def _damage(folder: Path, source: str) -> str | None:
    try:
        made_from = check_folder(folder)["source"]
    except CorruptFile as error:
        return str(error)
    return None if made_from == source else f"{folder} was made from another source ({made_from!r}, not {source!r})."


def _need_writable(parent: Path) -> None:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the cache {parent} cannot be made ({error}). Set CROSSPATCH_CACHE to a folder.") from error
    if not os.access(parent, os.W_OK):
        raise BadInput(f"the cache {parent} cannot be written. Set CROSSPATCH_CACHE to a folder that can.")


def _build(folder: Path, build: Callable[[Path], None], *, source: str, damage: str | None) -> None:
    # whoever holds the lock is the only builder: what other names of this form hold was left by a killed one
    for stale in folder.parent.glob(f"{folder.name}.partial-*"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.partial-{uuid4().hex[:8]}")
    partial.mkdir()
    try:
        build(partial)
        _write_manifest(partial, source)
        _put_in_place(partial, folder)
    except CrosspatchError as error:
        if damage is None:
            raise
        raise CorruptFile(f"{damage} It could not be built again: {error} To start afresh, delete {folder}.") from error
    except (OSError, SafetensorError) as error:
        if not _out_of_room(error):
            raise
        raise BadInput(
            f"the cache {folder.parent} has no room left ({error}). Free some, or set CROSSPATCH_CACHE to a folder on "
            "another disk."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _out_of_room(error: Exception) -> bool:
    """Whether a disk or a quota is full; safetensors tells by text alone."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full)


def _write_manifest(folder: Path, source: str) -> None:
    files = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sample": sample_sha256(path),
            "sha256": file_sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_atomic(folder / MANIFEST, json.dumps({"format": FORMAT, "source": source, "files": files}, indent=2))


def _put_in_place(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    old = folder.with_name(f"{partial.name}-old")  # a folder cannot be renamed onto a full one
    folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
