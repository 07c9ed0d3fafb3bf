"""Weights as CTranslate2 stores them: its binary file, read with every length checked and without its library."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from crosspatch.core.errors import CorruptFile

VERSION = 6  # of the binary format
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)  # by their number
_LARGEST_RANK = 8
_SMALLEST = 9  # bytes that a variable takes at least


@dataclass(frozen=True, slots=True)
class Binary:
    """What a file holds: the name and revision of the model's specification, variables, and other names of these."""

    spec: str
    revision: int
    variables: Mapping[str, torch.Tensor]
    aliases: Mapping[str, str]


def read_binary(path: Path) -> Binary:
    """Read a `model.bin` of CTranslate2, binary version 6 (`python/ctranslate2/specs/model_spec.py` writes it).

    Raises CorruptFile for a file that is cut short, goes on after its end, contradicts itself or is of another kind.
    """
    cursor = _Cursor(path)
    version = cursor.number("I")
    if version != VERSION:
        raise cursor.error(f"it begins with {version}, not with the version {VERSION} of CTranslate2's format")
    spec, revision = cursor.text(), cursor.number("I")
    variables: dict[str, torch.Tensor] = {}
    for _ in range(cursor.count()):
        name = cursor.text()
        if name in variables:
            raise cursor.error(f"it has the variable {name!r} twice")
        variables[name] = cursor.tensor(name)
    aliases: dict[str, str] = {}
    for _ in range(cursor.number("I")):
        alias, name = cursor.text(), cursor.text()
        if name not in variables:
            raise cursor.error(f"{alias!r} stands for a variable {name!r} that is not there")
        aliases[alias] = name
    cursor.end()
    return Binary(spec, revision, MappingProxyType(variables), MappingProxyType(aliases))


class _Cursor:
    """A place in a file's bytes that never moves past their end."""

    def __init__(self, path: Path) -> None:
        self._path, self._data, self._at = path, memoryview(path.read_bytes()), 0

    def error(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self._path} cannot be read as weights of CTranslate2: {what} (near byte {self._at}).")

    def _take(self, size: int) -> memoryview:
        left = len(self._data) - self._at
        if size > left:
            raise self.error(f"{size} bytes should follow, and the file ends after {left}")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        raw = bytes(self._take(self.number("H")))
        try:
            text = raw[:-1].decode()
        except UnicodeDecodeError as error:
            raise self.error("a name is no text") from error
        if not text or raw[-1:] != b"\0":
            raise self.error("a name has no end")
        return text

    def count(self) -> int:
        count = self.number("I")
        if count * _SMALLEST > len(self._data) - self._at:
            raise self.error(f"{count} variables should follow, for which the file is too short")
        return count

    def tensor(self, name: str) -> torch.Tensor:
        rank = self.number("B")
        if rank > _LARGEST_RANK:
            raise self.error(f"{name!r} has {rank} axes")
        shape = [self.number("I") for _ in range(rank)]
        kind, size = self.number("B"), self.number("I")
        if kind >= len(_DTYPES):
            raise self.error(f"{name!r} is of an unknown type, {kind}")
        if size != math.prod(shape) * _DTYPES[kind].itemsize:
            raise self.error(f"{name!r} has {size} bytes, which is no {_DTYPES[kind]} of shape {shape}")
        raw = bytearray(self._take(size))  # a copy: writable and aligned, as torch asks for
        return torch.frombuffer(raw, dtype=_DTYPES[kind]).reshape(shape) if raw else torch.empty(shape)

    def end(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise self.error(f"{left} bytes are left over after its end")
