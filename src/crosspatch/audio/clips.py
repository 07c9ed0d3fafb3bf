"""Clips: one channel of sound at 16 kHz, from a file or an array."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from crosspatch.core.errors import BadInput, MissingExtra, NotFinite, UnknownName

RATE = 16_000  # samples a second, which speech models take
_LOUDEST = 10.0  # an amplitude beyond which floats must be samples that were never scaled; 1 is full scale
_CHANNELS = 8  # most channels of a clip: more, and the axes are swapped
_INTEGERS = ("int16", "int32", "uint8")  # how WAV files store samples
_SLOWEST, _FASTEST = 1_000, 768_000  # samples a second that sound is recorded at


def load_audio(
    what: str | os.PathLike[str] | np.ndarray | torch.Tensor | Sequence[float],
    *,
    rate: int | float | None = None,
    mono: str | None = None,
) -> Float32[np.ndarray, " sample"]:
    """Return a clip of one channel at 16 kHz, from −1 to 1.

    `what` is a path (WAV, FLAC, OGG and what else libsndfile reads; the file says its rate) or samples `[sample]` or
    `[sample, channel]` with their `rate` a second. Another rate is resampled (soxr, high quality). Several
    channels are refused unless `mono` says which is meant: "mean", or the number of one counted from 0, as in "0".
    Integers of 16 and 32 bits, and unsigned ones of 8, are scaled as in WAV files; floats are taken as they are.

    Raises BadInput, NotFinite, UnknownName for a file that is not there, MissingExtra without soundfile or soxr.
    """
    if isinstance(what, str | os.PathLike):
        if rate is not None:
            raise BadInput(f"a file says its rate itself: leave out rate={rate}.")
        samples, rate = _read(Path(what))
        name = str(what)
    else:
        samples, name = _array(what), "the array"
        if rate is None:
            raise BadInput(f"an array does not say its rate: give it in samples a second, such as rate={RATE}.")
    if isinstance(rate, bool) or not _SLOWEST <= rate <= _FASTEST or int(rate) != rate:
        raise BadInput(f"rate={rate} is no rate of sound in samples a second: give {_SLOWEST} … {_FASTEST}.")
    clip = _one_channel(_checked(_scaled(samples, name), name), mono, name)
    return np.array(_resampled(clip, int(rate), name), dtype=np.float32)  # a copy: never the caller's own memory


def _read(path: Path) -> tuple[np.ndarray, int]:
    soundfile = _need("soundfile", "reading sound files")
    if not path.is_file():
        raise UnknownName(f"there is no file {str(path.absolute())!r}. Give a WAV, FLAC or OGG file, or an array.")
    try:
        return soundfile.read(path, dtype="float32")
    except (soundfile.SoundFileError, OSError) as error:
        raise BadInput(f"{path} cannot be read as sound ({error}). Give a WAV, FLAC or OGG file.") from error


def _array(what: Any) -> np.ndarray:
    if isinstance(what, torch.Tensor):
        what = what.detach().cpu()
        what = what.float() if what.dtype == torch.bfloat16 else what  # which numpy does not know
    return np.asarray(what)


def _scaled(samples: np.ndarray, name: str) -> np.ndarray:
    """Return floats: integers become fractions of their full scale."""
    if samples.dtype.kind == "f":
        return samples
    if samples.dtype.name not in _INTEGERS:
        raise BadInput(
            f"{name} is of type {samples.dtype.name}. Samples are floats from −1 to 1, or integers as in WAV files: "
            f"{', '.join(_INTEGERS)}."
        )
    bits = 8 * samples.dtype.itemsize
    middle = 2 ** (bits - 1)
    return (samples.astype(np.float64) - (middle if samples.dtype.kind == "u" else 0)) / middle


def _checked(samples: np.ndarray, name: str) -> np.ndarray:
    if samples.ndim not in (1, 2):
        raise BadInput(f"{name} has shape {samples.shape}: give [sample] or [sample, channel].")
    if samples.ndim == 2 and samples.shape[1] > _CHANNELS:
        raise BadInput(
            f"{name} of shape {samples.shape} would have {samples.shape[1]} channels: give [sample, channel]; "
            "array.T swaps its axes."
        )
    if not samples.size:
        raise BadInput(f"{name} has no samples: its shape is {samples.shape}.")
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise NotFinite(f"{name} has {bad} samples that are NaN or infinite, of {samples.size}.")
    loudest = float(np.abs(samples).max())
    if loudest > _LOUDEST:
        raise BadInput(
            f"{name} reaches {loudest:.6g}, and full scale is 1. If these are 16-bit samples made floats, divide them "
            "by 32768, or give them as int16."
        )
    return samples


def _one_channel(samples: np.ndarray, mono: str | None, name: str) -> np.ndarray:
    channels = samples.shape[1] if samples.ndim == 2 else 1
    samples = samples if samples.ndim == 2 else samples[:, None]
    choices = ["mean", *map(str, range(channels))]
    if mono is not None and mono not in choices:
        raise UnknownName.of("way to one channel", str(mono), choices)
    if mono is None and channels > 1:
        raise BadInput(f"{name} has {channels} channels: say which is meant with mono={' | '.join(choices)}.")
    return samples.mean(axis=1) if mono == "mean" else samples[:, int(mono or 0)]


def _resampled(clip: np.ndarray, rate: int, name: str) -> np.ndarray:
    if rate == RATE:
        return clip
    resampled = _need("soxr", "resampling sound").resample(clip.astype(np.float32), rate, RATE)
    if not resampled.size:
        raise BadInput(f"{name} is too short: its {clip.size} samples at {rate} Hz make none at {RATE} Hz.")
    return resampled


def _need(package: str, purpose: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(package)
    except (ImportError, OSError) as error:  # soundfile raises OSError where its library is not there
        raise MissingExtra(f"{purpose} needs the package {package}: pip install 'crosspatch[speech]'") from error
