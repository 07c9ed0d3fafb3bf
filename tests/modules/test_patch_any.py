"""patch_any: every architecture, every kind of site, as plain hooks and whole forwards give it; and its refusals."""

import numpy as np
import pytest
import torch
from torch import nn

import crosspatch as xp
from crosspatch.core.errors import BadInput, MemoryShortage, NotFinite, UnknownName
from crosspatch.sites import Site
from modules.by_hand import ByHand
from modules.families import family, measure, page_rows, rows
from modules.trials import CASES, trial
from naive.modules import hook, seen
from zoo_any_parts import numbers

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, about names that it will change
STACKS = {
    **{name: {"encoder": 2, "decoder": 2} for name in ("whisper", "t5", "bart")},
    **{name: {"": 2} for name in ("bert", "bert without a head", "vit", "mamba", "cnn")},
    **{name: {"vision": 2, "text": 2} for name in ("clip", "siglip")},
    "llava": {"vision": 3, "language": 2},
    "qwen2_vl": {"visual": 2, "language": 2},
    "mllama": {"vision": 2, "vision_global_transformer": 1, "language": 3},
    "unet": {"down": 1, "mid": 1, "up": 2},
    "sd3": {"": 3},
    "mlp": {"": 3},
    "gru": {"": 4},
    "actor critic": {"": 6},
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_site_of_every_architecture(name):
    """The stacks are found; capture, write and sweep of each kind are those of plain hooks, and the page says so."""
    given, found = trial(name), measure(name)
    assert {stack.name: stack.layers for stack in given.stacks} == STACKS[name]
    assert not any(stack.refused for stack in given.stacks)
    assert not found.failures
    told = "docs/any-model.md says something else: `python docs/families.py` writes its table anew"
    assert page_rows(family(name)) == rows(name, found), told


@pytest.mark.parametrize("name", CASES)
def test_heads_are_where_a_person_reads_them(name):
    """Every projection of the zoo's own table has its place, cut as the table says; some places of ours it lacks."""
    found = {
        (place.spot.path, place.spot.side, start): place.width
        for stack in trial(name).stacks
        for layer in stack.places
        for place in layer.values()
        for start in place.starts
    }
    for stack in CASES[name].stacks.values():
        for block in stack.blocks:
            for spot in stack.parts.values():
                path = ".".join(piece for piece in (stack.path, str(block), spot.path) if piece)
                for head in range(spot.n_heads):
                    assert found[path, spot.side, spot.start + head * spot.d_head] == spot.d_head, (path, head)


@pytest.mark.parametrize("name", ["whisper", "unet", "qwen2_vl", "gru"])
def test_the_base_runs_own_values_change_nothing(name):
    given = trial(name)
    same = xp.Trial(given.module, given.clean, given.clean, given.metric, 2)
    effects = xp.patch_any(same, sites=f"{given.stacks[-1].kind('resid.post')}[-1]")
    assert np.abs(effects.raw).max() < 1e-4 * max(1.0, np.abs(effects.base).max())


def test_noise_is_the_other_way():
    given = trial("whisper")
    effects = xp.patch_any(given, sites="decoder.cross.head[1, 2]@3", direction="noise")
    expected = ByHand(given, "noise").effect(effects.sites[0])
    np.testing.assert_allclose(effects.raw[0], expected, atol=1e-4 * np.abs(effects.gap).max())
    np.testing.assert_array_equal(effects.base, xp.patch_any(given, sites="encoder.resid.pre[0]@0").source)


def test_groups_are_written_in_one_run():
    """All four cross-attention heads of a layer at all positions are that layer's cross-attention."""
    plain = trial("whisper")
    other = {**plain.clean, "input_features": plain.corrupt["input_features"]}
    given = xp.Trial(plain.module, plain.clean, other, plain.metric, 2)
    heads = xp.Group("heads", tuple(Site("decoder.cross.head", 0, head, "all") for head in range(4)))
    both = xp.Group("both", (Site("encoder.resid.post", 1, None, "all"), Site("decoder.mlp.out", 1, None, 2)))
    effects = xp.patch_any(given, sites=[heads, Site("decoder.cross.out", 0, None, "all"), both])
    np.testing.assert_allclose(effects.raw[0], effects.raw[1], atol=1e-4 * np.abs(effects.gap).max())
    # The encoder's last block is all that the audio acts through.
    np.testing.assert_allclose(effects.raw[2], effects.gap, atol=1e-4 * np.abs(effects.gap).max())


def test_names_lengths_and_padding():
    """Positions have names and count from each example's end; padding of the second example is left out."""
    plain = trial("t5")
    length = plain.clean["input_ids"].shape[1]
    real = plain.clean["attention_mask"].sum(1).tolist()
    assert real[1] < real[0] == length
    how = {"names": {"word": [2, 3]}, "lengths": {"encoder": real}}
    given = xp.Trial(plain.module, plain.clean, plain.corrupt, plain.metric, 2, **how)
    effects = xp.patch_any(given, sites="encoder.resid.pre[0]@*|word|-1|all")
    places = [site.position for site in effects.sites]
    assert np.isnan(effects.raw[places.index(length - 1)]).tolist() == [False, True]
    word, second, third, last = (effects.raw[places.index(at)] for at in ("word", 2, 3, -1))
    assert word.tolist() == [second[0], third[1]]
    assert last[1] == effects.raw[places.index(real[1] - 1), 1]
    everything = xp.patch_any(plain, sites="encoder.resid.pre[0]@all").raw[0]
    np.testing.assert_allclose(effects.raw[places.index("all")], everything, atol=1e-4 * np.abs(everything).max())


def test_a_metric_may_ask_which_examples_it_sees():
    right, plain = torch.tensor([5, 9]), trial("whisper")
    told = lambda output, rows: output.logits[torch.arange(len(rows)), -1, right[rows]]  # noqa: E731
    given = xp.Trial(plain.module, plain.clean, plain.corrupt, told, 2)
    effects = xp.patch_any(given, sites="decoder.mlp.out[0]@1")
    for example, token in enumerate(right.tolist()):
        alone = xp.Trial(plain.module, plain.clean, plain.corrupt, lambda o, t=token: o.logits[:, -1, t], 2)
        found = xp.patch_any(alone, sites="decoder.mlp.out[0]@1").raw[0, example]
        assert effects.raw[0, example] == pytest.approx(found, abs=1e-6)
    by_place = xp.Trial(plain.module, plain.clean, plain.corrupt, lambda o: o.logits[torch.arange(2), -1, right], 2)
    with pytest.raises(BadInput, match="its metric reads them by their places"):
        xp.patch_any(by_place, sites="decoder.mlp.out[0]@1")


def policy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).eval()


