"""The ways a sweep replaces give its numbers, and the comparison refuses a ratio where they do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crosspatch.core.errors import BadInput
from crosspatch.engine import measure
from crosspatch.engine.by_hand import by_hand, one_batch, one_forward
from crosspatch.engine.patching import patch
from crosspatch.engine.select import select_sites
from crosspatch.models import open_model
from crosspatch.sites import Site
from crosspatch.tasks import from_tokens

SIZES = {"gpt2": {"n_layer": 3, "n_embd": 16, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}}
SIZES["llama"] = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module", params=sorted(SIZES))
def model(request):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    more = {"intermediate_size": 32} if request.param == "llama" else {}
    config = AutoConfig.for_model(request.param, vocab_size=30, initializer_range=0.3, **SIZES[request.param], **more)
    return open_model(AutoModelForCausalLM.from_config(config).eval())


def make_task(lengths=(7, 7), **answers):
    rows = [[(3 * i + row) % 30 for i in range(length)] for row, length in enumerate(lengths)]
    other = [[*row[:2], 29, *row[3:]] for row in rows]
    chosen = {"right": [4 + row for row in range(len(rows))], "wrong": [9 + row for row in range(len(rows))], **answers}
    return from_tokens(rows, other, **chosen)


def naive(model, task, layer, position):
    """One forward with one hook a pair, from the definition: the clean input of a block, put into the corrupt run."""
    block, out = model.module.get_submodule(model.anatomy.blocks)[layer], []
    for pair in task.pairs:
        kept = []
        hook = block.register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0].clone()))
        model.module(torch.tensor([pair.clean]))
        hook.remove()

        def put(_, args, kept=kept):
            hidden = args[0].clone()
            hidden[0, position] = kept[0][0, position]
            return (hidden, *args[1:])

        hook = block.register_forward_pre_hook(put)
        logits = model.module(torch.tensor([pair.corrupt])).logits[0, -1]
        hook.remove()
        out.append(float(logits[pair.right[0][0]] - logits[pair.wrong[0][0]]))
    return out


@pytest.mark.parametrize("way", [one_forward, one_batch])
@pytest.mark.parametrize("lengths", [(7, 7), (5, 7, 6)])
def test_by_hand_equals_single_forwards(model, way, lengths):
    """A batch with one hook gives what one forward a pair gives, for prompts of one length and of several."""
    task = make_task(lengths)
    sites = select_sites(model, task, "resid.pre[1:3]@2|4")
    with torch.no_grad():
        expected = np.array([naive(model, task, site.layer, site.position) for site in sites])
    found = way(by_hand(model, task, sites), sites).numpy()
    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    "selection", ["resid.pre, attn.head", "attn.head[*, *]@1|2|4, mlp.out@end", "resid.post, attn.v[1]"]
)
def test_by_hand_equals_the_sweep(model, selection):
    """All ways give the sweep's numbers, at streams, heads and parts, with sites in any order."""
    task = make_task((7, 5))
    sites = select_sites(model, task, selection)[::-1]
    effects = patch(model, task, sites=sites)
    hand = by_hand(model, task, sites)
    for way in (one_forward, one_batch):
        assert measure.error_of(way(hand, sites).numpy(), sites, effects) < 1e-3


def test_compare_lists_every_way_with_equal_numbers(model):
    """Each way has a time, a ratio and an error; slow ways are extrapolated from a sample; the limit is known."""
    rows = measure.compare(model, make_task(), cells=6, repeat=2)
    assert [row.way for row in rows] == [measure.ONE_PASS, measure.ONE_FORWARD, measure.ONE_BATCH]
    assert [row.timed for row in rows] == [21, 6, 7]
    assert all(row.sites == 21 and len(row.seconds) == 2 and min(row.seconds) > 0 for row in rows)
    assert all(row.error <= row.allowed == 1e-3 and row.ratio > 0 for row in rows)
    assert rows[0].ratio == 1
    assert rows[0].limit_share == pytest.approx(rows[0].flops / min(rows[0].seconds) / rows[0].limit)
    assert rows[1].limit_share is None


