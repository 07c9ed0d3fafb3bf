"""The proof: what convention guesses wrongly is refused, exactly that; a model that is no stack of blocks is named."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from crosspatch.core.errors import BadInput, NotFinite, NotProved
from crosspatch.engine.patching import patch
from crosspatch.models import discover as discovery
from crosspatch.models.anatomy import Anatomy, Point
from crosspatch.models.discover import discover
from crosspatch.models.families import family_of
from crosspatch.models.open import open_model
from crosspatch.models.proof import distance, prove
from crosspatch.sites import Site
from crosspatch.tasks import Pair
from handmade import handmade
from naive.patching import difference, patched, read, run
from zoo import BASE, fresh, make_pair, make_task, module_of, opened, uneven

HEADS = {"attn.q", "attn.k", "attn.v"}


def proved(module: nn.Module, change: Callable[[Anatomy], Anatomy] = lambda anatomy: anatomy) -> Anatomy:
    """Prove what was found on a module after a change for the worse."""
    return prove(module, change(discover(module)))[0]


def with_point(kind: str, **changes: object) -> Callable[[Anatomy], Anatomy]:
    """Change one point of an anatomy."""

    def change(anatomy: Anatomy) -> Anatomy:
        return replace(anatomy, points={**anatomy.points, kind: replace(anatomy.points[kind], **changes)})

    return change


def by_hand(module: nn.Module, part: nn.Module, side: str, pair: Pair, position: int) -> float:
    """Denoise one position at one side of a module by plain hooks."""
    value = read(module, pair.clean, part, side)
    spot, at = (part, side), ([position], slice(None))
    return difference(patched(module, pair.corrupt, spot, value, at)) - difference(run(module, pair.corrupt))


@pytest.mark.parametrize("name", ["gpt_neox", "bloom", "falcon_rw"])
def test_a_wrong_layout_of_fused_heads_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values read in the wrong order are refused, and nothing else."""
    right = opened(name).anatomy
    family = replace(family_of(right.family), layout="concatenated")
    monkeypatch.setattr(discovery, "family_of", lambda _: family)
    wrong = proved(module_of(name))
    assert set(right.kinds()) - set(wrong.kinds()) == HEADS
    assert all("told apart by head" in wrong.refused[kind] for kind in HEADS)


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_swapped_heads_are_refused(kind: str) -> None:
    """Two heads of one kind exchanged: that kind is refused, the others stay."""
    starts = list(opened("llama").anatomy.points[kind].starts)
    anatomy = proved(module_of("llama"), with_point(kind, starts=tuple(reversed(starts))))
    assert set(anatomy.refused) == {kind}


def test_a_head_of_the_wrong_width_is_refused() -> None:
    """Columns shifted by half a head move two heads."""
    shifted = tuple(start + 4 for start in (0, 8, 16, 20))
    assert set(proved(module_of("gptj"), with_point("attn.q", starts=shifted)).refused) >= {"attn.q"}


def test_parts_that_do_not_add_up_are_refused() -> None:
    """A block that adds something of its own keeps its stream and loses attn.out, mlp.out and what is between them."""
    module = handmade(extra=True)
    model = open_model(module)
    assert {"attn.out", "mlp.out", "resid.mid"} <= set(model.anatomy.refused)
    assert "do not add up" in model.anatomy.refused["attn.out"]
    pair = make_pair(6, (2,))
    effects = patch(model, make_task(pair), sites=[Site("resid.pre", 1, None, 3)])
    assert effects.raw[0, 0] == pytest.approx(by_hand(module, module.layers[1], "in", pair, 3), abs=1e-5)


def test_an_output_read_behind_the_residual_sum_is_refused() -> None:
    """BLOOM's attention module gives the sum, not its part."""
    change = with_point("attn.out", path="self_attention")
    assert {"attn.out", "mlp.out", "resid.mid"} <= set(proved(module_of("bloom"), change).refused)


def test_a_residual_multiplier_is_no_plain_sum() -> None:
    """Granite with scaled parts: the stream stays, the parts are refused."""
    anatomy = proved(fresh("granite", residual_multiplier=0.3))
    assert set(anatomy.refused) == {"attn.out", "mlp.out", "resid.mid"}


