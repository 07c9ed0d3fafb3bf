"""Encoder lens: each layer's stream through the encoder's norm and the decoder, as transformers gives them."""

import pytest
import torch

from builders_speech import FOX, WORDS, load_whisper
from crosspatch.audio import load_audio, log_mel, transcribe
from crosspatch.audio.hearing import write_down
from crosspatch.core.errors import BadInput
from crosspatch.lenses import encoder_lens
from crosspatch.lenses.encoder import encoder_streams

pytestmark = pytest.mark.whisper


@pytest.fixture(scope="module")
def tiny():
    return load_whisper("whisper-tiny.en")


@pytest.fixture(scope="module")
def clip():
    return load_audio(FOX)


def test_streams_are_the_hidden_states_of_transformers(tiny, clip):
    mel = log_mel(tiny, [clip]).mel
    streams, own = encoder_streams(tiny.module, mel)
    with torch.no_grad():
        told = tiny.module.get_encoder()(mel, output_hidden_states=True)
    assert len(streams) == len(told.hidden_states) == 5
    for stream, hidden in zip(streams[:-1], told.hidden_states, strict=False):
        torch.testing.assert_close(stream, hidden)
    torch.testing.assert_close(own, told.last_hidden_state)


def test_the_last_layer_is_the_model_and_others_go_through_the_norm(tiny, clip):
    lens = encoder_lens(tiny.module, tiny.tokenizer, [clip], max_tokens=30)
    assert len(lens) == 5
    assert lens[4] == transcribe(tiny.module, tiny.tokenizer, [clip], max_tokens=30)
    assert lens[4][0].text == WORDS
    assert lens[1][0].text != WORDS
    hidden = encoder_streams(tiny.module, log_mel(tiny, [clip]).mel)[0][3]
    with torch.no_grad():
        normed = tiny.module.get_encoder().layer_norm(hidden)
    assert lens[3] == write_down(tiny.module, tiny.tokenizer, normed, max_tokens=30)


def test_refusals(tiny, clip):
    with pytest.raises(BadInput, match="max_tokens"):
        encoder_lens(tiny.module, tiny.tokenizer, [clip], max_tokens=0)
    with pytest.raises(BadInput, match="no clips"):
        encoder_lens(tiny.module, tiny.tokenizer, [])
