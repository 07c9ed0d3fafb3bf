"""Direct logit attribution: the parts add up on every family, and each part is what brute force says."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from builders_gemma import gemma
from crosspatch.attribution import Decomposition, direct, gather
from crosspatch.core.errors import BadInput, ManyTokenAnswer, NotProved, UnknownName
from crosspatch.models import open_model
from naive.attribution import attribution
from naive.families import activation
from zoo import ZOO, fresh, make_pair, make_task, module_of, opened, uneven

TASK = make_task(*uneven())
LEVEL = make_task(make_pair(9, (3, 7)), make_pair(9, (3, 6), seed=3))
GRAINS = ("component", "head", "neuron", "token")
RIGHT, WRONG = 5, 7
SPLIT = tuple(name for name, beast in ZOO.items() if not beast.own_attention)


@cache
def found(name, by="head", run="clean", answer="diff", dtype=torch.float32):
    return direct(opened(name, dtype), TASK, by=by, run=run, answer=answer)


def offers(name, by):
    beast = ZOO[name]
    return not ((by == "neuron" and "mlp.hidden" not in beast.spots) or (by == "token" and beast.own_attention))


def fine(name):
    """Double precision, but for mixtures of experts, whose kernels have none."""
    return torch.float64 if "mlp.hidden" in ZOO[name].spots else torch.float32


@torch.no_grad()
def own_difference(name, ids, dtype=torch.float32):
    logits = module_of(name, dtype)(torch.tensor([ids])).logits[0, -1].double()
    return float(logits[RIGHT] - logits[WRONG])


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("by", GRAINS)
def test_parts_sum_to_the_logit(name, by):
    """On every family and grain; a grain that a family cannot offer is refused with a reason."""
    if not offers(name, by):
        with pytest.raises(BadInput, match="cannot be used on this"):
            found(name, by)
        return
    result = found(name, by)
    assert result.check() == result.error < 1e-5
    np.testing.assert_allclose(result.sums + result.residual, result.logits, rtol=1e-12)
    expected = [own_difference(name, pair.clean) for pair in TASK.pairs]
    np.testing.assert_allclose(result.shown, expected, atol=1e-5)
    if not result.softcap:
        np.testing.assert_allclose(result.sums, expected, atol=1e-4 * result.scale)
    assert not set(result.whole) - {"embed"}


# The twin: frozen norms written out by hand, parts taken one at a time through the zoo's own table of modules.


def held(norm, x):
    """Return the linear part of a norm with its scale at x, and its bias."""
    kind, weight = type(norm).__name__, norm.weight.detach().double()
    weight = weight + 1 if kind.startswith("Gemma") else weight
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    centre = (lambda v: v) if "RMS" in kind else (lambda v: v - v.mean(-1, keepdim=True))
    scale = (centre(x).pow(2).mean() + eps).rsqrt()
    bias = getattr(norm, "bias", None)
    return (lambda v: centre(v) * scale * weight), torch.zeros_like(x) if bias is None else bias.detach().double()


@torch.no_grad()
def twin(name, ids):
    """Return {part: share} of right minus wrong."""
    beast, module, model = ZOO[name], module_of(name, fine(name)), opened(name, fine(name))
    readout, last = model.anatomy.readout, len(ids) - 1

    def read(kind, layer):
        return activation(name, kind, layer, tuple(ids), fine(name))[last]

    stream, (path,) = read("resid.post", len(module.get_submodule(beast.blocks)) - 1), readout.norms
    linear, bias = held(module.get_submodule(path), stream.double())
    unembed = module.get_submodule(readout.unembed)
    aim = (unembed.weight[RIGHT] - unembed.weight[WRONG]).double() * readout.scale
    shares = {"norm.bias": float(aim @ bias), "embed": float(aim @ linear(read("resid.pre", 0).double()))}
    if getattr(unembed, "bias", None) is not None:
        shares["unembed.bias"] = float(unembed.bias[RIGHT] - unembed.bias[WRONG]) * readout.scale
    for layer, block in enumerate(module.get_submodule(beast.blocks)):
        z, project = read("attn.head", layer), block.get_submodule(beast.spots["attn.head"][0])
        nothing, (behind, _) = project(torch.zeros_like(z)), beast.spots["attn.out"]
        post = (lambda v: v, torch.zeros_like(stream).double())
        if "norm" in behind:
            post = held(block.get_submodule(behind), project(z).double())
        for head in range(4):
            alone, columns = torch.zeros_like(z), beast.columns("attn.head", head)
            alone[columns] = z[columns]
            shares[f"attn.head[{layer}, {head}]"] = float(aim @ linear(post[0]((project(alone) - nothing).double())))
        shares[f"attn.bias[{layer}]"] = float(aim @ linear(post[0](nothing.double()) + post[1]))
        shares[f"mlp.out[{layer}]"] = float(aim @ linear(read("mlp.out", layer).double()))
    return shares


@pytest.mark.parametrize("name", ZOO)
def test_heads_are_what_brute_force_says(name):
    """Each head, bias and MLP of each prompt, against norms and projections written out by hand."""
    result = found(name, "head", dtype=fine(name))
    for row, pair in enumerate(TASK.pairs):
        ours = {str(part): float(values[row]) for part, values in zip(result.parts, result.values, strict=True)}
        if "embed.token" in ours:
            ours["embed"] = ours.pop("embed.token") + ours.pop("embed.position")
        theirs = twin(name, pair.clean)
        assert set(ours) <= set(theirs)
        for part, share in theirs.items():
            assert ours.get(part, 0.0) == pytest.approx(share, abs=2e-6 * result.scale), part


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2", "gemma3", "olmo2"])
def test_heads_are_what_their_absence_says(name):
    """A second twin: take a component out of the last stream and read the right answer's logit again."""
    result, model = found(name, "head", answer="right", dtype=torch.float64), opened(name, torch.float64)
    for row, pair in enumerate(TASK.pairs):
        theirs = attribution(model.module, model.anatomy, pair.clean, RIGHT)
        for (kind, layer, head), share in theirs.items():
            if kind in ("attn.head", "mlp.out"):
                text = f"{kind}[{layer}]" if head is None else f"{kind}[{layer}, {head}]"
                assert result[text][row] == pytest.approx(share, abs=2e-6 * result.scale)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt", "bloom"])
