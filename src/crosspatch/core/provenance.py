"""Where a result comes from: versions, command, time and settings, without the user's name or folders."""

import math
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

_LIBRARIES = ("torch", "transformers", "numpy", "safetensors")
# An absolute path of two parts or more: POSIX, home-relative or Windows. A lone "/" in a text is no path.
_FOLDERS = re.compile(r"(?<![\w./~])(?:~?(?:/[^\s/'\",;:=()\[\]]+)+/|~/|[A-Za-z]:\\(?:[^\s\\'\",;=]+\\)*)")


def here(**settings: Any) -> dict[str, Any]:
    """Describe this run as JSON-able data: versions, command line, platform, UTC time, seed and the given settings.

    Libraries are named only if they are already imported. Paths are reduced to their last part.
    """
    return {
        "crosspatch": _installed("crosspatch"),
        "python": platform.python_version(),
        "versions": {name: _installed(name) for name in _LIBRARIES if name in sys.modules},
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": _own_commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(sys.argv),
        "seed": _plain(settings.get("seed")),
        "settings": {name: _plain(value) for name, value in settings.items() if name != "seed"},
    }


@cache  # looking a version up reads files: more milliseconds than a short sweep has to spare
def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _command(arguments: list[str]) -> str:
    program, *rest = arguments or [""]
    path = PurePath(program)
    started = ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name or "python"]
    return shlex.join([*started, *map(_without_folders, rest)])


def _without_folders(text: str) -> str:
    return _FOLDERS.sub("", text)


def _plain(value: Any) -> Any:
    """Turn a setting into JSON: containers are walked, whatever is unknown becomes its text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, PurePath) else _without_folders(str(value))


def _own_commit() -> str | None:
    """Name the commit when crosspatch runs from its own source checkout; another project's commit says nothing."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or not (root / "src" / "crosspatch").is_dir():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
