"""Synthetic voices: sentences read out by flite or espeak-ng, where they are installed."""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

from crosspatch.audio.clips import load_audio
from crosspatch.core.errors import BadInput, MissingExtra, UnknownName

_VOICES: Mapping[str, str] = MappingProxyType(
    {
        "slt": "a woman, US English (flite)",
        "rms": "a man, US English (flite)",
        "awb": "a man, Scottish English (flite)",
        "kal16": "a man, US English, from diphones (flite)",
        "en-us": "espeak-ng, and any other of its voices: en-gb, en-us+f3, de, fr, …",
    }
)
_FLITE = tuple(voice for voice, about in _VOICES.items() if "(flite)" in about)
_SECONDS = 60  # after which a voice is taken to hang


def voices() -> Mapping[str, str]:
    """Return the voices that can be had here, with what they are; "en-us" stands for all of espeak-ng's."""
    return {voice: about for voice, about in _VOICES.items() if shutil.which(_program(voice))}


def say(text: str, *, voice: str = "slt", pitch: int | None = None) -> Float32[np.ndarray, " sample"]:
    """Return a text read out by a synthetic voice, at 16 kHz; the same text and voice give the same samples.

    `voice` is one of `voices()` or any voice of espeak-ng. flite is heard better: small Whispers mistake words of
    espeak-ng's. `pitch`, from 0 to 99, is for voices of espeak-ng, whose own is 50. Raises MissingExtra when the
    program is not installed, UnknownName for a voice that it does not have, BadInput for a text without words or a
    pitch that the voice cannot have.
    """
    if not any(letter.isalnum() for letter in text):
        raise BadInput(f"there is nothing to read out in {text!r}: give a sentence.")
    program = _program(voice)
    if pitch is not None and (program == "flite" or isinstance(pitch, bool) or not 0 <= pitch <= 99):
        raise BadInput(f"pitch={pitch} of {voice!r}: espeak-ng's voices have pitches from 0 to 99, flite's one each.")
    if shutil.which(program) is None:
        raise MissingExtra(
            f"the voice {voice!r} needs the program {program}. Install it, on Debian with: apt-get install {program}"
        )
    if program == "espeak-ng" and not _has_voice(voice):
        raise UnknownName.of("voice", voice, _VOICES, hint="`espeak-ng --voices` lists its voices.")
    with tempfile.TemporaryDirectory() as folder:
        written, sound = Path(folder) / "text", Path(folder) / "sound.wav"
        written.write_text(text, encoding="utf-8")
        if program == "flite":
            _run("flite", "-voice", voice, "-f", str(written), "-o", str(sound))
        else:
            at = () if pitch is None else ("-p", str(pitch))
            _run("espeak-ng", "-v", voice, *at, "-f", str(written), "-w", str(sound))
        return load_audio(sound)


def _program(voice: str) -> str:
    return "flite" if voice in _FLITE else "espeak-ng"


def _has_voice(voice: str) -> bool:
    language, _, variant = voice.partition("+")
    if not language or voice.startswith("-"):
        return False
    listed = _run("espeak-ng", "--voices=variant").split()  # an unknown variant is passed over in silence
    if variant and f"!v/{variant}" not in listed:
        return False
    return subprocess.run(["espeak-ng", "-q", "-v", language, " "], capture_output=True, check=False).returncode == 0


def _run(program: str, *words: str) -> str:
    try:
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise BadInput(f"{program} did not come to an end within {_SECONDS} s: give a shorter text.") from error
    if done.returncode:
        raise BadInput(f"{program} failed: {(done.stderr or done.stdout).strip() or f'exit code {done.returncode}'}")
    return done.stdout
