"""Checkpoints: modules and tokenizers from folders and the hub, with errors that say what to do."""

import gc
import logging
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from crosspatch.core.errors import BadInput, CorruptFile, CrosspatchError, MissingExtra, UnknownName
from crosspatch.models.layout import Layout

logger = logging.getLogger(__name__)

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SHOWN = 6  # names listed in a message
_OWN = "Or load it yourself and give the module: open_model(module, tokenizer=tokenizer)."
_TO_SAFETENSORS = (
    "only pickle weights, which can run code when they are opened. If you trust them, convert them once: "
    "AutoModelForCausalLM.from_pretrained({place!r}, use_safetensors=False).save_pretrained('FOLDER'), and open FOLDER."
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint is: a local folder, or an id of the hub with a revision."""

    where: str
    is_local: bool
    revision: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Build what from_pretrained takes to find it; code that comes with a checkpoint is never run."""
        found: dict[str, Any] = {"trust_remote_code": False, "local_files_only": self.is_local or is_offline()}
        return found if self.revision is None else {**found, "revision": self.revision}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars, log messages and warnings of transformers, and restore them at the end."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as library

    verbosity, bars, hub_bars = library.get_verbosity(), library.is_progress_bar_enabled(), are_progress_bars_disabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    library.set_verbosity_error()
    library.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()
        (disable_progress_bars if hub_bars else enable_progress_bars)()
        hub.setLevel(hub_level)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector: with it, reading a large vocabulary takes half as long again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def is_offline() -> bool:
    """Tell, within a moment, whether the hub's address cannot be looked up; behind a proxy it is taken to be there."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if constants.HF_HUB_OFFLINE or host is None:
        return True
    if getproxies():
        return False
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return True
    return False


def read_module(place: Place, *, dtype: torch.dtype | str, layout: Layout | None = None) -> torch.nn.Module:
    """Load a model from safetensors, in eval mode, laid out over devices or processes if asked.

    It is of the class that its config names, where that is one of transformers'; a causal language model otherwise.
    Raises UnknownName, BadInput, CorruptFile or MissingExtra, with the library's own error as its cause.
    """
    from transformers import AutoConfig

    try:
        with quiet():
            laid_out: dict[str, Any] = {}
            config = AutoConfig.from_pretrained(place.where, **place.arguments())
            if layout is not None:
                laid_out = layout.arguments(config if layout.processes > 1 else None, dtype)
            loaded: Any = class_for(config).from_pretrained(
                place.where,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
                **place.arguments(),
                **laid_out,
            )
    except CrosspatchError:
        raise
    except Exception as error:
        raise explain(error, place) from error
    module, report = loaded
    refuse_missing(place.where, report)
    return module.eval()


def class_for(config: Any) -> Any:
    """Choose the class that a checkpoint is read as, by `config.architectures`.

    A class of transformers that is named there, and made for this kind of config, is taken. AutoModelForCausalLM is
    taken where that is the class named, where none of transformers' is, and for a decoder's bare `…Model`.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto

    name = next(iter(getattr(config, "architectures", None) or ()), "")
    named = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)):
        return transformers.AutoModelForCausalLM
    if type(config) is not named.config_class:
        return transformers.AutoModelForCausalLM
    causal = _classes(auto.MODEL_FOR_CAUSAL_LM_MAPPING, config)
    decodes = causal and not config.is_encoder_decoder and not _classes(auto.MODEL_FOR_MASKED_LM_MAPPING, config)
    bare = named in _classes(auto.MODEL_MAPPING, config)
    return transformers.AutoModelForCausalLM if named in causal or (bare and decodes) else named