def of_policy():
    return xp.Trial(policy(), numbers(1, 2, 6), numbers(2, 2, 6), lambda output: output[:, 0], 2)


class Denoiser(nn.Module):
    """A loop of denoising steps around a submodule, as a pipeline has it."""

    def __init__(self):
        super().__init__()
        self.step = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x):
        for _ in range(5):
            x = x - 0.3 * self.step(x)
        return x


def test_steps_of_a_loop():
    """A submodule that is called at each step is patched at one of them, or at all."""
    torch.manual_seed(0)
    module = Denoiser().eval()
    given = xp.Trial(module, numbers(1, 3, 4), numbers(2, 3, 4), lambda output: output[:, 0], 3)
    site = "resid.post[-1]@all"
    every = xp.patch_any(given, sites=site)
    calls = [xp.patch_any(given, sites=site, step=k).raw[0] for k in range(5)]
    steps = seen(module, {"x": given.clean}, "step.2", "output")
    for k, found in enumerate(calls):
        count = iter(range(9))
        put = lambda value, k=k, count=count: steps[k] if next(count) == k else value  # noqa: E731
        handle = hook(module.step[2], "output", None, put)
        with torch.no_grad():
            expected = module(given.corrupt.clone())[:, 0].numpy() - every.base
        handle.remove()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(every.raw[0] - sum(calls)).max() < np.abs(every.gap).max()
    with pytest.raises(BadInput, match="is called 5 times in the base run, so it has no call 5"):
        xp.patch_any(given, sites=site, step=5)


class Summing(nn.Linear):
    """Adds up what was, over time: [time, example, feature]."""

    def forward(self, x):
        return super().forward(x).tanh() + x.cumsum(0)


