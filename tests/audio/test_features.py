"""Spectrograms equal the published definition, each clip as if it were alone."""

import numpy as np
import pytest
import torch

from builders_speech import FOX
from crosspatch.audio import load_audio, log_mel
from crosspatch.core.errors import BadInput, NotFinite


@pytest.fixture(scope="module")
def extractor():
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor()


def naive_log_mel(clip, filters):
    """Whisper's spectrogram, frame by frame (`whisper/audio.py`): Hann window of 400, hop of 160, reflected ends."""
    padded = np.pad(np.pad(clip.astype(np.float64), (0, 480_000 - len(clip))), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = [np.abs(np.fft.rfft(window * padded[160 * t : 160 * t + 400])) ** 2 for t in range(3000)]
    mel = np.log10(np.maximum(np.stack(power) @ filters, 1e-10)).T
    return (np.maximum(mel, mel.max() - 8) + 4) / 4


def test_a_spectrogram_is_what_whisper_is_defined_on(extractor):
    clip = load_audio(FOX)
    made = log_mel(extractor, [clip])
    assert made.mel.shape == (1, 80, 3000)
    assert made.mel.dtype == torch.float32
    np.testing.assert_allclose(made.mel[0].numpy(), naive_log_mel(clip, extractor.mel_filters), rtol=0, atol=2e-4)


def test_clips_of_unequal_length_are_each_as_if_alone(extractor):
    clip = load_audio(FOX)
    clips = [clip, clip[:16_001], clip[:1], np.zeros(480_000, np.float32)]
    made = log_mel(extractor, clips)
    assert made.frames == (474, 101, 1, 3000)
    assert made.positions == (237, 51, 1, 1500)
    for index, one in enumerate(clips):
        torch.testing.assert_close(made.mel[index : index + 1], log_mel(extractor, [one]).mel, rtol=0, atol=1e-6)


def test_frames_behind_a_clip_hear_nothing_of_it(extractor):
    """What is counted as a clip's frames is where it is heard; two more hear its last samples in their window."""
    clip = np.random.default_rng(0).uniform(-0.5, 0.5, 1600).astype(np.float32)
    made = log_mel(extractor, [clip])
    floor = made.mel[0].min()
    assert made.frames == (10,)
    assert (made.mel[0, :, : made.frames[0]] > floor).all()
    assert (made.mel[0, :, made.frames[0] + 2 :] == floor).all()


def test_an_extractor_is_found_in_what_holds_one(extractor):
    class Holder:
        def __init__(self, **parts):
            self.__dict__.update(parts)

    clip = np.zeros(160, np.float32)
    processor = Holder(feature_extractor=extractor, tokenizer=Holder())
    for given in (processor, Holder(tokenizer=processor)):
        assert torch.equal(log_mel(given, [clip]).mel, log_mel(extractor, [clip]).mel)
    assert torch.equal(log_mel(extractor, clip).mel, log_mel(extractor, [clip]).mel)
    with pytest.raises(BadInput, match="a Holder makes no spectrograms"):
        log_mel(Holder(tokenizer=Holder()), [clip])


def test_an_extractor_of_another_rate_is_refused():
    from transformers import WhisperFeatureExtractor

    with pytest.raises(BadInput, match="takes 24000 samples a second"):
        log_mel(WhisperFeatureExtractor(sampling_rate=24_000), [np.zeros(9, np.float32)])


@pytest.mark.parametrize(
    ("clips", "error", "words"),
    [
        ([], BadInput, "one at least"),
        ([np.zeros(9, np.float32), np.zeros(0, np.float32)], BadInput, r"clip 1 is float32 of shape \(0,\)"),
        ([np.zeros((9, 2), np.float32)], BadInput, r"shape \(9, 2\)"),
        ([np.zeros(9, np.int16)], BadInput, "clip 0 is int16"),
        ([np.full(9, np.nan, np.float32)], NotFinite, "clip 0 has samples that are NaN"),
        ([np.zeros(480_001, np.float32)], BadInput, "clip 0 takes 30.0 s, and the model hears 30 s at once"),
    ],
)
def test_clips_that_cannot_be_heard_are_refused(extractor, clips, error, words):
    with pytest.raises(error, match=words):
        log_mel(extractor, clips)