def test_finer_grains_add_up_to_coarser_ones(name):
    """Heads and the bias are attention's part; neurons and theirs the MLP's."""
    whole = found(name, "component")
    for by, unit, bias, part in (
        ("head", "attn.head", "attn.bias", "attn.out"),
        ("neuron", "mlp.hidden", "mlp.bias", "mlp.out"),
    ):
        fine = found(name, by)
        for layer in range(3):
            mine = [i for i, each in enumerate(fine.parts) if each.layer == layer and each.kind in (unit, bias)]
            assert len(mine) >= 4
            np.testing.assert_allclose(fine.values[mine].sum(0), whole[f"{part}[{layer}]"], atol=1e-5 * whole.scale)


@torch.no_grad()
def test_a_neuron_is_its_activation_times_its_column():
    """Llama, where nothing stands between a neuron's column and the stream."""
    module, result = module_of("llama", torch.float64), found("llama", "neuron", dtype=torch.float64)
    pair = TASK.pairs[0]
    stream = activation("llama", "resid.post", 2, pair.clean, torch.float64)[-1]
    linear, _ = held(module.model.norm, stream)
    aim = module.lm_head.weight[RIGHT] - module.lm_head.weight[WRONG]
    hidden = activation("llama", "mlp.hidden", 1, pair.clean, torch.float64)[-1]
    for neuron in (0, 17, 47):
        share = hidden[neuron] * (aim @ linear(module.model.layers[1].mlp.down_proj.weight[:, neuron]))
        assert result[f"mlp.hidden[1, {neuron}]"][0] == pytest.approx(float(share), abs=1e-6)


