"""Voices of flite and espeak-ng, where they are installed."""

import shutil

import numpy as np
import pytest

from builders_speech import FOX, WORDS
from crosspatch.audio import load_audio, say, voices
from crosspatch.audio import synthesis as module
from crosspatch.core.errors import BadInput, MissingExtra, UnknownName

pytest.importorskip("soundfile")


def need(program):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize(("voice", "program"), [("slt", "flite"), ("awb", "flite"), ("en-us+f3", "espeak-ng")])
def test_a_voice_reads_out_the_same_each_time(voice, program):
    need(program)
    clip = say("Hello, world.", voice=voice)
    assert clip.dtype == np.float32
    assert 0.4 < len(clip) / 16_000 < 3
    assert np.abs(clip).max() > 0.05
    np.testing.assert_array_equal(clip, say("Hello, world.", voice=voice))
    assert len(say("Hello, world, and all who live in it.", voice=voice)) > len(clip)


def test_the_shipped_clip_is_made_as_its_readme_says():
    need("flite")
    np.testing.assert_array_equal(say(WORDS, voice="slt"), load_audio(FOX))


def test_text_is_never_read_as_an_option():
    need("flite")
    need("espeak-ng")
    for voice in ("slt", "en-us"):
        assert len(say("--help; $(id) -o", voice=voice)) > 1600


def test_voices_that_are_not_there_are_refused(monkeypatch):
    need("espeak-ng")
    for wrong in ("slk", "en-us+nobody", "--stdout", ""):
        with pytest.raises(UnknownName, match="unknown voice"):
            say("Hello", voice=wrong)
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    assert voices() == {}
    for voice, program in (("slt", "flite"), ("de", "espeak-ng")):
        with pytest.raises(MissingExtra, match=rf"voice '{voice}' needs the program {program}.*apt-get install"):
            say("Hello", voice=voice)


def test_voices_are_those_of_installed_programs():
    need("flite")
    assert {"slt", "rms", "awb", "kal16"} <= set(voices())


@pytest.mark.parametrize("text", ["", "  ", "?!", "…"])
def test_a_text_without_words_is_refused(text):
    with pytest.raises(BadInput, match="nothing to read out"):
        say(text)


def test_a_program_that_fails_says_why(monkeypatch):
    with pytest.raises(BadInput, match="false failed: exit code 1"):
        module._run("false")
    monkeypatch.setattr(module, "_SECONDS", 0.05)
    with pytest.raises(BadInput, match="sleep did not come to an end"):
        module._run("sleep", "5")


def fundamental(clip):
    """Return the median over loud stretches of 40 ms of the rate at which they are most like themselves, in Hz."""
    rates = []
    for first in range(0, len(clip) - 640, 320):
        part = clip[first : first + 640] - clip[first : first + 640].mean()
        if np.mean(part**2) > 1e-3:
            alike = np.correlate(part, part, "full")[639:]
            rates.append(16_000 / (40 + alike[40:230].argmax()))
    return np.median(rates)


def test_pitch_moves_the_voice_and_flite_has_none():
    need("espeak-ng")
    low, own, high = (say("Hello, world.", voice="en-us", pitch=at) for at in (20, 50, 80))
    np.testing.assert_array_equal(own, say("Hello, world.", voice="en-us"))
    assert fundamental(low) < 0.9 * fundamental(high)
    for voice, pitch in (("slt", 50), ("en-us", 100), ("en-us", -1)):
        with pytest.raises(BadInput, match="pitch"):
            say("Hello.", voice=voice, pitch=pitch)
