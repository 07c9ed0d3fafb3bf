"""Transcripts: the right words, the module's own greedy choice, one clip not touched by another."""

import copy

import numpy as np
import pytest
import torch

from builders_speech import FOX, WORDS, load_whisper, tiny_whisper
from crosspatch.audio import hearing, load_audio, log_mel, transcribe
from crosspatch.core.errors import BadInput, UnknownName

pytestmark = pytest.mark.whisper
END = {"whisper-base": 50257, "whisper-tiny.en": 50256}
PROMPT = {"whisper-base": (50258, 50259, 50359, 50363), "whisper-tiny.en": (50257, 50362)}


@pytest.fixture(scope="module")
def base():
    return load_whisper("whisper-base")


@pytest.fixture(scope="module")
def tiny():
    return load_whisper("whisper-tiny.en")


@pytest.fixture(scope="module")
def fox():
    return load_audio(FOX)


def naive_greedy(loaded, clip, prompt, *, steps):
    """Take the likeliest token that is not suppressed, one whole forward a token, from the papers' description."""
    settings, tokens = loaded.module.generation_config, list(prompt)
    mel = log_mel(loaded, [clip]).mel
    with torch.no_grad():
        heard = loaded.module.model.encoder(mel)
        for step in range(steps):
            logits = loaded.module(encoder_outputs=heard, decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
            logits[settings.suppress_tokens] = -torch.inf
            if step == 0:
                logits[settings.begin_suppress_tokens] = -torch.inf
            logits[settings.no_timestamps_token_id + 1 :] = -torch.inf
            tokens.append(int(logits.argmax()))
            if tokens[-1] == settings.eos_token_id:
                break
    return tuple(tokens)


@pytest.mark.parametrize("name", ["whisper-base", "whisper-tiny.en"])
def test_the_shipped_clip_is_understood_and_greedily(name, fox, request):
    loaded = request.getfixturevalue("base" if name == "whisper-base" else "tiny")
    checked = 12 if name == "whisper-base" else 40  # tokens
    before = copy.deepcopy(loaded.module.generation_config.to_dict())
    (said,) = transcribe(loaded.module, loaded.tokenizer, [fox])
    assert said.text == WORDS
    assert (said.language, said.ended, said.prompt) == ("en", True, len(PROMPT[name]))
    assert said.tokens[: said.prompt] == PROMPT[name]
    assert said.tokens[-1] == END[name]
    twin = naive_greedy(loaded, fox, PROMPT[name], steps=checked)
    assert said.tokens[: said.prompt + checked] == twin
    assert len(twin) >= said.prompt + 12
    assert loaded.module.generation_config.to_dict() == before


def test_clips_of_unequal_length_are_heard_as_if_alone(tiny, fox, monkeypatch):
    monkeypatch.setattr(hearing, "_BATCH", 2)
    clips = [fox[:24_000], np.zeros(1600, np.float32), fox[:40_000]]
    together = transcribe(tiny.module, tiny.tokenizer, clips, max_tokens=9)
    assert together == tuple(transcribe(tiny.module, tiny.tokenizer, clip, max_tokens=9)[0] for clip in clips)
    assert len({said.text for said in together}) == 3


def test_a_limit_of_tokens_cuts_the_text(tiny, fox):
    clip = fox[:20_000]
    (whole,) = transcribe(tiny.module, tiny.tokenizer, clip, max_tokens=30)
    words = len(whole.tokens) - whole.prompt
    assert whole.ended
    for limit, ended in ((words - 1, False), (words, True)):
        (said,) = transcribe(tiny.module, tiny.tokenizer, clip, max_tokens=limit)
        assert said.tokens == whole.tokens[: whole.prompt + limit]
        assert said.ended is ended


@pytest.mark.parametrize("limit", [0, -1, 447])
def test_a_limit_that_the_decoder_cannot_hold_is_refused(tiny, fox, limit):
    with pytest.raises(BadInput, match="between 1 and 446"):
        transcribe(tiny.module, tiny.tokenizer, [fox], max_tokens=limit)


def test_a_language_may_be_named_in_any_way(base, fox):
    said = [
        transcribe(base.module, base.tokenizer, [fox], language=given, max_tokens=1)[0] for given in ("de", "German")
    ]
    assert said[0] == said[1]
    assert said[0].tokens[:4] == (50258, 50261, 50359, 50363)
    assert said[0].language == "de"
    (english,) = transcribe(base.module, base.tokenizer, [fox], language="en", task="translate", max_tokens=1)
    assert english.tokens[:4] == (50258, 50259, 50358, 50363)


def test_unknown_languages_and_tasks_name_the_nearest(base, tiny, fox):
    with pytest.raises(UnknownName, match=r"unknown language 'germann'\. Did you mean 'german'"):
        transcribe(base.module, base.tokenizer, [fox], language="germann")
    with pytest.raises(UnknownName, match=r"unknown language 'xx'.*swahili"):
        transcribe(base.module, base.tokenizer, [fox], language="xx")
    with pytest.raises(UnknownName, match=r"'transcript'\. Did you mean 'transcribe'"):
        transcribe(base.module, base.tokenizer, [fox], task="transcript")
    with pytest.raises(BadInput, match="knows English alone: leave out language='en'"):
        transcribe(tiny.module, tiny.tokenizer, [fox], language="en")
    with pytest.raises(BadInput, match="leave out task='translate'"):
        transcribe(tiny.module, tiny.tokenizer, [fox], task="translate")


def test_modules_that_do_not_transcribe_are_refused(tiny, fox):
    with pytest.raises(BadInput, match="a Linear does not transcribe here"):
        transcribe(torch.nn.Linear(1, 1), tiny.tokenizer, [fox])
    with pytest.raises(BadInput, match="a WhisperForConditionalGeneration does not transcribe here"):
        transcribe(tiny_whisper(), tiny.tokenizer, [fox])  # made from a config: it has no settings of generation
    with pytest.raises(BadInput, match="hears 30 s at once"):
        transcribe(tiny.module, tiny.tokenizer, [np.zeros(480_001, np.float32)])
    tiny.module.train()
    try:
        with pytest.raises(BadInput, match="training mode"):
            transcribe(tiny.module, tiny.tokenizer, [fox])
    finally:
        tiny.module.eval()


def test_times_are_never_written_and_do_not_begin_the_clip_again(tiny, fox):
    """A model that wants times most of all made generate cut the clip and begin again, some thirty times."""
    module = copy.deepcopy(tiny.module)
    begin = module.generation_config.no_timestamps_token_id + 1
    with torch.no_grad():
        module.proj_out.weight[begin:] *= 40
        logits = module(
            input_features=log_mel(tiny, [fox]).mel, decoder_input_ids=torch.tensor([PROMPT["whisper-tiny.en"]])
        ).logits
    assert int(logits[0, -1].argmax()) >= begin  # else nothing is tested
    (said,) = transcribe(module, tiny.tokenizer, [fox], max_tokens=12)
    assert len(said.tokens) <= len(PROMPT["whisper-tiny.en"]) + 12
    assert max(said.tokens) < begin


def test_states_are_written_down_as_the_clip_is(tiny, fox):
    heard = tiny.module.get_encoder()(log_mel(tiny, [fox]).mel).last_hidden_state.detach()
    assert hearing.write_down(tiny.module, tiny.tokenizer, heard) == transcribe(tiny.module, tiny.tokenizer, [fox])
    with pytest.raises(BadInput, match="states of shape"):
        hearing.write_down(tiny.module, tiny.tokenizer, heard[:, :700])