@pytest.mark.parametrize("name", SPLIT)
def test_tokens_add_up_to_heads(name):
    """Split by index where layouts agree and by name where they do not, all tokens together are the head."""
    for task in (LEVEL, TASK):
        heads, tokens = direct(opened(name), task, by="head"), direct(opened(name), task, by="token")
        for layer, head in ((0, 0), (1, 2), (2, 3)):
            mine = [
                i
                for i, part in enumerate(tokens.parts)
                if (part.kind, part.layer, part.unit) == ("attn.head", layer, head)
            ]
            np.testing.assert_allclose(
                np.nansum(tokens.values[mine], axis=0), heads[f"attn.head[{layer}, {head}]"], atol=1e-5 * heads.scale
            )


def test_sources_are_indices_or_names():
    """Prompts of one layout have a part a token; prompts of several, a part a shared name and one for the rest."""
    level, mixed = direct(opened("llama"), LEVEL, by="token"), found("llama", "token")
    assert [p.position for p in level.parts if (p.layer, p.unit) == (0, 0)] == list(range(9))
    assert [p.position for p in mixed.parts if (p.layer, p.unit) == (0, 0)] == ["mid", "end", "elsewhere"]
    assert str(mixed.parts[1]) == "attn.head[0, 0] from mid"


def test_a_source_within_a_window_only():
    """Mistral's window of 4 leaves nothing to tokens farther back."""
    result = direct(opened("mistral"), LEVEL, by="token")
    far = [i for i, part in enumerate(result.parts) if isinstance(part.position, int) and part.position < 5]
    near = [i for i, part in enumerate(result.parts) if isinstance(part.position, int) and part.position >= 5]
    assert np.abs(result.values[far]).max() == 0
    assert (np.abs(result.values[near]).max(axis=1) > 0).all()


def test_positions_have_a_part_where_they_are_added():
    """GPT-2 adds position embeddings, Llama none; BLOOM mixes both in a norm and keeps them together."""
    kinds = {name: {part.kind for part in found(name).parts} for name in ("gpt2", "llama", "bloom")}
    assert {"embed.token", "embed.position"} <= kinds["gpt2"]
    assert "embed" in kinds["llama"] & kinds["bloom"]
    assert "embed" in found("bloom").whole
    assert not found("llama").whole


@torch.no_grad()
def test_embedding_parts_are_the_tables():
    """GPT-2's two parts are its two tables' rows."""
    module, result = module_of("gpt2", torch.float64), found("gpt2", dtype=torch.float64)
    for row, pair in enumerate(TASK.pairs):
        linear, _ = held(module.transformer.ln_f, activation("gpt2", "resid.post", 2, pair.clean, torch.float64)[-1])
        aim = module.lm_head.weight[RIGHT] - module.lm_head.weight[WRONG]
        token, place = module.transformer.wte.weight[pair.clean[-1]], module.transformer.wpe.weight[len(pair.clean) - 1]
        assert result["embed.token"][row] == pytest.approx(float(aim @ linear(token)), abs=1e-9)
        assert result["embed.position"][row] == pytest.approx(float(aim @ linear(place)), abs=1e-9)


def test_soft_cap_is_said_and_left_out():
    """Gemma 2: the parts add up before the cap; the capped logit is beside them."""
    right = found("gemma2", answer="right")
    np.testing.assert_allclose(5.0 * np.tanh(right.logits / 5.0), right.shown, rtol=1e-5)
    assert np.abs(right.logits - right.shown).max() > 1e-3
    assert any("before the soft cap of 5" in note for note in right.notes())
    assert not any("soft cap" in note for note in found("llama").notes())


def test_difference_is_right_minus_wrong():
    """Part by part."""
    diff, right, wrong = (found("gemma3", answer=answer) for answer in ("diff", "right", "wrong"))
    np.testing.assert_allclose(diff.values, right.values - wrong.values, atol=1e-6 * right.scale)


