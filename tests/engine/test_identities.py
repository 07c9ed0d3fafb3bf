"""What exact patching must satisfy, whatever the model: identities, and the work that is counted."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from crosspatch import tasks
from crosspatch.engine import Options, patch, plan_patch
from crosspatch.sites import Site

SITES = "resid.pre, resid.mid, attn.head, attn.v, attn.pattern, mlp.out"
FEW = ("llama", "gemma3", "bloom")


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.nanmax(np.abs(expected)), rtol=0)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patching_everything_is_the_source_run(name, direction):
    """The stream restored at all positions at once gives the source run's metric, from any layer."""
    sites = [Site("resid.pre", layer, None, "all") for layer in range(3)]
    effects = patch(zoo.opened(name), zoo.make_task(*zoo.uneven()), sites=sites, direction=direction)
    close(effects.raw, np.broadcast_to(effects.gap, effects.raw.shape))


@pytest.mark.parametrize("name", FEW)
def test_own_value_changes_nothing(name):
    """Where both runs agree (before the first differing token) the effect is exactly zero."""
    task = zoo.make_task(zoo.make_pair(8, (5,)))
    effects = patch(zoo.opened(name), task, sites="resid.pre@0:5, mlp.out@0:5, attn.in@4")
    assert (effects.raw == 0).all()


def test_own_value_through_the_machinery():
    """A patch whose source is the base's own prefix is no effect beyond rounding, also when it is really run."""
    pair = zoo.make_pair(8, (7,))
    task = zoo.make_task(pair)
    model = zoo.opened("llama")
    forced = replace(model, anatomy=replace(model.anatomy, causal=False, packed=False))
    effects = patch(forced, task, sites="resid.pre@0:7, attn.head@3, mlp.hidden[1, 0:4]@2")
    assert np.abs(effects.raw).max() <= 1e-5 * np.abs(effects.gap).max()


@pytest.mark.parametrize("name", FEW)
def test_directions_are_the_roles_swapped(name):
    """Noising a pair is denoising the pair with its prompts swapped."""
    task = zoo.make_task(*zoo.uneven())
    sites = SITES if name != "bloom" else "resid.pre, attn.head, mlp.out"
    swapped = zoo.make_task(*(replace(p, clean=p.corrupt, corrupt=p.clean) for p in task.pairs))
    noise = patch(zoo.opened(name), task, sites=sites, direction="noise")
    denoise = patch(zoo.opened(name), swapped, sites=sites)
    np.testing.assert_array_equal(noise.raw, denoise.raw)


@settings(max_examples=12, deadline=None)
@given(tokens=st.integers(1, 200), memory=st.integers(1, 400_000), seed=st.integers(0, 5))
def test_packing_chunking_and_order_change_nothing(tokens, memory, seed):
    """How rows are packed, how many pairs are held at once and the order of pairs leave the effects as they are."""
    pairs = zoo.uneven()
    order = np.random.default_rng(seed).permutation(len(pairs))
    model = zoo.opened("qwen3")
    whole = patch(model, zoo.make_task(*pairs), sites=SITES)
    options = Options(tokens=tokens, memory=memory)
    cut = patch(model, zoo.make_task(*(pairs[i] for i in order)), sites=SITES, options=options)
    close(cut.raw, whole.raw[:, order])


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
def test_padding_side_changes_nothing(name):
    """Prompts given as padded tensors, on either side, give the effects of the same prompts given as lists."""
    pairs = zoo.uneven()
    width = max(len(p.clean) for p in pairs)
    answers = {"right": [5] * 3, "wrong": [7] * 3}
    plain = tasks.from_tokens([list(p.clean) for p in pairs], [list(p.corrupt) for p in pairs], **answers)
    expected = patch(zoo.opened(name), plain, sites="resid.pre@-1, attn.head, mlp.out@-3:")
    for left in (True, False):

        def padded(rows, left=left):
            return torch.tensor(
                [[0] * (width - len(r)) * left + list(r) + [0] * (width - len(r)) * (not left) for r in rows]
            )

        mask = (padded([[1] * len(p.clean) for p in pairs]) > 0).long()
        given = tasks.from_tokens(
            padded([p.clean for p in pairs]), padded([p.corrupt for p in pairs]), attention_mask=mask, **answers
        )
        found = patch(zoo.opened(name), given, sites="resid.pre@-1, attn.head, mlp.out@-3:")
        np.testing.assert_array_equal(found.raw, expected.raw)


