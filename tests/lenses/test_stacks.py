"""Logit lens of any module's stack: by hand from transformers' own hidden states; readouts are proved."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crosspatch.core.errors import BadInput, NotProved, UnknownName
from crosspatch.lenses import logit_lens_any
from crosspatch.modules import Trial
from modules.trials import trial

NORMS = {"whisper": lambda m: m.model.decoder.layer_norm, "bart": lambda m: torch.nn.Identity()}
NORMS["t5"] = lambda m: m.decoder.final_layer_norm


def words(ids):
    return [f"w{number}" for number in ids]


def by_hand(given, norm, scale, head):
    """Decode transformers' own hidden states of the decoder; the last one has been normed already."""
    with torch.no_grad():
        output = given.module(**given.clean, output_hidden_states=True)
        streams = output.decoder_hidden_states
        layers = [head(norm(stream) * scale) for stream in streams[:-1]]
        return [layer.log_softmax(-1) for layer in (*layers, output.logits)]


@pytest.mark.parametrize("name", ["whisper", "t5", "bart"])
def test_each_layer_is_decoded_by_the_modules_own_readout(name):
    given = trial(name)
    ids = given.clean["decoder_input_ids"]
    head = given.module.get_output_embeddings()
    tied = name == "t5" and given.module.config.tie_word_embeddings
    scale = given.module.config.d_model**-0.5 if tied else 1.0
    expected = by_hand(given, NORMS[name](given.module), scale, head)
    view = logit_lens_any(given, ids, words=words, k=3)
    assert view.layers == len(expected) == 3
    top = expected[-1].argmax(-1)
    for layer, logprobs in enumerate(expected):
        own = logprobs.gather(-1, top[..., None])[..., 0]
        np.testing.assert_allclose(view.logprob[:, layer], own, rtol=2e-4, atol=2e-4)
        np.testing.assert_array_equal(view.top[:, layer, :, 0], logprobs.argmax(-1))
        divergence = (expected[-1].exp() * (expected[-1] - logprobs)).sum(-1)
        np.testing.assert_allclose(view.kl[:, layer], divergence, rtol=1e-3, atol=1e-4)


def test_what_is_behind_an_examples_own_tokens_is_not_read():
    given = trial("whisper")
    ids = given.clean["decoder_input_ids"]
    lengths = [ids.shape[1] - 1 - (number % 2) for number in range(given.count)]
    view = logit_lens_any(replace(given, lengths={"decoder": lengths}), ids, words=words)
    for number, many in enumerate(lengths):
        assert np.isfinite(view.kl[number, :, :many]).all()
        assert np.isnan(view.kl[number, :, many:]).all()
        assert len(view.tokens[number]) == many


def test_a_module_whose_logits_are_no_norm_and_unembedding_is_refused():
    given = trial("whisper")
    module = given.module

    class Bent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def get_output_embeddings(self):
            return module.proj_out

        def forward(self, **inputs):
            output = self.inner(**inputs)
            output.logits = output.logits.tanh()
            return output

    bent = Trial(Bent().eval(), given.clean, given.corrupt, given.metric, given.count)
    with pytest.raises(NotProved, match="output embedding"):
        logit_lens_any(bent, given.clean["decoder_input_ids"], words=words, stack="inner_decoder")


def test_refusals():
    given = trial("whisper")
    ids = given.clean["decoder_input_ids"]
    with pytest.raises(UnknownName, match="run"):
        logit_lens_any(given, ids, words=words, run="dirty")
    with pytest.raises(UnknownName, match="stack"):
        logit_lens_any(given, ids, words=words, stack="decodr")
    with pytest.raises(BadInput, match="lengths"):
        logit_lens_any(replace(given, lengths={"decoder": [0] * given.count}), ids, words=words)
    with pytest.raises(BadInput, match="give the tokens"):
        logit_lens_any(given, ids, words=words, stack="encoder")
    with pytest.raises(BadInput, match="ids of shape"):
        logit_lens_any(given, ids[:1], words=words)