def _classes(mapping: Any, config: Any) -> tuple[type, ...]:
    found = mapping.get(type(config), ())
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def reads_text_alone(module: torch.nn.Module) -> bool:
    """Tell whether a module is one that a tokenizer serves: a causal language model, or none of transformers'."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = getattr(module, "config", None)
    return config is None or type(module) in _classes(MODEL_FOR_CAUSAL_LM_MAPPING, config)


def read_tokenizer(place: Place, *, processor: bool = False) -> Any:
    """Load the tokenizer of a folder or hub id; with `processor`, what else makes a model's inputs along with it.

    Raises BadInput that says how to go on with another one, or with token ids.
    """
    from transformers import AutoProcessor, AutoTokenizer

    try:
        with quiet(), collector_paused():
            reader: Any = AutoProcessor if processor else AutoTokenizer
            return reader.from_pretrained(place.where, **place.arguments())
    except Exception as error:
        raise BadInput(
            f"the tokenizer of {place.where!r} cannot be read: {_first_line(error)} "
            "Give another one with tokenizer=… (a hub id, a folder or a tokenizer)."
        ) from error


def has_tokenizer(folder: Path, *, processor: bool = False) -> bool:
    """Tell whether a folder holds a tokenizer's files; with `processor`, those of a processor count too."""
    patterns = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
    patterns += ("processor_config.json", "preprocessor_config.json") if processor else ()
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def check_model_folder(folder: Path) -> None:
    """Raise BadInput unless the folder holds a config and safetensors weights; say what it holds instead."""
    names = sorted(path.name for path in folder.iterdir())
    holds = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    if "config.json" not in names:
        files = [name for name in names if name.endswith(".gguf")]
        advice = (
            f"Open the GGUF file itself: {str(folder / files[0])!r}."
            if files
            else "A model's folder, as save_pretrained writes it, has config.json, model.safetensors and a tokenizer."
        )
        raise BadInput(f"the folder {folder} has no config.json (it holds {holds or 'nothing'}). {advice}")
    if not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
        if pickles:
            raise BadInput(f"{folder} has {_TO_SAFETENSORS.format(place=str(folder))} ({', '.join(pickles[:_SHOWN])})")
        raise BadInput(f"the folder {folder} has no weights: no *.safetensors file (it holds {holds}).")


def refuse_missing(name: str, report: Mapping[str, Any]) -> None:
    """Raise BadInput when parameters were not in the checkpoint: they would be random. Log those left over."""
    missing = sorted(report["missing_keys"])
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (" …" if len(missing) > _SHOWN else "")
        raise BadInput(
            f"the checkpoint of {name} lacks {len(missing)} parameters of its language model, which would be random: "
            f"{shown}. Is it a checkpoint of another kind of model? {_OWN}"
        )
    if report["unexpected_keys"]:
        logger.warning("%s: %d tensors of the checkpoint are not used.", name, len(report["unexpected_keys"]))


_LOGIN = "log in with `hf auth login`."
# What the error's text or the names of its causes contain, the error to raise, its message
_MESSAGES: tuple[tuple[tuple[str, ...], type[CrosspatchError], str], ...] = (
    (
        ("GatedRepoError", "gated repo"),
        BadInput,
        "{where} asks for a consent: accept its terms on its page and " + _LOGIN,
    ),
    (
        ("RevisionNotFoundError", "not a valid git identifier"),
        UnknownName,
        "{where} has no revision {revision!r}. Leave revision out for the newest.",
    ),
    (
        ("RepositoryNotFoundError", "not a valid model identifier"),
        UnknownName,
        "{where} does not exist, or it is private: then " + _LOGIN,
    ),
    (
        ("LocalEntryNotFoundError", "couldn't connect"),
        UnknownName,
        "{where} is not in the local cache of the hub, and the hub cannot be reached: is there a network?",
    ),
    (
        ("custom code", "trust_remote_code"),
        BadInput,
        "{where} comes with its own code, which is never run here. " + _OWN,
    ),
    (("named model.safetensors",), BadInput, "{where} has " + _TO_SAFETENSORS),
    (
        ("not recognize this architecture", "Unrecognized model"),
        BadInput,
        "{where} is of an architecture that this version of transformers does not know: {error} " + _OWN,
    ),
    (("Unrecognized configuration class",), BadInput, "{where} is no causal language model. " + _OWN),
)


def explain(error: BaseException, place: Place) -> CrosspatchError:
    """Turn an error of transformers or the hub into one that says what was tried and what to do."""
    kinds = _chain(error)
    text = str(error)
    where = f"{place.where!r}" if place.is_local else f"{place.where!r} on the hub"
    if "SafetensorError" in kinds:
        return CorruptFile(f"the weights of {where} are damaged ({error}). Copy or download them again.")
    if isinstance(error, ImportError):
        return MissingExtra(f"{where} needs a package that is not installed: {_first_line(error)}")
    for marks, kind, message in _MESSAGES:
        if any(mark in text or mark in kinds for mark in marks):
            facts = {"where": where, "place": place.where, "revision": place.revision, "error": _first_line(error)}
            return kind(message.format(**facts))
    return BadInput(f"{where} cannot be loaded by transformers: {_first_line(error)} {_OWN}")


def _chain(error: BaseException | None) -> set[str]:
    names = set()
    while error is not None and type(error).__name__ not in names:
        names.add(type(error).__name__)
        error = error.__cause__ or error.__context__
    return names


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def save_module(module: torch.nn.Module, folder: Path) -> None:
    """Write a module as a folder that `read_module` reads (safetensors), whole or not at all; it stays as it was."""
    config: Any = module.config
    before, partial = config.architectures, folder.with_name(f".{folder.name}")
    try:
        with quiet():
            module.save_pretrained(partial)  # pyright: ignore[reportCallIssue]
    finally:
        config.architectures = before
    partial.replace(folder)