class TimeFirst(nn.Module):
    """Its blocks have time before examples, as recurrent modules used to."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Summing(3, 3), Summing(3, 3)])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x.transpose(0, 1)))[-1]


def test_examples_on_another_axis():
    """Four times of two examples: only by running another number of examples is it seen which axis is which."""
    torch.manual_seed(0)
    module = TimeFirst().eval()
    given = xp.Trial(module, numbers(1, 2, 4, 3), numbers(2, 2, 4, 3), lambda output: output @ torch.ones(3), 2)
    effects = xp.patch_any(given, sites="resid.pre[1]@1, resid.post[0]@1")
    with torch.no_grad():
        clean, corrupt = (module.blocks[0](x.transpose(0, 1)) for x in (given.clean, given.corrupt))
        corrupt[1] = clean[1]
        expected = given.metric(module.blocks[1](corrupt)[-1]).numpy() - effects.base
    np.testing.assert_allclose(effects.raw, [expected, expected], atol=1e-5)
    assert np.abs(expected).min() > 0.1
    with pytest.raises(UnknownName, match="it has 4 positions"):
        xp.patch_any(given, sites="resid.pre[1]@4")


def test_maps_in_one_dimension():
    """Positions of a convolution's output are times, its columns channels."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Tanh(), nn.Conv1d(8, 5, 3), nn.Flatten(), nn.Linear(25, 2)).eval()
    given = xp.Trial(module, numbers(1, 2, 3, 9), numbers(2, 2, 3, 9), lambda output: output[:, 0], 2)
    (captured,) = xp.capture_any(given, "resid.post[0]").values()
    with torch.no_grad():
        expected = module[0](given.clean).transpose(1, 2)
    torch.testing.assert_close(captured, expected)
    effects = xp.patch_any(given, sites="resid.post[0]")
    assert [site.position for site in effects.sites] == list(range(7))
    whole = xp.patch_any(given, sites="resid.post[0]@all").raw[0]
    np.testing.assert_allclose(whole, effects.gap, atol=1e-5)


def test_few_rows_at_once_and_many_give_the_same():
    given = trial("whisper")
    wide, narrow = (xp.patch_any(given, sites="decoder.resid.pre", rows=rows) for rows in (64, 3))
    np.testing.assert_allclose(wide.raw, narrow.raw, atol=1e-5 * np.abs(wide.raw).max())
    assert narrow.provenance["settings"]["runs"] > 2 * wide.provenance["settings"]["runs"]


def test_short_memory_halves_the_rows(monkeypatch):
    """Out of memory is met by half of the rows; not even one is an error."""
    given = of_policy()
    expected = xp.patch_any(given, sites="resid.post").raw
    whole, most = nn.Linear.forward, [2]

    def forward(self, x):
        if len(x) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)

    effects = xp.patch_any(given, sites="resid.post", rows=6)
    np.testing.assert_allclose(effects.raw, expected, atol=1e-6)