def test_several_answers_count_by_their_mean():
    """Two right answers against one wrong."""
    task = make_task(make_pair(9, (3,), right=((5,), (9,)), wrong=((7,),)))
    both = direct(opened("llama"), task)
    one, other = (direct(opened("llama"), make_task(make_pair(9, (3,), right=((t,),), wrong=((7,),)))) for t in (5, 9))
    np.testing.assert_allclose(both.values, (one.values + other.values) / 2, atol=1e-6)


def test_corrupt_run_is_the_other_prompt():
    """The same answers, read on the other prompt of each pair."""
    swapped = make_task(*(replace(pair, clean=pair.corrupt, corrupt=pair.clean) for pair in TASK.pairs))
    np.testing.assert_array_equal(
        found("llama", run="corrupt").values, direct(opened("llama"), swapped, by="head").values
    )
    assert np.abs(found("llama", run="corrupt").values - found("llama").values).max() > 1e-3


@pytest.mark.parametrize("name", ["gemma3", "bloom"])
def test_batches_and_company_change_nothing(name, monkeypatch):
    """One prompt at a time, or all together."""
    together = found(name)
    alone = [direct(opened(name), make_task(pair), by="head").values[:, 0] for pair in TASK.pairs]
    np.testing.assert_allclose(together.values, np.stack(alone, axis=1), atol=1e-5)
    monkeypatch.setattr(gather, "ROOM", 1)
    np.testing.assert_allclose(direct(opened(name), TASK, by="head").values, together.values, atol=1e-5)


def test_batches_of_one_length_keep_their_order():
    """A model whose rotary tables follow the prompt's length runs prompts of one length, and answers in order."""
    model = opened("llama")
    by_length = replace(model, anatomy=replace(model.anatomy, by_length=True))
    assert [len(batch) for batch in gather.batches_of(by_length.anatomy, [p.clean for p in TASK.pairs], ())] == [1, 2]
    np.testing.assert_allclose(direct(by_length, TASK, by="head").values, found("llama").values, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_half_precision_adds_up_to_its_rounding(name, dtype):
    """Nothing is kept whole; the sum misses by what the stream's own rounding loses, and says so."""
    result = found(name, "head", dtype=dtype)
    assert not result.whole
    assert 1e-6 < result.error < result.tolerance


def test_blocks_with_a_multiplier_are_kept_whole():
    """Granite scales what its parts add: a block is one part, and heads are refused with the reason."""
    model = open_model(fresh("granite", residual_multiplier=0.5))
    result = direct(model, TASK)
    assert [str(part) for part in result.parts] == ["embed", "block[0]", "block[1]", "block[2]"]
    assert result.error < 1e-6
    assert set(result.whole) == {"block[0]", "block[1]", "block[2]"}
    with pytest.raises(BadInput, match="do not add up"):
        direct(model, TASK, by="head")


class Bent(nn.Linear):
    """A projection that is none."""

    def forward(self, rows):
        """Bend it."""
        return torch.tanh(super().forward(rows))


def test_what_is_not_linear_is_kept_whole():
    """A bent output projection in one layer: that layer's attention is one part, the sum holds all the same."""
    module = fresh("llama")
    module.model.layers[1].self_attn.o_proj.__class__ = Bent
    result = direct(open_model(module), TASK, by="head")
    assert result.error < 1e-6
    assert list(result.whole) == ["attn.out[1]"]
    assert "linear" in result.whole["attn.out[1]"]
    assert sum(part.kind == "attn.head" for part in result.parts) == 8
    assert any("kept whole: attn.out[1]" in note for note in result.notes())


def test_more_than_a_projection_is_kept_whole():
    """Attention that doubles what its projection gives is not the projection's sum of heads."""
    module = fresh("llama")
    module.model.layers[0].self_attn.register_forward_hook(lambda _, __, out: (out[0] * 2, *out[1:]))
    result = direct(open_model(module), TASK, by="head")
    assert result.error < 1e-6
    assert "does more" in result.whole["attn.out[0]"]


def test_indirect_readout_is_refused():
    """Logits that only the model's own forward gives have no linear parts."""
    model = opened("llama")
    hidden = replace(model, anatomy=replace(model.anatomy, readout=replace(model.anatomy.readout, direct=False)))
    with pytest.raises(NotProved, match="no linear parts"):
        direct(hidden, TASK)


def test_wrong_sum_is_an_error():
    """A part that is lost is noticed."""
    result = found("llama")
    with pytest.raises(NotProved, match="add up"):
        replace(result, values=result.values[1:], parts=result.parts[1:]).check()


def test_words_that_do_not_exist():
    """Each gives the closest one, or the reason."""
    with pytest.raises(UnknownName, match=r"unknown grain 'heads'\. Did you mean 'head'"):
        direct(opened("llama"), TASK, by="heads")
    with pytest.raises(UnknownName, match="unknown run"):
        direct(opened("llama"), TASK, run="dirty")
    with pytest.raises(UnknownName, match="unknown answer"):
        direct(opened("llama"), TASK, answer="both")
    with pytest.raises(UnknownName, match="unknown part"):
        found("llama")["attn.head[9, 9]"]
    with pytest.raises(ManyTokenAnswer, match="one token"):
        direct(opened("llama"), make_task(make_pair(9, (3,), right=((5, 6),))))
    with pytest.raises(BadInput, match="gives no wrong answer"):
        direct(opened("llama"), make_task(make_pair(9, (3,), wrong=())))
    with pytest.raises(BadInput, match="token id 97"):
        direct(opened("llama"), make_task(make_pair(9, (3,), right=((97,),))))


def test_a_task_without_wrong_answers_has_a_right_logit():
    """The single logit needs no other."""
    result = direct(opened("llama"), make_task(make_pair(9, (3,), wrong=())), answer="right")
    assert result.error < 1e-6


def test_module_is_left_as_it_was():
    """No hook, no gradient, no other weight."""
    module = fresh("gemma2")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    direct(open_model(module), TASK, by="token")
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in module.modules())
    assert all(weight.grad is None for weight in module.parameters())


