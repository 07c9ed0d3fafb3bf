"""A journal of finished work: append-only logs that survive a killed process, and one table of all that they hold.

Each writer has a log of its own, so that writers need no lock. A record is a frame (magic, length, CRC-32) around one
Arrow record batch. What `append` has returned from is on disk; a process that dies while it writes leaves a torn last
record, which readers leave out. A damaged record that is not the last is an error: it was acknowledged.
"""

import errno
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

import numpy as np

from crosspatch.core.errors import BadInput, CorruptFile, DiskFull
from crosspatch.core.files import write_atomic

if TYPE_CHECKING:
    pass

FORMAT = 1
MAGIC = b"xpc1"
HEAD = struct.Struct("<4sQI")
ABOUT, TABLE = "journal.json", "cells.parquet"
Columns = Mapping[str, np.ndarray]


@dataclass
class Journal:
    """One folder of logs for one question, told by its fingerprint; use it as a context manager to write."""

    folder: Path
    fingerprint: str
    _log: BinaryIO | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: str | Path, fingerprint: str) -> "Journal":
        """Open a journal; a new one is on disk with its first rows.

        Raises:
            BadInput: the folder holds the journal of another question, or one of a newer format.
            CorruptFile: its description cannot be read.
        """
        journal = cls(Path(folder), fingerprint)
        if (journal.folder / ABOUT).exists():
            journal._check()
        return journal

    def _check(self) -> None:
        found, folder = _read_about(self.folder / ABOUT), str(self.folder)
        if found["format"] > FORMAT:
            raise BadInput(f"{folder!r} was written by a newer crosspatch (format {found['format']}): update it.")
        if found["fingerprint"] != self.fingerprint:
            raise BadInput(
                f"{folder!r} holds the unfinished work of another question (fingerprint {found['fingerprint']}, "
                f"this is {self.fingerprint}). Choose another folder, ask the same, or remove it."
            )

    def _begin(self) -> BinaryIO:
        """Start this writer's log, and the journal if it is the first."""
        if not (self.folder / ABOUT).exists():
            head = {"format": FORMAT, "fingerprint": self.fingerprint}
            write_atomic(self.folder / ABOUT, json.dumps(head, indent=1))
        self._check()  # another question's writer may have come first
        return (self.folder / f"{uuid4().hex}.log").open("ab", buffering=0)

    def append(self, columns: Columns) -> None:
        """Add rows, all columns of one length; they are on disk when this returns.

        Raises:
            DiskFull: there is no room; what was appended before is kept.
        """
        record = _encode(columns)
        try:
            if self._log is None:
                self._log = self._begin()
            rest = memoryview(HEAD.pack(MAGIC, len(record), zlib.crc32(record)) + record)
            while rest:
                rest = rest[self._log.write(rest) :]
        except OSError as error:
            # What is torn stays the last of its log: the next record starts a new one.
            self.close()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFull(
                f"no room is left for results in {str(self.folder)!r}. What was finished is kept: make room, resume."
            ) from error

    def read(self) -> dict[str, np.ndarray]:
        """Return all rows, those of the compacted table first; empty without any.

        Raises:
            CorruptFile: an acknowledged record is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = self.folder / TABLE
        parts = [pq.read_table(table)] if table.exists() else []
        for log in sorted(self.folder.glob("*.log")):
            parts += [pa.ipc.open_stream(record).read_all() for record in records(log)]
        if not parts:
            return {}
        whole = pa.concat_tables(parts)
        return {name: whole[name].to_numpy() for name in whole.column_names}

    def compact(self) -> Path:
        """Put all rows into one Parquet table and remove the logs; give its path. No writer may be at work."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.close()
        logs, rows = list(self.folder.glob("*.log")), self.read()
        partial = self.folder / f".{uuid4().hex}.parquet"
        pq.write_table(pa.table(dict(rows)), partial, compression="zstd")
        partial.replace(self.folder / TABLE)
        for log in logs:
            log.unlink()
        return self.folder / TABLE

    def close(self) -> None:
        """Close this writer's log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def records(log: Path) -> Iterator[bytes]:
    """Yield the whole records of a log; a torn last one is left out.

    Raises:
        CorruptFile: a record before the last is damaged.
    """
    data, at = log.read_bytes(), 0
    while at + HEAD.size <= len(data):
        magic, length, check = HEAD.unpack_from(data, at)
        end = at + HEAD.size + length
        if magic == MAGIC and end > len(data):
            return
        body = data[at + HEAD.size : end]
        if magic != MAGIC or zlib.crc32(body) != check:
            if end >= len(data) and magic == MAGIC:
                return
            raise CorruptFile(
                f"{str(log)!r} is damaged at byte {at}: finished work in it cannot be trusted. Remove the file and "
                "resume: what it held is run again."
            )
        yield body
        at = end


def _encode(columns: Columns) -> bytes:
    import pyarrow as pa

    batch: pa.RecordBatch = pa.record_batch(dict(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _read_about(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"format": int(found["format"]), "fingerprint": str(found["fingerprint"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{str(path)!r} is no description of a journal: {error}.") from error
