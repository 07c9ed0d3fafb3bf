"""`doctor`: is everything here, and does patching hold its identities on this very model?"""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from crosspatch.cli import options as given
from crosspatch.cli.question import open_model
from crosspatch.cli.say import CHECK_FAILED, Voice, error

if TYPE_CHECKING:
    from crosspatch.models.model import Check

LIBRARIES = ("torch", "transformers", "numpy", "safetensors", "typer", "rich", "jinja2")
EXTRAS = {"pandas": "pandas", "gguf": "gguf", "soundfile": "speech", "soxr": "speech"}  # import name to extra


def doctor(
    model: given.MaybeModel = None,
    *,
    device: given.Device = None,
    dtype: given.Dtype = None,
    layout: given.LayoutOption = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Check the installation, or patching itself on a model.

    On a model, the identities that exact patching must satisfy are checked with a small sweep.

    \b
    crosspatch doctor
    crosspatch doctor gemma-3-270m
    """
    from crosspatch.models import Check

    voice = Voice(json, quiet)
    versions = find_versions()
    if model is None:
        facts, checks = machine(), installation()
        shown = {name: versions[name] for name in versions if name not in LIBRARIES} | facts
        voice.show("\n".join(f"{name:<13}{value}" for name, value in shown.items()), "")
    else:
        from crosspatch.engine.doctor import examine

        opened = open_model(model, voice, device=device, dtype=dtype, layout=layout)
        facts = {"model": opened.name, "model_hash": opened.fingerprint, "family": opened.anatomy.family}
        checks = [
            *examine(opened),
            *(Check(f"{kind} refused", True, why) for kind, why in opened.anatomy.refused.items()),
        ]
    voice.document({**facts, "versions": versions, "checks": [asdict(check) for check in checks]})
    voice.show("\n".join(map(check_line, checks)))
    failed = [check.name for check in checks if not check.ok]
    if failed:
        error(f"{', '.join(failed)}: do not trust effects measured here.", label="check failed")
        raise typer.Exit(CHECK_FAILED)


def check_line(check: "Check") -> str:
    """Write a check as a line."""
    return f"{'✓' if check.ok else '✗'} {check.name}: {check.detail}"


def find_versions() -> dict[str, str]:
    """Name the versions of crosspatch, Python and the libraries that it stands on."""
    own = {"crosspatch": _version("crosspatch"), "python": platform.python_version()}
    return own | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, Any]:
    """Describe what runs here: the devices, torch's threads, the cache folder and its size."""
    import torch

    from crosspatch.core.files import cache_dir

    cuda = torch.cuda.is_available()
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "device": f"cuda ({torch.cuda.get_device_name()})" if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cache": str(cache_dir()),
        "cache_size": f"{folder_bytes(cache_dir()) / 2**30:.2f} GiB",
    }


def folder_bytes(folder: Path) -> int:
    """Add up the files of a folder; files that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def installation() -> "Sequence[Check]":
    """Check what crosspatch needs, and say which optional packages are there."""
    from crosspatch.core.files import cache_dir
    from crosspatch.models import Check
    from crosspatch.models.known import KNOWN, is_installed

    needed = [
        Check(name, found != "not installed", found) for name, found in find_versions().items() if name in LIBRARIES
    ]
    extras = [_optional(name, find_spec(name) is not None, extra) for name, extra in EXTRAS.items()]
    models = [_optional(name, is_installed(known), known.extra) for name, known in KNOWN.items()]
    folder = cache_dir()
    room = next(path for path in (folder, *folder.parents) if path.exists())
    return [*needed, *extras, *models, Check("cache writable", os.access(room, os.W_OK), str(folder))]


def _optional(name: str, there: bool, extra: str) -> "Check":
    """An optional package that is missing is no failure."""
    from crosspatch.models import Check

    return Check(name, True, "installed" if there else f"not installed (optional): pip install 'crosspatch[{extra}]'")