def test_inference_mode_around_it_changes_nothing():
    """Pulled-back directions need gradients, whatever mode the caller is in."""
    with torch.inference_mode():
        inside = direct(open_model(fresh("llama")), TASK, by="head")
    np.testing.assert_array_equal(inside.values, found("llama").values)


def test_saved_and_loaded(tmp_path):
    """All comes back."""
    result = found("gpt2", "token")
    again = Decomposition.load(result.save(tmp_path / "out"))
    np.testing.assert_array_equal(again.values, result.values)
    assert again.parts == result.parts
    assert again.notes() == result.notes()


def test_it_shows_itself():
    """In a shell, in a notebook without script, and as a tidy table."""
    result = found("gpt2", "token")
    frame = result.to_frame()
    assert len(frame) == len(result) * 3
    assert frame.groupby("example")["logits"].sum().to_numpy() == pytest.approx(result.logits, abs=1e-5)
    assert "largest error" in repr(result)
    html = result._repr_html_()
    assert html.count("<svg") == 3
    assert "<script" not in html
    top = result.top(5)
    assert [abs(row.mean) for row in top] == sorted((abs(row.mean) for row in top), reverse=True)
    assert top[0].low <= top[0].mean <= top[0].high


@pytest.fixture(scope="module", name="gemma")
def fixture_gemma():
    return gemma()


@pytest.mark.gemma
@pytest.mark.parametrize("by", GRAINS)
def test_gemma_adds_up(gemma, by):
    """On the real model too; on IOI its head 12.1 writes the name that it attends to."""
    from crosspatch.tasks import ioi

    result = direct(gemma, ioi(gemma, 8), by=by)
    assert result.error < 1e-5
    assert not result.whole
    if by == "token":
        assert "attn.head[12, 1] from IO" in [str(row.part) for row in result.top(3)]