def test_a_model_that_looks_ahead_is_detected_and_still_right() -> None:
    """Without causality no position is zero for free, and every row is run whole."""
    module = handmade(blind=False)
    model = open_model(module)
    assert (model.anatomy.causal, model.anatomy.packed) == (False, False)
    pairs = make_pair(6, (3,)), make_pair(5, (2, 4), seed=1)
    sites = [Site(kind, 1, None, at) for kind in ("resid.pre", "attn.in", "attn.out", "mlp.out") for at in (0, 1, 3)]
    effects = patch(model, make_task(*pairs), sites=sites)
    assert abs(effects.raw[0, 0]) > 1e-3  # before the first difference
    spots = {"resid.pre": ("", "in"), "attn.in": ("attn", "in"), "attn.out": ("attn", "out"), "mlp.out": ("mlp", "out")}
    for site, row in zip(effects.sites, effects.raw, strict=True):
        path, side = spots[site.kind]
        part = module.layers[1].get_submodule(path)
        slow = [by_hand(module, part, side, pair, int(site.position)) for pair in pairs]  # type: ignore[arg-type]
        assert row.tolist() == pytest.approx(slow, abs=1e-5), site


def test_an_odd_head_is_read_through_the_models_own_forward() -> None:
    """Where logits are no norm and linear map of the stream, the vocabulary comes from the model's forward."""
    module = handmade(odd_head=True)
    model = open_model(module)
    assert not model.anatomy.readout.direct
    pairs = make_pair(6, (2, 4)), make_pair(9, (3, 7), seed=1)
    for metric in ("logit_diff", "logprob"):
        effects = patch(model, make_task(*pairs), sites=[Site("mlp.out", 2, None, -1)], metric=metric)
        spot = module.layers[2].mlp, "out"
        for j, pair in enumerate(pairs):
            value, last = read(module, pair.clean, *spot), ([len(pair.clean) - 1], slice(None))
            logits = patched(module, pair.corrupt, spot, value, last)[-1], run(module, pair.corrupt)[-1]
            scores = [x[5] - x[7] if metric == "logit_diff" else x.log_softmax(-1)[5] for x in logits]
            assert effects.raw[0, j] == pytest.approx(float(scores[0] - scores[1]), abs=1e-5)


def test_an_embedding_narrower_than_the_stream() -> None:
    """OPT can project its embedding up and its stream down: the width is the stream's, and patches are right."""
    module = fresh("opt", word_embed_proj_dim=16)
    model, pair = open_model(module), make_pair(6, (2,))
    assert (model.anatomy.d_model, model.anatomy.readout.direct) == (32, True)
    effects = patch(
        model, make_task(pair), sites=[Site(kind, 1, None, 3) for kind in ("resid.pre", "attn.in", "mlp.in")]
    )
    block = module.model.decoder.layers[1]
    slow = [by_hand(module, part, "in", pair, 3) for part in (block, block.self_attn, block.fc1)]
    assert effects.raw[:, 0].tolist() == pytest.approx(slow, abs=2e-4 * max(map(abs, slow)))


def test_an_mlp_that_reads_other_tokens_loses_its_input() -> None:
    """A patch of its input acts on other tokens, which a sweep does not expect; its output stays."""
    anatomy = proved(handmade(leaky=True))
    assert "at others" in anatomy.refused["mlp.in"]
    assert {"mlp.hidden", "mlp.out"} <= set(anatomy.kinds())


@pytest.mark.parametrize(
    ("habits", "words"),
    [
        ({"between": 0.5}, "block 1 does not read what block 0 writes"),
        ({"again": 2}, "called 6 times in a forward"),
        ({"mixing_head": True}, "do not follow from the last block's output at the same position"),
    ],
)
def test_blocks_that_form_no_stream_are_named(habits: dict[str, object], words: str) -> None:
    """What cannot be followed is an error that says why and where to go instead."""
    with pytest.raises(NotProved, match=words) as error:
        open_model(handmade(**habits))
    assert "patch_any" in str(error.value)


