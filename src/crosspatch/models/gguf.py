"""GGUF files: converted once to a folder of safetensors in the cache."""

import io
import re
import shutil
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from crosspatch.core.errors import BadInput, MissingExtra
from crosspatch.core.files import Say, cache_dir, cached_folder, compact_json, file_sha256
from crosspatch.models.checkpoint import quiet, refuse_missing

CONVERTER = "v1"  # part of a converted folder's name: raise it when `convert` writes something else
_MAGIC = b"GGUF"
_LITTLE = 64 * 1024 * 1024  # bytes free under which a failed conversion is taken for a full disk


def need_gguf(extra: str = "gguf") -> None:
    """Raise MissingExtra, with the command to run, unless GGUF files can be read."""
    if find_spec("gguf") is None:
        raise MissingExtra(f"reading GGUF files needs the package gguf: pip install 'crosspatch[{extra}]'")


def gguf_folder(path: Path, *, say: Say | None = None) -> Path:
    """Return the folder that a GGUF file was converted to, converting it first if its content is new.

    Weights are dequantised to float32: the folder takes 4 bytes a parameter. Raises BadInput for a file that is no
    GGUF or of an architecture that transformers does not know, MissingExtra without the package gguf.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise BadInput(f"{path} is not a GGUF file: it does not begin with {_MAGIC.decode()!r}.")
    digest = file_sha256(path)

    def build(folder: Path) -> None:
        need_gguf()
        if say:
            say(f"Converting {path.name} once (about a minute for each GB)")
        convert(path, folder)

    name = re.sub(r"[^\w.-]+", "-", path.stem)
    return cached_folder(f"gguf-{name}-{digest[:12]}-{CONVERTER}", build, source=digest, say=say)


def convert(path: Path, folder: Path) -> None:
    """Write a GGUF file's model, dequantised to float32, and its tokenizer to a folder, as save_pretrained does.

    Raises BadInput when transformers cannot read the file or the disk is full.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet(), redirect_stderr(io.StringIO()):  # its own progress bar knows no switch
            place = str(path.parent)
            tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=path.name)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
            )
            model, report = loaded
            refuse_missing(path.name, report)
            # the weights are plain float32 now: without this, the folder would say that they are quantised
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.hf_quantizer, model.is_quantized = None, False
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            compact_json(folder / "tokenizer.json")
    except BadInput:
        raise
    except Exception as error:  # a damaged file fails in any way
        if shutil.disk_usage(folder).free < _LITTLE:
            raise BadInput(
                f"the disk of {cache_dir()} is full. Free some space, or set CROSSPATCH_CACHE to a folder elsewhere."
            ) from error
        raise BadInput(f"{path}: transformers cannot read this GGUF file ({error}).") from error
