"""Load a model: a known short name, a hub id, a folder, a GGUF file, or a module that the caller holds."""

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.core.files import Say
from crosspatch.models.checkpoint import (
    Place,
    check_model_folder,
    has_tokenizer,
    read_module,
    read_tokenizer,
    reads_text_alone,
)
from crosspatch.models.fingerprint import fingerprint
from crosspatch.models.gguf import gguf_folder
from crosspatch.models.guard import refuse_unknown, unwrapped
from crosspatch.models.known import KNOWN, known_folder
from crosspatch.models.layout import Layout

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_OFFER = "A model is a known name, a hub id such as 'org/name', a folder, a .gguf file, or a torch module."


@dataclass(frozen=True, slots=True)
class Loaded:
    """Hold an opened model: the module itself, its tokenizer (None: tasks come as token ids), name and fingerprint.

    A model that takes more than text (speech, images) has its processor in the tokenizer's place.
    """

    module: torch.nn.Module
    tokenizer: Any
    name: str
    fingerprint: str


def load(
    what: str | os.PathLike[str] | torch.nn.Module,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | Layout | None = None,
    revision: str | None = None,
    say: Say | None = None,
) -> Loaded:
    """Load a model in eval mode, with its tokenizer or processor.

    `what` is a known short name (`gemma-3-270m`, `whisper-base`), a hub id, a folder, a `.gguf` file, or a module, used
    as it is. A checkpoint is read as the class of transformers that its config names.
    `tokenizer` replaces the model's own: a tokenizer, a folder or a hub id. `dtype` is by default float32 on the CPU
    and the checkpoint's own on CUDA; `device` is by default the CPU, and "auto" takes a GPU if there is one. A layout
    in its place spreads the model over devices or processes.
    `say` is told of work that takes long. Weights come from safetensors only; code of a checkpoint is never run.
    Raises UnknownName, BadInput, CorruptFile or MissingExtra.
    """
    if isinstance(what, torch.nn.Module):
        return _hold(what, tokenizer, {"dtype": dtype, "device": device, "revision": revision})
    layout = device if isinstance(device, Layout) else None
    target = layout.device() if layout else parse_device(device)  # pyright: ignore[reportArgumentType]
    kind = parse_dtype(dtype, target)
    name, place = _find(os.fspath(what), revision, say)
    try:
        module = read_module(place, dtype=kind, layout=layout)
        module = module if layout else module.to(target)
        if layout is not None:
            refuse_unknown(module)
    except UnknownName as error:
        raise UnknownName(f"{error} Known names: {', '.join(KNOWN)}. {_OFFER}") from error.__cause__
    config: Any = module.config
    config._name_or_path = name  # not the folder of the cache
    chosen = _tokenizer(tokenizer, place, say, processor=not reads_text_alone(module))
    return Loaded(module, chosen, name, fingerprint(module))


def parse_device(device: torch.device | str | None) -> torch.device:
    """Return the device that a name means: None is the CPU, "auto" a GPU if there is one.

    Raises BadInput for a device that torch does not know or that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(
            f"device {str(device)!r} cannot be used here ({error}). Give 'cpu', 'cuda', 'mps' or 'auto'."
        ) from error
    return found


def parse_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype | str:
    """Return the dtype to load weights in; "auto" is the checkpoint's own, and the default on CUDA.

    Raises UnknownName for a name that is no floating-point dtype of torch.
    """
    if dtype is None:
        return "auto" if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype == "auto":
        return "auto"
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UnknownName.of("dtype", str(dtype), ["float32", "bfloat16", "float16", "float64", "auto"])
    return found


def _hold(module: torch.nn.Module, tokenizer: Any, given: dict[str, Any]) -> Loaded:
    used = [word for word, value in given.items() if value is not None]
    if used:
        raise BadInput(f"a module is used as it is: leave out {', '.join(used)}, or convert the module yourself first.")
    module = unwrapped(module)
    refuse_unknown(module)
    training = next((name for name, part in module.named_modules() if part.training), None)
    if training is not None:
        where = f"its part {training!r}" if training else "it"
        raise BadInput(
            f"the module {type(module).__name__} is in training mode ({where} is): dropout would make patching random. "
            "Call .eval() on it first."
        )
    name = getattr(getattr(module, "config", None), "_name_or_path", None) or type(module).__name__
    chosen = None if tokenizer is None else _tokenizer(tokenizer, Place("", is_local=True), None)
    return Loaded(module, chosen, Path(name).name if Path(name).is_dir() else name, fingerprint(module))


def _find(what: str, revision: str | None, say: Say | None) -> tuple[str, Place]:
    """Return the model's name and where its checkpoint is, converting it first if need be."""
    path = Path(what).expanduser()
    if what in KNOWN:
        _no_revision(what, revision)
        return what, Place(str(known_folder(KNOWN[what], say=say)), is_local=True)
    if path.is_file():
        _no_revision(what, revision)
        if path.suffix.lower() != ".gguf":
            raise BadInput(
                f"{what} is a file of a kind that holds no model here ({path.suffix or 'no suffix'}). {_OFFER}"
            )
        return path.stem, Place(str(gguf_folder(path, say=say)), is_local=True)
    if path.is_dir() and what:  # an empty name would be the current folder
        _no_revision(what, revision)
        check_model_folder(path)
        return path.resolve().name, Place(str(path), is_local=True)
    return what, _on_hub(what, revision)


def _on_hub(what: str, revision: str | None) -> Place:
    looks_like_path = not _HUB_ID.fullmatch(what) or what.endswith(".gguf")
    nearly_known = "/" not in what and get_close_matches(what.lower(), KNOWN, n=1, cutoff=0.8)
    if looks_like_path or nearly_known:
        raise UnknownName.of(
            "model", what, KNOWN, hint=f"There is no file or folder {str(Path(what).absolute())!r}. {_OFFER}"
        )
    return Place(what, is_local=False, revision=revision)


def _no_revision(what: str, revision: str | None) -> None:
    if revision is not None:
        raise BadInput(f"{what} is on this computer and has no revisions: leave out revision={revision!r}.")


def _tokenizer(given: Any, place: Place, say: Say | None, *, processor: bool = False) -> Any:
    if isinstance(given, str | os.PathLike):
        where = os.fspath(given)
        return read_tokenizer(Place(where, is_local=Path(where).is_dir()), processor=processor)
    if given is not None:
        return given
    if place.is_local and not has_tokenizer(Path(place.where), processor=processor):
        if say:
            say(f"{place.where} has no tokenizer: tasks must come as token ids")
        return None
    return read_tokenizer(place, processor=processor)
