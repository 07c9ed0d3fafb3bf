"""Clips become one channel at 16 kHz, or the reason is said."""

import builtins

import numpy as np
import pytest
import torch

from builders_speech import FOX
from crosspatch.audio import load_audio
from crosspatch.core.errors import BadInput, MissingExtra, NotFinite, UnknownName

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def tone(hertz, rate, *, seconds=0.5):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("suffix", "subtype", "close"), [("wav", "PCM_16", 2**-15), ("flac", "PCM_24", 2**-23)])
def test_a_file_is_read_at_its_own_rate(tmp_path, suffix, subtype, close):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(440, 16_000), 16_000, subtype=subtype)
    for what in (path, str(path)):
        clip = load_audio(what)
        assert clip.dtype == np.float32
        np.testing.assert_allclose(clip, tone(440, 16_000), rtol=0, atol=close)


def test_an_ogg_file_is_read(tmp_path):
    soundfile.write(tmp_path / "a.ogg", tone(440, 16_000), 16_000)
    clip = load_audio(tmp_path / "a.ogg")
    assert np.abs(clip[100:-100] - tone(440, 16_000)[100:-100]).max() < 0.05


def test_the_shipped_clip_is_speech_at_16_khz():
    clip = load_audio(FOX)
    assert (clip.shape, clip.dtype) == ((75_760,), np.float32)
    assert FOX.stat().st_size < 100_000


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_another_rate_is_resampled_to_the_same_tone(rate, tmp_path):
    expected = tone(1000, 16_000)
    clip = load_audio(tone(1000, rate), rate=rate)
    assert abs(len(clip) - len(expected)) <= 1
    inside = slice(400, 7600)  # the ends ring
    np.testing.assert_allclose(clip[inside], expected[inside], rtol=0, atol=2e-3)
    soundfile.write(tmp_path / "a.wav", tone(1000, rate), rate, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav"), clip)


def test_what_16_khz_cannot_hold_does_not_fold_back():
    assert np.abs(load_audio(tone(15_000, 48_000), rate=48_000)[400:-400]).max() < 1e-3


def test_integers_are_scaled_as_in_wav_files():
    wave = np.array([-1, -0.5, 0, 0.5])
    scaled = {"int16": wave * 2**15, "int32": wave * 2**31, "uint8": wave * 2**7 + 2**7}
    for name, values in scaled.items():
        np.testing.assert_array_equal(load_audio(values.astype(name), rate=16_000), wave.astype(np.float32))


def test_floats_and_tensors_of_any_precision_are_taken():
    wave = np.array([0.5, -0.25, 1.5])
    for given in (wave, wave.astype(np.float16), torch.tensor(wave, requires_grad=True), torch.tensor(wave).bfloat16()):
        clip = load_audio(given, rate=16_000)
        assert clip.dtype == np.float32
        np.testing.assert_array_equal(clip, wave)
    given = wave.astype(np.float32)
    load_audio(given, rate=16_000)[:] = 0
    np.testing.assert_array_equal(given, wave)


def test_several_channels_need_a_choice(tmp_path):
    both = np.stack([tone(300, 16_000), tone(500, 16_000)], axis=1)
    with pytest.raises(BadInput, match=r"2 channels: say which is meant with mono=mean \| 0 \| 1"):
        load_audio(both, rate=16_000)
    np.testing.assert_array_equal(load_audio(both, rate=16_000, mono="1"), both[:, 1])
    np.testing.assert_allclose(load_audio(both, rate=16_000, mono="mean"), both.mean(axis=1), atol=1e-7)
    np.testing.assert_array_equal(load_audio(both[:, :1], rate=16_000), both[:, 0])
    with pytest.raises(UnknownName, match=r"'left'.*Known: mean, 0, 1"):
        load_audio(both, rate=16_000, mono="left")
    soundfile.write(tmp_path / "a.wav", both, 16_000)
    with pytest.raises(BadInput, match=r"a\.wav has 2 channels"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("given", "options", "error", "words"),
    [
        (np.zeros(9), {}, BadInput, "does not say its rate"),
        (np.zeros(9), {"rate": 0}, BadInput, "rate=0 is no rate"),
        (np.zeros(9), {"rate": True}, BadInput, "rate=True is no rate"),
        (np.zeros(9), {"rate": 16_000.5}, BadInput, "is no rate"),
        (np.zeros(9), {"rate": float("nan")}, BadInput, "is no rate"),
        (np.zeros(0), {"rate": 16_000}, BadInput, r"no samples: its shape is \(0,\)"),
        (np.zeros((5, 0)), {"rate": 16_000}, BadInput, "no samples"),
        (np.zeros(1), {"rate": 768_000}, BadInput, "too short"),
        (np.zeros((2, 3, 4)), {"rate": 16_000}, BadInput, r"shape \(2, 3, 4\): give \[sample\]"),
        (np.zeros(()), {"rate": 16_000}, BadInput, r"shape \(\): give"),
        (np.zeros((2, 16_000)), {"rate": 16_000}, BadInput, r"16000 channels.*array\.T"),
        (np.array([0, np.nan, np.inf]), {"rate": 16_000}, NotFinite, "2 samples that are NaN or infinite, of 3"),
        (np.array([0.0, 20_000]), {"rate": 16_000}, BadInput, "reaches 20000.*divide them by 32768"),
        (np.zeros(9, np.int64), {"rate": 16_000}, BadInput, "type int64.*int16, int32, uint8"),
        (np.zeros(9, bool), {"rate": 16_000}, BadInput, "type bool"),
        (np.zeros(9, complex), {"rate": 16_000}, BadInput, "type complex128"),
        (np.array(["a"]), {"rate": 16_000}, BadInput, "type <U1|type str"),
        ("no/such.wav", {}, UnknownName, r"no file.*such\.wav"),
        (str(FOX), {"rate": 16_000}, BadInput, "says its rate itself: leave out rate=16000"),
    ],
)
def test_what_is_no_sound_is_refused(given, options, error, words):
    with pytest.raises(error, match=words):
        load_audio(given, **options)


def test_files_that_are_no_sound_are_refused(tmp_path):
    (tmp_path / "a.wav").write_text("not sound")
    with pytest.raises(BadInput, match=r"a\.wav cannot be read as sound"):
        load_audio(tmp_path / "a.wav")
    with pytest.raises(UnknownName, match="no file"):
        load_audio(tmp_path)
    soundfile.write(tmp_path / "b.wav", np.zeros(0), 16_000)
    with pytest.raises(BadInput, match=r"b\.wav has no samples"):
        load_audio(tmp_path / "b.wav")


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_a_missing_package_says_the_command(package, monkeypatch, tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440, 8000), 8000)
    load = builtins.__import__("importlib").import_module

    def without(name, *rest):
        if name == package:
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(MissingExtra, match=rf"package {package}: pip install 'crosspatch\[speech\]'"):
        load_audio(tmp_path / "a.wav")
