"""The speech study on a real Whisper: clips as they should be, attention as the module's own, a page by one command."""

import json
import shutil
from html import unescape

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from builders_speech import load_whisper, tiny_whisper
from crosspatch.audio import transcribe
from crosspatch.audio.clips import RATE
from crosspatch.cli.app import app
from crosspatch.core.errors import BadInput, CorruptFile, UnknownName
from crosspatch.models.load import Loaded
from crosspatch.modules import Trial
from crosspatch.studies import Sizes, load_study, study_speech
from crosspatch.studies.speech import context, corpus, maps, repetition
from crosspatch.studies.speech.ear import Ear

pytestmark = pytest.mark.whisper


@pytest.fixture(scope="module")
def ear():
    return Ear.of(load_whisper("whisper-tiny.en"))


@pytest.fixture(scope="module", autouse=True)
def voices():
    for program in ("flite", "espeak-ng"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def test_the_same_sound_stands_at_the_same_samples_after_both_contexts():
    for pair in context.PAIRS:
        word = context._blend(pair.words)
        one, two = (context._clip(each, word) for each in pair.contexts)
        begin = int(context.BEGIN * RATE)
        np.testing.assert_array_equal(one[begin:], two[begin:])
        assert not np.array_equal(one[:begin], two[:begin])
        assert len(word) / RATE <= context.WINDOW


def test_all_words_of_pairs_differ_in_their_first_token(ear):
    for pair in context.PAIRS:
        assert ear.first_token(pair.words[0]) != ear.first_token(pair.words[1])


def test_clips_are_equally_loud_and_noise_is_at_its_ratio():
    said = corpus.Said(corpus.SENTENCES[0], 0, "slt")
    clean, noisy = corpus.clip_of(said), corpus.clip_of(corpus.Said(said.text, 0, "slt", noise=0.0))
    for clip in (clean, noisy, corpus.white_noise(1.0)):
        assert np.sqrt(np.mean(clip**2)) == pytest.approx(corpus.LOUDNESS, rel=1e-4)
    share = np.dot(clean, noisy) / np.dot(clean, clean)
    rest = noisy - share * clean
    assert 10 * np.log10(np.mean((share * clean) ** 2) / np.mean(rest**2)) == pytest.approx(0.0, abs=0.3)
    np.testing.assert_array_equal(noisy, corpus.clip_of(corpus.Said(said.text, 0, "slt", noise=0.0)))


def test_every_language_has_all_sentences_and_spans_of_words_are_where_they_sound():
    assert {len(texts) for texts in corpus.TRANSLATIONS.values()} == {len(corpus.SENTENCES)}
    spoken = corpus.word_list("slt")
    assert sorted(spoken.words) == sorted(corpus.WORDS)
    loud = np.abs(spoken.clip) > 0.02
    for number, (first, last) in enumerate(spoken.spans):
        assert loud[int(first * RATE) : int(last * RATE)].any()
        end_of_last = spoken.spans[number - 1][1] if number else 0.0
        assert not loud[int(end_of_last * RATE) : int(first * RATE)].any()


def test_pooled_streams_are_means_over_a_clips_own_positions(ear):
    clip = corpus.clip_of(corpus.Said(corpus.SENTENCES[1], 1, "slt"))
    found = ear.pooled([clip])
    heard = ear.mel([clip])
    with torch.no_grad():
        hidden = ear.module.get_encoder()(heard.mel, output_hidden_states=True).hidden_states
    for layer in range(ear.layers):
        own = hidden[layer][0, : heard.positions[0]].mean(dim=0).numpy()
        np.testing.assert_allclose(found[layer, 0], own, rtol=1e-4, atol=1e-5)
    part = ear.pooled([clip], [[(0.5, 1.0)]])
    np.testing.assert_allclose(part[2, 0], hidden[2][0, 25:50].mean(dim=0).numpy(), rtol=1e-4, atol=1e-5)


def test_cross_attention_is_what_the_module_itself_attends_to():
    module = tiny_whisper()
    module.set_attn_implementation("eager")
    module.generation_config.alignment_heads = [[0, 1], [1, 3]]
    ids = torch.tensor([[5, 6, 7]])
    inputs = {"input_features": torch.randn(1, 80, 3000), "decoder_input_ids": ids, "use_cache": False}
    ear = Ear(module, None, "tiny")
    trial = Trial(module, inputs, inputs, lambda output: output.logits[:, -1, 0], 1)
    found = maps._cross_attention(ear, trial)
    with torch.no_grad():
        told = module(**inputs, output_attentions=True).cross_attentions
    expected = (told[0][0, 1] + told[1][0, 3]) / 2
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-7)


