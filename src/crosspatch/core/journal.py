"""A journal of finished work: append-only logs that survive a killed process, and one table of all that they hold.

Work is cut into units, numbered by a plan that the first writer puts beside the logs and all later ones take over. Each
writer has a log of its own, so that writers need no lock. A record is a frame (magic, length, CRC-32) around one Arrow
record batch: the rows of one unit. What `append` has returned from is on disk; a process that dies while it writes
leaves a torn last record, which readers leave out. A damaged record that is not the last is an error: it was
acknowledged. A unit that was run twice (delivery is at least once) is read once.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

import numpy as np

from crosspatch.core.errors import BadInput, CorruptFile, DiskFull
from crosspatch.core.files import NO_ROOM, hold, name_first

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 2
MAGIC = b"xpc1"
HEAD = struct.Struct("<4sQI")
ABOUT, TABLE, LOCK = "journal.json", "cells.parquet", "compact.lock"
UNIT = "unit"
Columns = Mapping[str, np.ndarray]


@dataclass
class Journal:
    """One folder of logs for one question, told by its fingerprint; use it as a context manager to write.

    `plan` says how the question's work is cut, and whatever else another process must know to take part: plain data.
    """

    folder: Path
    fingerprint: str
    plan: dict[str, Any] = field(default_factory=dict)
    _log: BinaryIO | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: str | Path, fingerprint: str, *, plan: Mapping[str, Any] | None = None) -> "Journal":
        """Open a journal; a new one is on disk with its first rows. The plan of one that is there takes precedence.

        Raises:
            BadInput: the folder holds the journal of another question, or one of another format.
            CorruptFile: its description cannot be read.
        """
        journal = cls(Path(folder), fingerprint, dict(plan or {}))
        if (journal.folder / ABOUT).exists():
            journal._check()
        return journal

    @classmethod
    def found(cls, folder: str | Path) -> "Journal":
        """Open the journal that a folder holds, whatever its question. Raises as `open`, and BadInput without one."""
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            raise BadInput(f"{str(folder)!r} holds no journal: there is no {ABOUT} in it.")
        return cls.open(folder, read_about(folder / ABOUT)["fingerprint"])

    def begin(self) -> None:
        """Put the plan on disk if this is the first writer, or take over the plan of the one that was.

        Raises:
            DiskFull: there is no room.
        """
        if not (self.folder / ABOUT).exists():
            head = {"format": FORMAT, "fingerprint": self.fingerprint, "plan": self.plan}
            partial = self.folder / f".{uuid4().hex}"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                partial.write_text(json.dumps(head, indent=1), encoding="utf-8")
                name_first(partial, self.folder / ABOUT)
            except OSError as error:
                raise self._no_room(error) from error
        self._check()  # another question's writer may have come first

    def _check(self) -> None:
        about, folder = read_about(self.folder / ABOUT), str(self.folder)
        if about["fingerprint"] != self.fingerprint:
            raise BadInput(
                f"{folder!r} holds the unfinished work of another question (fingerprint {about['fingerprint']}, "
                f"this is {self.fingerprint}). Choose another folder, ask the same, or remove it."
            )
        self.plan = about["plan"]

    def append(self, unit: int, columns: Columns) -> None:
        """Add the rows of one unit, all columns of one length; they are on disk when this returns.

        Raises:
            DiskFull: there is no room; what was appended before is kept.
        """
        rows = len(next(iter(columns.values())))
        record = _encode({UNIT: np.full(rows, unit, np.int32), **columns})
        if self._log is None:
            self.begin()
        try:
            if self._log is None:
                self._log = (self.folder / f"{uuid4().hex}.log").open("ab", buffering=0)
                hold(self._log)  # who compacts leaves the logs of living writers alone
            rest = memoryview(HEAD.pack(MAGIC, len(record), zlib.crc32(record)) + record)
            while rest:
                rest = rest[self._log.write(rest) :]
        except OSError as error:
            # What is torn stays the last of its log: the next record starts a new one.
            self.close()
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> OSError:
        if error.errno not in NO_ROOM:
            return error
        return DiskFull(
            f"no room is left for results in {str(self.folder)!r}. What was finished is kept: make room, resume."
        )

    def read(self) -> dict[str, np.ndarray]:
        """Return all rows with their unit, each unit once; empty without any.

        Raises:
            CorruptFile: an acknowledged record is damaged.
        """
        whole = self._table(self._logs())
        return {} if whole is None else {name: whole[name].to_numpy() for name in whole.column_names}

    def done(self) -> set[int]:
        """Return the units that are finished. Raises CorruptFile as `read` does."""
        return set(np.unique(self.read().get(UNIT, np.empty(0, np.int32))).tolist())

    def _logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))

    def _table(self, logs: Sequence[Path]) -> "pa.Table | None":
        """Join the rows of logs and of the compacted table, each unit once.

        The logs are read first: if they are compacted meanwhile, the table, read after, holds what has gone.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts, seen = [], set()
        for log in logs:
            with suppress(FileNotFoundError):
                for record in records(log):
                    part = pa.ipc.open_stream(record).read_all()
                    unit = part[UNIT][0].as_py() if len(part) else None
                    if unit not in seen:
                        parts.append(part)
                        seen.add(unit)
        if (self.folder / TABLE).exists():
            table = pq.read_table(self.folder / TABLE)
            fresh = ~np.isin(table[UNIT].to_numpy(), np.array(sorted(seen), np.int32))
            parts.insert(0, table.filter(pa.array(fresh)))
        return pa.concat_tables(parts) if parts else None

    def compact(self) -> Path | None:
        """Put all rows, by unit, into one Parquet table and remove the logs of writers that have ended; give its path.

        Writers may be at work: their logs stay as they are. Without any that has ended there may be no table: None.

        Raises:
            BadInput: another process is compacting this journal.
        """
        import pyarrow.parquet as pq

        self.close()
        with (self.folder / LOCK).open("ab") as turn:
            if not hold(turn):
                raise BadInput(f"{str(self.folder)!r} is being compacted by another process. Try again later.")
            ended = [log for log in self._logs() if _ended(log)]
            whole = self._table(ended)
            if whole is None:
                return None
            partial = self.folder / f".{uuid4().hex}.parquet"
            order = np.argsort(whole[UNIT].to_numpy(), kind="stable")
            values = [name for name in whole.column_names if whole.schema.field(name).type == "float"]
            keys = [name for name in whole.column_names if name not in values]
            # A dictionary of floating-point values would only cost room.
            pq.write_table(whole.take(order), partial, compression="zstd", use_dictionary=keys)  # pyright: ignore
            partial.replace(self.folder / TABLE)
            for log in ended:
                log.unlink(missing_ok=True)
        return self.folder / TABLE

    def merge(self, other: "Journal") -> int:
        """Take over the finished units of another journal of the same question and plan; give how many were new.

        Raises:
            BadInput: it belongs to another question, or its work was cut otherwise.
        """
        if other.fingerprint != self.fingerprint:
            raise BadInput(
                f"{str(other.folder)!r} answers another question (fingerprint {other.fingerprint}) than "
                f"{str(self.folder)!r} ({self.fingerprint}): their results cannot be joined."
            )
        if (self.folder / ABOUT).exists() and _cut(other.plan) != _cut(self.plan):
            raise BadInput(
                f"the work of {str(other.folder)!r} was cut otherwise than that of {str(self.folder)!r} (memory, "
                "tokens or threads differ): units of one number are not the same. Run one of them to its end instead."
            )
        self.plan = self.plan or dict(other.plan)
        have, new = self.done(), 0
        for unit, rows in by_unit(other.read()):
            if unit not in have:
                self.append(unit, rows)
                new += 1
        return new

    def close(self) -> None:
        """Close this writer's log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Notes:
    """A journal that lives in memory, for work that nobody will resume; as a journal, but for the disk."""

    plan: dict[str, Any]
    kept: dict[int, Columns] = field(default_factory=dict)

    def append(self, unit: int, columns: Columns) -> None:
        """Keep the rows of one unit."""
        self.kept[unit] = columns

    def done(self) -> set[int]:
        """Return the units that are finished."""
        return set(self.kept)

    def read(self) -> dict[str, np.ndarray]:
        """Return all rows with their unit; empty without any."""
        if not self.kept:
            return {}
        parts = self.kept.values()
        rows = [len(next(iter(part.values()))) for part in parts]
        units = np.repeat(np.array(list(self.kept), np.int32), rows)
        return {UNIT: units} | {name: np.concatenate([part[name] for part in parts]) for name in next(iter(parts))}


def _cut(plan: Mapping[str, Any]) -> Any:
    return plan.get("cuts")


def _ended(log: Path) -> bool:
    """Tell whether the writer of a log has ended."""
    try:
        with log.open("ab") as file:
            return hold(file)
    except FileNotFoundError:
        return False


def by_unit(rows: Columns) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield the rows of each unit, in the order of their numbers."""
    if not rows:
        return
    order = np.argsort(rows[UNIT], kind="stable")
    units, firsts = np.unique(rows[UNIT][order], return_index=True)
    for unit, mine in zip(units.tolist(), np.split(order, firsts[1:]), strict=True):
        yield unit, {name: values[mine] for name, values in rows.items() if name != UNIT}


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


def read_about(path: Path) -> dict[str, Any]:
    """Read the description of a journal: its format, fingerprint and plan.

    Raises:
        BadInput: it is of another format.
        CorruptFile: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        about = {"format": int(found["format"]), "fingerprint": str(found["fingerprint"]), "plan": found.get("plan")}
        about["plan"] = dict(about["plan"] or {})
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{str(path)!r} is no description of a journal: {error}.") from error
    if about["format"] != FORMAT:
        age = "a newer" if about["format"] > FORMAT else "an older"
        remedy = "Update it" if about["format"] > FORMAT else "Finish it with that version, or remove it"
        raise BadInput(
            f"{str(path.parent)!r} was written by {age} crosspatch (format {about['format']}, this one reads "
            f"{FORMAT}). {remedy}."
        )
    return about