def test_a_module_without_blocks_is_named() -> None:
    """The error says what was looked for."""
    with pytest.raises(NotProved, match=r"Sequential has no torch\.nn\.ModuleList of blocks"):
        open_model(nn.Sequential(nn.Linear(2, 2)).eval())


def test_a_module_that_is_no_language_model_is_named() -> None:
    """Blocks without an embedding, and blocks whose forward wants something else than token ids."""
    with pytest.raises(NotProved, match="does not say which module is its token embedding"):
        open_model(nn.ModuleList([nn.Linear(2, 2)]).eval())
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    encoder_decoder = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **BASE, **sizes)).eval()
    with pytest.raises(NotProved, match="could not be run as a language model"):
        open_model(encoder_decoder)


def test_training_mode_is_refused() -> None:
    """Dropout would make every run another."""
    with pytest.raises(BadInput, match="training mode"):
        open_model(fresh("llama").train())


def test_weights_that_are_not_numbers_are_named() -> None:
    """NaN in the weights is told as such, not as a broken anatomy."""
    module = fresh("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NotFinite, match="weights"):
        open_model(module)


def test_blocks_of_two_kinds_keep_what_they_share() -> None:
    """A dense MLP in one block and experts in the others: no neurons to patch, everything else."""
    module = fresh("qwen3_moe", mlp_only_layers=[0])
    model = open_model(module)
    assert set(model.anatomy.refused) == {"mlp.hidden"}
    assert "block 1 is built in another way than block 0" in model.anatomy.refused["mlp.hidden"]
    pair = make_pair(6, (2,))
    effects = patch(model, make_task(pair), sites=[Site("mlp.out", layer, None, -1) for layer in (0, 1)])
    slow = [by_hand(module, module.model.layers[i].mlp, "out", pair, 5) for i in (0, 1)]
    assert effects.raw[:, 0].tolist() == pytest.approx(slow, abs=1e-4 * max(map(abs, slow)))


def test_a_norm_over_all_heads_moves_queries_behind_it() -> None:
    """OLMo 2 norms all heads together, so a head is its own only behind that norm."""
    assert opened("olmo2").anatomy.points["attn.q"] == Point("self_attn.q_norm", "output", range(0, 32, 8), 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "cohere"])
def test_precision_does_not_change_what_is_proved(name: str, dtype: torch.dtype) -> None:
    """Half and double precision prove the same anatomy as single, the direct readout included."""
    assert replace(opened(name, dtype).anatomy, points={}) == replace(opened(name).anatomy, points={})
    assert dict(opened(name, dtype).anatomy.points) == dict(opened(name).anatomy.points)


def test_refused_kinds_say_why() -> None:
    """Each refusal is a sentence that names the model's family, the reason and what is offered."""
    cases = {
        "gpt_neox": ("resid.mid", "no stream between them"),
        "mixtral": ("mlp.hidden", "mixture of experts"),
        "gptj": ("attn.pattern", "attention is its own code"),
    }
    for name, (kind, words) in cases.items():
        with pytest.raises(BadInput, match=words) as error:
            opened(name).anatomy.require(kind)
        assert kind in str(error.value)
        assert "It offers: resid.pre" in str(error.value)


def test_distance_never_calls_nan_equal() -> None:
    """A comparison with NaN is infinitely far."""
    assert distance(torch.tensor([float("nan"), 1.0]), torch.ones(2)) == float("inf")
    assert distance(torch.ones(2), torch.ones(2)) == 0


def test_uneven_pairs_are_as_the_other_tests_need_them() -> None:
    """Pairs longer than the zoo's sliding windows of 4, of two lengths, that agree on their first tokens."""
    assert [len(pair.clean) for pair in uneven()] == [9, 6, 9]
    assert all(pair.clean[:2] == pair.corrupt[:2] for pair in uneven())


def test_a_model_says_what_it_is_in_one_line():
    """Not its module and vocabulary, which a notebook would print whole."""
    said = repr(opened("gpt2"))
    assert "3 layers, 4 heads, d_model 32)" in said
    assert "\n" not in said