def test_loops_are_patched_on_top_of_what_transcribe_gives(ear, monkeypatch):
    monkeypatch.setattr(repetition, "TOKENS", 10)
    clip = repetition.looped_clip("no", "slt")
    found = repetition.patched(ear, [clip], [clip], heads=False)  # from itself: nothing changes
    assert not found.changed.any()
    (said,) = transcribe(ear.module, ear.processor, [clip], max_tokens=repetition.TOKENS)
    written = [token for token in found.base[0].tolist() if token >= 0]
    assert written == list(said.tokens[said.prompt :])
    assert len(ear.module.generation_config.suppress_tokens) < 200  # times are refused within the block alone


def test_one_command_makes_a_page_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["study", "speech", "whisper-tiny.en", "--small", "--parts", "hearing,decoder", "--out", "run", "--quiet"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {each["verdict"] for each in told["findings"]} <= {"agrees", "contradicts", "undecided", "no claim"}
    assert len(told["findings"]) == 4
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert told["findings"][0]["said"] in unescape(page)
    before = (tmp_path / "run" / "hearing" / "meta.json").stat().st_mtime_ns
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0
    assert "the paper" in again.stdout
    assert (tmp_path / "run" / "hearing" / "meta.json").stat().st_mtime_ns == before


def test_a_kept_study_is_listed_shown_told_anew_without_a_model_and_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "speech"
    sizes = Sizes(hearing=2)
    study = study_speech("whisper-tiny.en", parts=["hearing"], sizes=sizes, folder=folder)
    assert load_study(folder).findings == study.findings
    monkeypatch.setattr("crosspatch.models.load.load", None)  # no model may be opened from here on
    listed = CliRunner().invoke(app, ["runs"]).stdout
    assert "(study, " in listed
    assert "2 no claim" in listed
    shown = CliRunner().invoke(app, ["runs", "show", "runs/speech"]).stdout
    assert study.findings[0].said in " ".join(shown.split())
    made = CliRunner().invoke(app, ["report", "runs/speech", "--json"])
    assert json.loads(made.stdout)["findings"][0]["value"] == study.findings[0].value
    assert "Encoder lens" in (folder / "report.html").read_text(encoding="utf-8")
    refused = CliRunner().invoke(app, ["report", "runs/speech", "--format", "csv"])
    assert refused.exit_code == 2
    (folder / "hearing" / "meta.json").write_text("{", encoding="utf-8")
    with pytest.raises(CorruptFile):
        load_study(folder)
    assert CliRunner().invoke(app, ["runs", "remove", "runs/speech", "--yes"]).exit_code == 0
    assert not folder.exists()


def test_what_cannot_be_studied_is_refused(ear):
    with pytest.raises(UnknownName, match="part of the speech study"):
        study_speech("whisper-tiny.en", parts=["probe"])
    with pytest.raises(BadInput, match="one at least"):
        study_speech("whisper-tiny.en", parts=[])
    with pytest.raises(BadInput, match="takes a Whisper"):
        study_speech(Loaded(torch.nn.Linear(2, 2).eval(), None, "linear", ""))
    ear.module.train()
    try:
        with pytest.raises(BadInput, match="training"):
            study_speech(Loaded(ear.module, ear.processor, "tiny", ""), parts=["hearing"])
    finally:
        ear.module.eval()


def test_without_parts_all_are_meant(tmp_path, monkeypatch):
    asked = {}

    def study(model, **how):
        asked.update(how)
        raise BadInput(f"seen {model.name}")

    monkeypatch.setattr("crosspatch.studies.study_speech", study, raising=False)
    done = CliRunner().invoke(app, ["study", "speech", "whisper-tiny.en", "--out", str(tmp_path / "run")])
    assert "seen whisper-tiny.en" in done.stderr
    assert asked["parts"] is None
    assert asked["sizes"] == Sizes()
