"""Tensors larger than memory: one preallocated safetensors file, filled row by row in any order by any process.

The file has its full size and its header from the start (on most file systems, room is taken as it is filled), so that
every reader of safetensors can open it at any time. A `done` tensor in the same file says which parts are filled: a
part's bytes are written before its mark. Bytes of different parts do not overlap, so that writers need no lock.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from uuid import uuid4

import numpy as np

from crosspatch.core.errors import BadInput, CorruptFile, DiskFull
from crosspatch.core.files import NO_ROOM, name_first

FORMAT = "crosspatch cache 1"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I64": 8}
DONE, OFFSETS = "done", "offsets"


@dataclass(frozen=True)
class Field:
    """One tensor of the file: its dtype as safetensors names it, its shape, and where its bytes begin."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def stride(self) -> int:
        """Bytes of one row."""
        return BYTES[self.dtype] * prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return BYTES[self.dtype] * prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """A file of tensors with rows in common; part p is the rows `offsets[p] … offsets[p + 1] - 1` of each."""

    path: Path
    fingerprint: str
    fields: Mapping[str, Field]

    @classmethod
    def open(
        cls, path: str | Path, fingerprint: str, *, widths: Mapping[str, tuple[str, int]], parts: Sequence[int]
    ) -> "TensorFile":
        """Open a file, made if it is not there: `widths` gives dtype and width of each tensor, `parts` rows a part.

        Raises:
            BadInput: it is there with other content, or cannot be written.
            CorruptFile: it is no such file.
            DiskFull: there is no room.
        """
        path = Path(path)
        if not path.exists():
            _create(path, fingerprint, widths, parts)
        found = cls.found(path)
        if found.fingerprint != fingerprint:
            raise BadInput(
                f"{str(path)!r} holds activations of another question (fingerprint {found.fingerprint}, this is "
                f"{fingerprint}): other prompts, sites, weights or dtype. Choose another file, or remove it."
            )
        return found

    @classmethod
    def found(cls, path: str | Path) -> "TensorFile":
        """Open a file that is there, whatever it holds. Raises BadInput without one, CorruptFile if it is another's."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                head = json.loads(file.read(length)) if length < 1 << 30 else {}
            about = head.pop("__metadata__")
            fields = {
                name: Field(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
                for name, entry in head.items()
            }
            whole = max(field.start + field.size for field in fields.values())
            if about["format"] != FORMAT or path.stat().st_size != whole:
                raise ValueError(f"format {about['format']!r}, {path.stat().st_size} bytes of {whole}")
            return cls(path, about["fingerprint"], fields)
        except FileNotFoundError:
            raise BadInput(f"there is no file {str(path)!r}.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"{str(path)!r} is no cache of activations, or was cut short: {error}.") from error

    def part(self, number: int) -> tuple[int, int]:
        """Return the first row of a part, and the one after its last."""
        first, last = self.array(OFFSETS, "<i8")[number : number + 2].tolist()
        return first, last

    @property
    def done(self) -> np.ndarray:
        """Which parts are filled."""
        return np.array(self.array(DONE, "u1"), bool)

    def array(self, name: str, dtype: str) -> np.ndarray:
        """Map a tensor's bytes as numbers of a numpy dtype (BF16 as "u2"), without reading what is not looked at."""
        field = self.fields[name]
        return np.memmap(self.path, dtype=dtype, mode="r", offset=field.start, shape=field.shape)

    def fill(self, number: int, rows: Mapping[str, bytes]) -> None:
        """Write a part's rows of all tensors, then its mark; on disk, short of a power cut, when this returns.

        Raises:
            BadInput: bytes that do not fit the part.
            DiskFull: there is no room; parts that are marked are whole.
        """
        first, last = self.part(number)
        tensors = {name: field for name, field in self.fields.items() if name not in (DONE, OFFSETS)}
        wanted = {name: (last - first) * field.stride for name, field in tensors.items()}
        if {name: len(body) for name, body in rows.items()} != wanted:
            raise BadInput(f"part {number} of {str(self.path)!r} takes {wanted} bytes of its tensors.")
        handle = os.open(self.path, os.O_WRONLY)
        try:
            for name, body in rows.items():
                _write_at(handle, body, self.fields[name].start + first * self.fields[name].stride)
            _write_at(handle, b"\1", self.fields[DONE].start + number)
        except OSError as error:
            raise _told(error, self.path) from error
        finally:
            os.close(handle)


def _create(path: Path, fingerprint: str, widths: Mapping[str, tuple[str, int]], parts: Sequence[int]) -> None:
    """Lay a file out in full and give it its name, unless another writer was first."""
    total = sum(parts)
    shapes = {OFFSETS: ("I64", (len(parts) + 1,)), DONE: ("U8", (len(parts),))}
    # Eight-byte tensors first, so that all are aligned whatever the sizes.
    order = sorted(widths.items(), key=lambda item: -BYTES[item[1][0]])
    shapes = {
        OFFSETS: shapes[OFFSETS],
        **{name: (dtype, (total, width)) for name, (dtype, width) in order},
        DONE: shapes[DONE],
    }
    head: dict[str, object] = {"__metadata__": {"format": FORMAT, "fingerprint": fingerprint}}
    at = 0
    for name, (dtype, shape) in shapes.items():
        size = BYTES[dtype] * prod(shape)
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.write(np.cumsum([0, *parts], dtype="<i8").tobytes())
            file.truncate(8 + len(text) + at)
        name_first(partial, path)
    except OSError as error:
        raise _told(error, path) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _write_at(handle: int, body: bytes, at: int) -> None:
    rest = memoryview(body)
    while rest:
        written = os.pwrite(handle, rest, at)
        rest, at = rest[written:], at + written


def _told(error: OSError, path: Path) -> Exception:
    if error.errno in NO_ROOM:
        return DiskFull(f"no room is left for {str(path)!r}. What was finished is kept: make room, and run it again.")
    return BadInput(f"cannot write {str(path)!r}: {error.strerror or error}. Give a place that is writable.")