def test_seconds_of_a_sample_stand_for_all_sites(model, monkeypatch):
    """A way timed on 6 of 21 sites is told as 21/6 of what the sample took."""
    monkeypatch.setattr(measure, "in_turns", lambda ways, repeat, device: dict.fromkeys(ways, [0.5] * repeat))
    rows = measure.compare(model, make_task(), cells=6, repeat=2)
    assert [row.seconds for row in rows] == [(0.5, 0.5), (1.75, 1.75), (1.5, 1.5)]
    assert [row.ratio for row in rows] == [1, 3.5, 3]


def test_no_ratio_where_numbers_differ(model, monkeypatch):
    """A way whose numbers are not the sweep's gets no ratio, and its error says how far off it is."""
    monkeypatch.setattr(measure, "one_batch", lambda hand, sites: one_batch(hand, sites) + 1)
    rows = measure.compare(model, make_task(), cells=6, repeat=1)
    assert rows[1].ratio is not None
    assert rows[2].ratio is None
    assert rows[2].error > 0.1


def test_not_a_number_is_a_difference(model):
    """NaN counts as unequal, except where the sweep itself has none because the prompt is too short."""
    task = make_task((7, 5))
    sites = [Site("resid.pre", 1, None, position) for position in range(7)]
    effects = patch(model, task, sites=sites)
    values = measure.values_of(effects)
    assert np.isnan(values[6, 1])
    assert measure.error_of(np.where(np.isnan(values), 0.0, values), sites, effects) == 0.0
    values[3, 0] = np.nan
    assert not measure.error_of(values, sites, effects) <= 1e-3


def test_the_metric_without_wrong_answers_is_the_right_logit(model):
    """A task with right answers only is compared on their logit."""
    task = make_task(wrong=())
    assert by_hand(model, task, select_sites(model, task, "resid.pre")).metric.name == "right_logit"


@pytest.mark.parametrize("selection", ["embed", "attn.pattern[0, 0]"])
def test_sites_that_one_hook_cannot_write_are_refused(model, selection):
    """The message names the site and what can be compared."""
    with pytest.raises(BadInput, match=r"no single module's input or output.*Compare resid.pre, resid.post"):
        measure.compare(model, make_task(), sites=selection)


def test_long_answers_are_refused(model):
    """Answers of several tokens would be read at several positions."""
    task = make_task(right=[[[4, 5]], [[5, 6]]], answers="all tokens")
    with pytest.raises(BadInput, match="single tokens"):
        measure.compare(model, task)


def test_hooks_leave_with_the_comparison(model):
    """No hook stays on the user's module, also when a forward fails."""
    measure.compare(model, make_task(), cells=4, repeat=1)
    task = make_task()
    sites = select_sites(model, task, "resid.pre")
    hand = by_hand(model, task, sites)
    with pytest.raises(IndexError):
        one_forward(replace(hand, ids=hand.ids + 99), sites)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.module.modules())


def test_samples_hold_sites_with_an_effect(model):
    """Three in four sampled sites have an effect if so many do, none comes twice, and a seed gives one sample."""
    effects = patch(model, make_task(), sites="resid.pre")
    live = {site for site, row in zip(effects.sites, effects.raw, strict=True) if np.abs(row).max() > 0}
    some = measure.sample(effects, 8, seed=3)
    assert len(set(some)) == 8
    assert len(live & set(some)) == 6
    assert some == measure.sample(effects, 8, seed=3) != measure.sample(effects, 8, seed=4)
    assert set(measure.sample(effects, 99, seed=3)) == set(effects.sites)


def test_ways_are_timed_in_turns():
    """A, B, A, B: each repetition runs every way once, in order."""
    calls = []
    spent = measure.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, torch.device("cpu"))
    assert calls == ["a", "b"] * 3
    assert [len(spent[way]) for way in "ab"] == [3, 3]


def test_ratio_pairs_repetitions():
    """A slow spell in one repetition touches both sides of its own ratio only."""
    assert measure.ratio([10.0, 200.0, 11.0], [1.0, 20.0, 1.0]) == 10.0


def test_products_count_the_blocks_own_matrices(model):
    """The limit's work is two operations a weight and token, over the block's matrices in their own orientation."""
    run, work = measure.block_products(model)
    widths = [tuple(out.shape) for out in run()]
    block = model.module.get_submodule(model.anatomy.blocks)[1]
    assert work == 2 * measure.MANY["cpu"] * sum(p.numel() for p in block.parameters() if p.ndim > 1)
    assert (measure.MANY["cpu"], 16) in widths
    assert len(widths) == sum(1 for p in block.parameters() if p.ndim > 1)