def test_short_memory_in_a_proof_is_not_taken_for_a_module_that_cannot_be_reused(monkeypatch):
    def short(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("crosspatch.modules.sweeping.replay", short)
    with pytest.raises(MemoryShortage, match="pairs at once do not fit"):
        xp.patch_any(of_policy(), sites="resid.post")


def test_captured_values_are_the_modules_own():
    given = trial("whisper")
    found = xp.capture_any(given, "encoder.resid.post[1], decoder.cross.head[0, 2]@3")
    (stream, head) = found.values()
    with torch.no_grad():
        expected = given.module.model.encoder(given.clean["input_features"], output_hidden_states=True)
    normed = given.module.model.encoder.layer_norm(stream)
    torch.testing.assert_close(normed, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    assert list(head.shape) == [2, 1, 8]
    with pytest.raises(UnknownName, match="corrupt"):
        xp.capture_any(given, "encoder.resid.post[1]", run="dirty")


def test_results_are_like_any_others(tmp_path):
    """A grid, a frame's rows, a page, a folder."""
    given = trial("whisper")
    effects = xp.patch_any(given, sites="encoder.resid.post, decoder.cross.head")
    assert effects.grid("encoder.resid.post").values.shape == (2, 12)
    assert effects.grid("decoder.cross.head").values.shape == (2, 4)
    again = xp.load(effects.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.raw, effects.raw)
    assert again.sites == effects.sites
    page = effects.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "decoder.cross.head" in page
    assert "WhisperForConditionalGeneration" in page


@pytest.mark.parametrize(
    ("sites", "error", "words"),
    [
        ("resid.post", UnknownName, ["resid.post", "encoder.resid.post"]),
        ("decoder.cross.haed", UnknownName, ["decoder.cross.haed"]),
        ("encoder.cross.head", UnknownName, ["encoder.cross.head", "decoder.cross.head"]),
        ("encoder.resid.post[7]", UnknownName, ["7", "layers 0..1"]),
        ("decoder.cross.head[0, 4]", UnknownName, ["4", "heads 0..3"]),
        ("decoder.resid.pre[0]@7", UnknownName, ["position 7", "7 positions"]),
        ("decoder.resid.pre[0]@word", UnknownName, ["word"]),
        ([xp.Group("cut", (xp.Edge(0, 1, 2),))], BadInput, ["cutting attention", "decoder-only"]),
    ],
)
def test_sites_that_are_not_there(sites, error, words):
    with pytest.raises(error) as caught:
        xp.patch_any(trial("whisper"), sites=sites)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_a_trial_refuses():
    module, x = policy(), numbers(0, 2, 6)
    first = lambda output: output[:, 0]  # noqa: E731
    with pytest.raises(BadInput, match=r"shapes \[\(2, 6\)\].*\[\(3, 6\)\]"):
        xp.Trial(module, x, numbers(0, 3, 6), first, 2)
    with pytest.raises(BadInput, match="0 pairs"):
        xp.Trial(module, x, x, first, 0)
    with pytest.raises(BadInput, match="'word' has 3 entries for 2 pairs"):
        xp.Trial(module, x, x, first, 2, names={"word": [1, 2, 3]})
    with pytest.raises(BadInput, match=r"\.eval\(\)"):
        xp.Trial(nn.Sequential(nn.Linear(6, 4)), x, x, first, 2)
    given = xp.Trial(module, x, numbers(3, 2, 6), first, 2)
    with pytest.raises(BadInput, match="direction 'sideways'"):
        xp.patch_any(given, sites="resid.post", direction="sideways")
    with pytest.raises(BadInput, match="rows=0"):
        xp.patch_any(given, sites="resid.post", rows=0)


@pytest.mark.parametrize(
    ("metric", "error", "words"),
    [
        (lambda output: output, BadInput, r"the metric gave \[2, 4\] for 2 examples"),
        (lambda output: output[:, 0].tolist(), BadInput, "the metric gave list"),
        (lambda output: output[:, 0] / torch.tensor([1.0, 0.0]), NotFinite, "is not finite on example 1"),
    ],
)
def test_metrics_that_give_no_number_an_example(metric, error, words):
    given = xp.Trial(policy(), numbers(1, 2, 6), numbers(2, 2, 6), metric, 2)
    with pytest.raises(error, match=words):
        xp.patch_any(given, sites="resid.post[0]")


class Mixed(nn.Module):
    """Mixes its examples, as a batch norm in training would."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x) - x.mean(0) * x[:1].mean())


class Listing(nn.Module):
    """Its first block hands something on beside its output: it appends to a list."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Noting(), nn.Linear(4, 4)])

    def forward(self, x):
        notes = []
        hidden = self.blocks[0](x, notes)
        return self.blocks[1](hidden) + sum(notes)


class Noting(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x, notes):
        notes.append(x * 2)
        return super().forward(x)


def test_modules_whose_examples_depend_on_each_other_are_refused():
    given = xp.Trial(Mixed().eval(), numbers(1, 2, 4), numbers(2, 2, 4), lambda output: output[:, 0], 2)
    with pytest.raises(BadInput, match="in another order or number"):
        xp.patch_any(given, sites="resid.post[0]")


def test_what_cannot_be_reused_is_run_whole():
    """The proof sees that a list was not filled: nothing is reused there, with a warning, and the numbers are right."""
    torch.manual_seed(0)
    module = Listing().eval()
    runs = [{"x": numbers(seed, 2, 4)} for seed in (1, 2)]
    given = xp.Trial(module, *runs, lambda output: output[:, 0], 2)
    effects = xp.patch_any(given, sites="resid.pre[1]@all")
    assert "Nothing could be reused at blocks.1" in effects.warnings[0]
    np.testing.assert_allclose(effects.raw[0], ByHand(given).effect(effects.sites[0]), atol=1e-5)


def test_heads_that_are_cut_in_another_way_are_refused():
    """The number of heads that a module states is checked on the module itself."""
    given = trial("vit")
    part = given.module.vit.layers[0].attention
    stated = {name: getattr(part, name) for name in ("num_heads", "num_attention_heads") if hasattr(part, name)}
    try:
        for name in stated:
            setattr(part, name, 8)
        stack = xp.Trial(given.module, given.clean, given.corrupt, given.metric, 2).stacks[0]
    finally:
        for name, value in stated.items():
            setattr(part, name, value)
    if "attn.head" in stack.refused:
        assert "wiping out one of its 8 units" in stack.refused["attn.q"]
    else:
        pytest.fail(f"8 heads were believed: {stack.extent}")
