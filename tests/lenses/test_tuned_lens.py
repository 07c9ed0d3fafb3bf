"""Tuned lens: zero steps are the logit lens, training is its twin's and helps held-out prompts, no weight changes."""

import json

import numpy as np
import pytest
import torch

from crosspatch.core.errors import BadInput, CorruptFile, MissingExtra, NotFinite, NotProved
from crosspatch.lenses import TunedLens, logit_lens, train_tuned_lens
from crosspatch.lenses.tuning import split_prompts
from crosspatch.models import open_model
from handmade import handmade
from naive.lenses import ENDS, divergences, tuned
from zoo import VOCAB, fresh, opened


def random_prompts(n, length, *, seed=0):
    drawn = torch.randint(3, VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))
    return [tuple(row) for row in drawn.tolist()]


MANY = random_prompts(40, 12)
LEVEL = random_prompts(10, 32)  # eight to train on hold 256 tokens: each step reads all of them


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_zero_steps_are_the_logit_lens(name):
    """To the bit, at every layer."""
    model = opened(name)
    lens = train_tuned_lens(model, MANY, steps=0)
    plain, same = (logit_lens(model, MANY[:5], at="all", lens=each) for each in (None, lens))
    for part in ("logprob", "kl", "entropy", "top", "top_logprob"):
        np.testing.assert_array_equal(getattr(same, part), getattr(plain, part))
    np.testing.assert_array_equal(lens.after, lens.before)
    assert (plain.lens, same.lens) == ("logit lens", "tuned lens")


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "cohere"])
def test_training_is_the_twins(name):
    """Full-batch Adam on transformers' hidden states: the same maps, and the same divergence on held-out prompts."""
    lens = train_tuned_lens(opened(name), LEVEL, steps=4, rate=0.05)
    kept, held = split_prompts(LEVEL, 0.2, seed=0)
    maps = tuned(name, kept, steps=4, rate=0.05)
    for layer, (a, b) in enumerate(maps):
        # Adam divides each gradient by its own size: entries whose gradient is nearly zero follow rounding
        assert np.quantile(np.abs(lens.weights[layer] - a.numpy()), 0.98) < 0.02 * np.abs(a.numpy()).max()
        np.testing.assert_allclose(lens.biases[layer], b.numpy(), atol=0.02 * float(b.abs().max()))
    for place, ids in enumerate(held):
        np.testing.assert_allclose(lens.before[:, place], divergences(name, ids), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(lens.after[:, place], divergences(name, ids, maps), rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_held_out_divergence_falls_at_every_layer(name):
    """On prompts that were not trained on, and the interval of the change lies below zero."""
    lens = train_tuned_lens(opened(name), random_prompts(200, 12), steps=30)
    _, _, high = lens.change()
    assert (high < 0).all()
    view, plain = (logit_lens(opened(name), random_prompts(8, 12, seed=7), at="all", lens=e) for e in (lens, None))
    assert (view.by_layer("kl")[0][:-1] < plain.by_layer("kl")[0][:-1]).all()
    np.testing.assert_array_equal(view.top[:, -1], plain.top[:, -1])  # the last layer is not translated


def test_the_model_is_left_as_it_is():
    """No weight changes, none gets a gradient, each asks for one as before."""
    module = fresh("llama")
    model = open_model(module)
    module.model.norm.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    asked = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    train_tuned_lens(model, MANY, steps=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert {name: parameter.requires_grad for name, parameter in module.named_parameters()} == asked
    assert len(set(asked.values())) == 2


def test_the_seed_decides():
    """The same seed gives the same lens to the bit; another one another."""
    first, second, other = (train_tuned_lens(opened("gpt2"), MANY, steps=3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.weights, second.weights)
    assert (first.weights != other.weights).any()


def test_parts_of_a_batch_add_up(monkeypatch):
    """A row decoded at a time gives the gradients of all rows together."""
    together = train_tuned_lens(opened("gpt2"), LEVEL, steps=2)
    monkeypatch.setattr("crosspatch.lenses.decoding.BYTES", 4 * VOCAB * 50)
    apart = train_tuned_lens(opened("gpt2"), LEVEL, steps=2)
    np.testing.assert_allclose(apart.after, together.after, rtol=1e-3)


def test_no_prompt_is_on_both_sides():
    """However often it is given."""
    kept, held = split_prompts([*MANY, *MANY[:20]], 0.25, seed=3)
    assert not set(kept) & set(held)
    assert sorted((*kept, *held)) == sorted(MANY)
    assert len(held) == 10


def test_it_is_saved_and_belongs_to_one_model(tmp_path):
    """The folder holds safetensors and JSON with the model's hash; another model is refused."""
    model = opened("gpt2")
    lens = train_tuned_lens(model, MANY, steps=2)
    folder = lens.save(tmp_path / "lens")
    assert json.loads((folder / "meta.json").read_text())["meta"]["model_hash"] == model.fingerprint
    back = TunedLens.load(folder, model)
    assert repr(back) == repr(lens)
    np.testing.assert_array_equal(
        logit_lens(model, MANY[:2], lens=back).top_logprob, logit_lens(model, MANY[:2], lens=lens).top_logprob
    )
    other = open_model(fresh("gpt2", n_layer=2))
    with pytest.raises(BadInput, match="was trained on"):
        TunedLens.load(folder, other)
    with pytest.raises(BadInput, match="was trained on"):
        logit_lens(other, MANY[:2], lens=back)
    logit_lens(model, MANY[:2]).save(tmp_path / "view")
    with pytest.raises(CorruptFile, match="no tuned lens"):
        TunedLens.load(tmp_path / "view")


def test_it_shows_itself(monkeypatch):
    """A table with a row a layer, as text, HTML without script, pandas and JSON."""
    lens = train_tuned_lens(opened("gpt2"), MANY, steps=2)
    assert len(lens) == 3
    assert lens._repr_html_().count("<tr>") == 4
    assert "<script" not in lens._repr_html_()
    frame = lens.to_frame()
    assert frame[(frame.layer == 1) & (frame.prompt == 4)].after.item() == lens.after[1, 4]
    told = lens.summary()
    assert told["layers"][2]["change"][0] == pytest.approx(float(lens.change()[0][2]))
    json.dumps(told)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtra, match="pandas"):
        lens.to_frame()


def test_what_cannot_be_trained_is_refused():
    """Each with what to do."""
    model = opened("gpt2")
    for given in ({"steps": -1}, {"rate": 0.0}):
        with pytest.raises(BadInput, match="rate above zero"):
            train_tuned_lens(model, MANY, **given)
    for prompts, share in ((MANY, 0.0), (MANY, 1.0), (MANY, 0.01), (MANY[:3], 0.5), ([MANY[0]] * 20, 0.5)):
        with pytest.raises(BadInput, match="held_out"):
            train_tuned_lens(model, prompts, held_out=share)
    with pytest.raises(NotProved):
        train_tuned_lens(open_model(handmade(odd_head=True)), MANY)


def test_a_loss_that_is_no_number_is_refused():
    """A token whose embedding overflows, which opening the model did not meet."""
    module = fresh("llama")
    model = open_model(module)
    with torch.no_grad():
        module.model.embed_tokens.weight[96] = torch.inf
    with pytest.raises(NotFinite, match="lower the rate"):
        train_tuned_lens(model, [(*ids[:-1], 96) for ids in LEVEL], steps=1)


def test_the_twin_knows_each_end():
    """The families of the twin are of the zoo, and one of them has a soft cap, one a scale."""
    found = {opened(name).anatomy.readout.softcap for name in ENDS}, {opened(n).anatomy.readout.scale for n in ENDS}
    assert found == ({0.0, 5.0}, {1.0, 0.5, 2.0})


@pytest.mark.gemma
def test_gemma_learns_in_one_step():
    """A step of a few words: on other words all layers but the last, which is near already, come nearer."""
    try:
        model = open_model("gemma-3-270m")
    except MissingExtra as missing:
        pytest.skip(str(missing))
    lens = train_tuned_lens(model, ["The cat sat", "Two and two", "Rain fell", "I like"], steps=1, held_out=0.5)
    assert (lens.after.mean(axis=1) < lens.before.mean(axis=1))[:-1].all()
