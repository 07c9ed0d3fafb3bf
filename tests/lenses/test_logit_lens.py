"""Logit lens: each layer decoded as transformers' own hidden states are; the last layer is the model itself."""

from dataclasses import replace
from math import exp, fsum

import numpy as np
import pytest
import torch

from builders_tasks import word_tokenizer
from crosspatch.core.errors import (
    BadInput,
    CorruptFile,
    ManyTokenAnswer,
    MissingExtra,
    NotFinite,
    NotProved,
    UnknownName,
)
from crosspatch.lenses import LensView, logit_lens, stream_features, streams
from crosspatch.models import open_model
from handmade import handmade
from naive.lenses import ENDS, distributions, saturation
from naive.lenses import streams as own_streams
from naive.metrics import naive_divergence, naive_probabilities, naive_rank
from zoo import ZOO, fresh, make_pair, make_task, module_of, opened, uneven

TASK = make_task(*(replace(pair, right=((5,), (11,))) if i else pair for i, pair in enumerate(uneven())))
PROMPTS = [pair.clean for pair in TASK.pairs]


@pytest.mark.parametrize("name", ZOO)
def test_the_last_layer_is_the_model_itself(name):
    """In every family: scale, soft cap and biases included; prompts of three lengths in one call."""
    view = logit_lens(opened(name), PROMPTS, at="all", k=97)
    for example, ids in enumerate(PROMPTS):
        with torch.no_grad():
            theirs = module_of(name)(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        n = len(ids)
        ours = torch.full((n, 97), np.nan)
        ours.scatter_(1, torch.tensor(view.top[example, -1, :n]), torch.tensor(view.top_logprob[example, -1, :n]))
        assert torch.allclose(ours, theirs, atol=1e-4)
        assert (view.kl[example, -1, :n] == 0).all()
        assert (view.rank[example, -1, :n] == 0).all()
        assert np.isnan(view.kl[example, :, n:]).all()
        assert (view.top[example, :, n:] == -1).all()


@pytest.mark.parametrize("name", ENDS)
def test_every_layer_is_what_transformers_hidden_states_decode_to(name):
    """All numbers of all tokens against plain ones, one prompt at a time."""
    view = logit_lens(opened(name), PROMPTS, at="all", k=3)
    assert view.layers == 4
    for example, ids in enumerate(PROMPTS):
        every = distributions(name, ids).double()
        for place in range(len(ids)):
            last = every[-1, place].tolist()
            top = int(np.argmax(last))
            for layer in range(4):
                own = every[layer, place].tolist()
                at = example, layer, place
                assert view.logprob[at] == pytest.approx(own[top], abs=1e-4)
                assert view.rank[at] == naive_rank(own, [top])
                assert view.kl[at] == pytest.approx(naive_divergence(last, own), abs=1e-4)
                assert view.entropy[at] == pytest.approx(-fsum(exp(x) * x for x in own), abs=1e-4)
                assert view.top[at].tolist() == np.argsort(own)[::-1][:3].tolist()
            tops = every[:, place].argmax(-1).tolist()
            assert view.saturation[example, place] == saturation(tops)
            assert view.agrees[example, :, place].tolist() == [float(token == tops[-1]) for token in tops]


@pytest.mark.parametrize("run", ["clean", "corrupt"])
def test_answers_of_a_task_are_followed_at_its_end(run):
    """Their summed probability and the best one's rank; alternatives differ in number."""
    view = logit_lens(opened("gemma2"), TASK, run=run)
    assert view.logprob.shape == (3, 4, 1)
    assert view.positions[:, 0].tolist() == [8, 5, 8]
    for example, pair in enumerate(TASK.pairs):
        right = [answer[0] for answer in pair.right]
        for layer, own in enumerate(distributions("gemma2", getattr(pair, run))[:, -1].tolist()):
            chances = naive_probabilities(own)
            assert exp(view.logprob[example, layer, 0]) == pytest.approx(fsum(chances[i] for i in right), rel=1e-4)
            assert view.rank[example, layer, 0] == naive_rank(own, right)
    assert view.target == "right answers"
    assert logit_lens(opened("gemma2"), TASK, at="all").target == "the last layer's top token"


def test_means_are_over_examples_each_the_mean_of_its_tokens():
    """Prompts of unequal length count alike; intervals hold the mean."""
    view = logit_lens(opened("llama"), PROMPTS, at="all")
    by_hand = [np.mean([view.kl[e, 1, p] for p in range(len(ids))]) for e, ids in enumerate(PROMPTS)]
    mean, low, high = (column[1] for column in view.by_layer("kl"))
    assert mean == pytest.approx(np.mean(by_hand))
    assert min(by_hand) <= low + 1e-6 < mean < high - 1e-6 <= max(by_hand)
    layer, low, high = view.mean_saturation()
    each = [np.mean(view.saturation[e, : len(ids)]) for e, ids in enumerate(PROMPTS)]
    assert layer == pytest.approx(np.mean(each))
    assert low <= layer <= high


@pytest.mark.parametrize("by_length", [False, True])
def test_batches_and_padding_change_nothing(by_length, monkeypatch):
    """One prompt at a time, of one length at a time, or all at once; a row at a time, or all."""
    model = opened("gemma3")
    together = logit_lens(model, PROMPTS, at="all")
    if by_length:
        model = replace(model, anatomy=replace(model.anatomy, by_length=True))
    else:
        monkeypatch.setattr(streams, "ROOM", 1)
    monkeypatch.setattr("crosspatch.lenses.decoding.BYTES", 1)
    apart = logit_lens(model, PROMPTS, at="all")
    np.testing.assert_allclose(apart.kl, together.kl, atol=1e-5)
    np.testing.assert_array_equal(apart.top, together.top)
    each = [stream_features(one, PROMPTS, at="all").values() for one in (model, opened("gemma3"))]
    for ours, theirs in zip(*each, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_decode_too(dtype):
    """Half precision decodes what the stream was rounded to."""
    view, single = logit_lens(opened("llama", dtype), PROMPTS), logit_lens(opened("llama"), PROMPTS)
    np.testing.assert_allclose(view.entropy, single.entropy, atol=1e-4 if dtype == torch.float64 else 0.2)


def test_features_are_the_streams():
    """Rows in the order of the prompts, at their ends or at all tokens."""
    ends, every = (stream_features(opened("gpt2"), PROMPTS, at=at) for at in ("end", "all"))
    assert list(ends) == [0, 1, 2, 3]
    for layer in range(3):
        theirs = [own_streams("gpt2", ids)[layer].numpy() for ids in PROMPTS]
        np.testing.assert_allclose(every[layer], np.concatenate(theirs), atol=1e-5)
        np.testing.assert_allclose(ends[layer], [each[-1] for each in theirs], atol=1e-5)


@pytest.fixture(scope="module")
def wordy():
    """A tiny Llama with a tokenizer of words."""
    tokenizer = word_tokenizer()
    return open_model(fresh("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer)


def test_texts_are_tokenised_by_the_models_own(wordy):
    """One text or several; what is shown are words."""
    text = "Mary and John went to the store"
    view = logit_lens(wordy, [text, "Mary"])
    assert view.tokens[0] == ("<s>", *text.split())
    np.testing.assert_array_equal(logit_lens(wordy, text).top, view.top[:1])
    words = view.words_at(0)
    assert len(words) == 4
    assert words[-1][0][0] == wordy.tokenizer.convert_ids_to_tokens(int(view.top[0, -1, 0, 0]))
    assert words[-1][0][1] == pytest.approx(exp(view.top_logprob[0, -1, 0, 0]))


def test_it_shows_itself(tmp_path, wordy):
    """In a shell, in a notebook without script, as a tidy table, as JSON, and on disk, all the same."""
    view = logit_lens(wordy, ["Mary and John went", "to the store"], at="all")
    frame = view.to_frame()
    assert len(frame) == 4 * (5 + 4)
    row = frame[(frame.example == 1) & (frame.layer == 2) & (frame.position == 3)]
    assert row.kl.item() == view.kl[1, 2, 3]
    assert row.token.item() == "store"
    html = view._repr_html_()
    assert 'class="map"' in html
    assert "<script" not in html
    assert f"saturates at layer {view.mean_saturation()[0]:.1f}" in repr(view)
    told = view.summary()
    assert told["kl"][1]["mean"] == pytest.approx(float(view.by_layer("kl")[0][1]))
    assert told["saturation"]["mean"] == view.mean_saturation()[0]
    back = LensView.load(view.save(tmp_path / "view"))
    assert (repr(back), back.words, back.tokens) == (repr(view), view.words, view.tokens)
    np.testing.assert_array_equal(back.saturation, view.saturation)
    assert logit_lens(wordy, ["Mary"]).summary()["saturation"]["low"] is None  # one example has no interval
    (tmp_path / "view" / "meta.json").write_text(
        (tmp_path / "view" / "meta.json").read_text().replace('"lens"', '"no"')
    )
    with pytest.raises(CorruptFile, match="no view of a lens"):
        LensView.load(tmp_path / "view")


def test_what_cannot_be_read_is_refused(wordy):
    """Each with what to do."""
    model = opened("llama")
    with pytest.raises(UnknownName, match="place to read at"):
        logit_lens(model, PROMPTS, at="start")
    with pytest.raises(UnknownName, match="unknown run"):
        logit_lens(model, TASK, run="other")
    with pytest.raises(BadInput, match="k=98"):
        logit_lens(model, PROMPTS, k=98)
    with pytest.raises(BadInput, match="no tokenizer"):
        logit_lens(model, ["Mary"])
    with pytest.raises(BadInput, match="token id 97"):
        logit_lens(model, [[3, 97]])
    with pytest.raises(BadInput, match="at least one prompt"):
        logit_lens(model, [])
    with pytest.raises(BadInput, match="padding"):
        logit_lens(wordy, torch.tensor([[5, 6, 3], [5, 6, 7]]))
    with pytest.raises(ManyTokenAnswer, match="first token"):
        logit_lens(model, make_task(make_pair(9, (3, 7), right=((5, 6),)), metric="logprob"))
    with pytest.raises(UnknownName, match="unknown measure"):
        logit_lens(model, PROMPTS).by_layer("loss")
    with pytest.raises(BadInput, match="was not read"):
        logit_lens(model, PROMPTS).words_at(0, 3)
    with pytest.raises(BadInput, match=r"examples 0\.\.2"):
        logit_lens(model, PROMPTS).words_at(3)


def test_a_readout_that_is_not_proved_is_refused():
    """Logits that are no linear map of a normed stream: other layers cannot be decoded by it."""
    with pytest.raises(NotProved, match="only given by its own forward"):
        logit_lens(open_model(handmade(odd_head=True)), PROMPTS)


def test_a_layer_that_is_no_number_is_refused():
    """A stream that overflows on one token, which opening the model did not meet."""
    module = fresh("llama")
    model = open_model(module)
    with torch.no_grad():
        module.model.embed_tokens.weight[96] = torch.inf
    with pytest.raises(NotFinite, match="layer 0"):
        logit_lens(model, [[3, 96]])


def test_without_pandas_the_frame_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtra, match="pandas"):
        logit_lens(opened("llama"), PROMPTS).to_frame()
