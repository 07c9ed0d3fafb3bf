"""Results on disk: a folder of `arrays.safetensors` and `meta.json`, written whole or not at all, checked when read."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from crosspatch.core.errors import BadInput, CorruptFile

FORMAT = 1
ARRAYS, META = "arrays.safetensors", "meta.json"


def write_result(
    folder: str | Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, beside: str = ""
) -> Path:
    """Save arrays and JSON-able meta in a folder, made if needed; give the folder.

    What stands beside a folder's own result has a name: `beside="attention"` writes attention.safetensors and
    attention.json. Raises BadInput where the folder cannot be written (full disk, no permission) or meta is not JSON.
    """
    folder = Path(folder)
    body = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    text = _to_json({"format": FORMAT, "arrays_sha256": sha256(body).hexdigest(), "meta": dict(meta)})
    # The arrays go first: a stop in between leaves an old meta.json whose checksum tells.
    arrays_name, meta_name = file_names(beside)
    write_whole(folder / arrays_name, body)
    write_whole(folder / meta_name, text.encode())
    return folder


def file_names(beside: str = "") -> tuple[str, str]:
    """Name the files of a result, or of what stands beside it: arrays, meta."""
    return (f"{beside}.safetensors", f"{beside}.json") if beside else (ARRAYS, META)


def read_result(folder: str | Path, *, beside: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Load what `write_result` saved, as (arrays, meta).

    Raises BadInput if there is no such folder, CorruptFile if its content is not what was written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"no result folder at {str(folder)!r}. Give the folder that `save` or `--out` wrote.")
    arrays_name, meta_name = file_names(beside)
    head = _read_head(folder / meta_name)
    body = _read_bytes(folder / arrays_name)
    if sha256(body).hexdigest() != head["arrays_sha256"]:
        raise CorruptFile(
            f"{str(folder / arrays_name)!r} does not match the checksum in {meta_name}: the file was cut short or "
            "changed. Run the sweep again, or copy the folder again from its source."
        )
    try:
        return load(body), head["meta"]
    except (SafetensorError, KeyError, TypeError) as error:
        text = f"{str(folder / arrays_name)!r} is no safetensors file: {error}. Run the sweep again."
        raise CorruptFile(text) from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part; make its folder if needed.

    Raises BadInput with the path where the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise BadInput(f"cannot write {str(path)!r}: {reason}. Give a folder that is writable and has room.") from error


def _to_json(document: Mapping[str, Any]) -> str:
    try:
        return json.dumps(document, allow_nan=False, ensure_ascii=True, indent=1)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"the description of a result must be JSON: {error}. Allowed are texts, finite numbers, true, false, null, "
            "lists and mappings with text keys."
        ) from None


def _read_head(path: Path) -> dict[str, Any]:
    content = _read_bytes(path)
    try:
        head = json.loads(content)
    except ValueError as error:  # bad JSON and bad UTF-8 alike
        raise CorruptFile(f"{str(path)!r} is not JSON ({error}). Run the sweep again.") from None
    if not isinstance(head, dict) or "format" not in head:
        raise CorruptFile(f"{str(path)!r} was not written by crosspatch: it names no format.")
    if head["format"] != FORMAT:
        raise CorruptFile(
            f"{str(path)!r} has format {head['format']!r}; this version of crosspatch reads {FORMAT}. "
            "Open it with the version that wrote it."
        )
    if not isinstance(head.get("arrays_sha256"), str) or not isinstance(head.get("meta"), dict):
        raise CorruptFile(f"{str(path)!r} lacks its checksum or its content. Run the sweep again.")
    return head


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CorruptFile(f"{str(path)!r} is missing: a result is two files, arrays and their description.") from None
    except OSError as error:
        raise BadInput(f"cannot read {str(path)!r}: {error.strerror or error}. Check its permissions.") from error