@pytest.mark.parametrize("name", FEW)
def test_base_and_source_are_the_models_own(name):
    """The metric of both runs is what the module itself gives on each prompt alone."""
    task = zoo.make_task(*zoo.uneven())
    effects = patch(zoo.opened(name), task, sites="resid.pre[0]")
    for prompts, values in (
        ([p.corrupt for p in task.pairs], effects.base),
        ([p.clean for p in task.pairs], effects.source),
    ):
        with torch.no_grad():
            logits = [zoo.module_of(name)(input_ids=torch.tensor([ids])).logits[0, -1] for ids in prompts]
        close(values, np.array([float(row[5] - row[7]) for row in logits], np.float32))


def test_long_answers_are_forced_token_by_token():
    """The log-probability of an answer of three tokens adds up over them, in both runs and in every patch."""
    pairs = [
        zoo.make_pair(7, (3,), right=((5, 9, 11),), wrong=()),
        zoo.make_pair(6, (2,), seed=2, right=((8,),), wrong=()),
    ]
    effects = patch(zoo.opened("llama"), zoo.make_task(*pairs, metric="logprob"), sites="resid.pre[0]@3|all")
    module = zoo.module_of("llama")
    for index, pair in enumerate(pairs):
        for prompt, value in ((pair.corrupt, effects.base[index]), (pair.clean, effects.source[index])):
            answer = pair.right[0]
            with torch.no_grad():
                logprobs = module(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            by_hand = sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))
            assert value == pytest.approx(by_hand, abs=1e-4)
    # `all` is the prompt's positions; in the first layer the forced answer's own stream is the same in both runs.
    everything = effects.raw[[str(site) for site in effects.sites].index("resid.pre[0]@all")]
    close(everything, effects.gap)


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_blocks_run_what_the_plan_says(name):
    """Tokens that really pass through blocks equal the plan; each pack calls each block once at most."""
    module = zoo.fresh(name)
    model = zoo.open_model(module)
    task = zoo.make_task(*zoo.uneven())
    sites = "resid.pre, attn.head, attn.v, mlp.out, resid.post"
    plan = plan_patch(model, task, sites=sites, options=Options(tokens=48))
    tokens, calls = [], Counter()
    blocks = module.get_submodule(model.anatomy.blocks)
    # The attention's output projection sees every token that a block is really run on, and no stub.
    name_of = model.anatomy.points["attn.head"].path

    def counting(index):
        def count(_, args):
            tokens.append(args[0].shape[:-1].numel())
            calls.update([index])

        return count

    handles = [b.get_submodule(name_of).register_forward_pre_hook(counting(i)) for i, b in enumerate(blocks)]
    patch(model, task, sites=sites, options=Options(tokens=48))
    for handle in handles:
        handle.remove()
    assert sum(tokens) == plan.token_blocks
    assert max(calls.values()) <= plan.packs + 2 * plan.chunks
    assert plan.token_blocks < plan.naive_token_blocks


def test_dry_run_runs_nothing():
    """Planning a sweep never calls the model."""
    module = zoo.fresh("llama")
    model = zoo.open_model(module)
    handle = module.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    plan = plan_patch(model, zoo.make_task(*zoo.uneven()), sites=SITES)
    handle.remove()
    assert plan.rows + plan.zero + plan.absent == plan.patches
    assert "exactly zero" in str(plan)
