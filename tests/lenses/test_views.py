"""Attention views: the model's own patterns, weighted by what they move, averaged where positions mean one thing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.lenses import attention, patterns
from crosspatch.sites import Site
from naive.families import activation
from naive.families import patterns as own_patterns
from zoo import ZOO, make_pair, make_task, module_of, opened, uneven

TASK = make_task(*uneven())
LEVEL = make_task(make_pair(9, (3, 7)), make_pair(9, (3, 6), seed=3))
ALL = "attn.head[*, *]"
OPEN = tuple(name for name, beast in ZOO.items() if not beast.own_attention)


@pytest.mark.parametrize("name", OPEN)
def test_patterns_are_the_models_own(name):
    """Every head of every prompt, against the model's own eager attention: windows, soft caps and sinks as they are."""
    view = attention(opened(name), TASK, ALL)
    assert view.patterns.shape == (3, 12, 9, 9)
    for example, pair in enumerate(TASK.pairs):
        n, theirs = len(pair.clean), own_patterns(name, pair.clean, torch.float32)
        for place, head in enumerate(view.heads):
            ours = view.patterns[example, place]
            np.testing.assert_allclose(ours[:n, :n], theirs[head.layer][head.unit].numpy(), atol=2e-6)
            assert np.isnan(ours[n:]).all()
            assert np.isnan(ours[:, n:]).all()


@pytest.mark.parametrize("name", OPEN)
def test_rows_sum_to_one(name):
    """But for a sink, which takes a share of its own."""
    sums = np.nansum(attention(opened(name), LEVEL, ALL).patterns, axis=-1)
    if name == "gpt_oss":
        assert (sums < 1).all()
        assert (sums > 0).all()
    else:
        np.testing.assert_allclose(sums, 1, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "phi3", "gpt_bigcode"])
@torch.no_grad()
def test_value_weighting_is_attention_times_what_is_moved(name):
    """By hand: the head's value vector through its own columns of the output projection."""
    beast, module = ZOO[name], module_of(name)
    view, plain = (attention(opened(name), TASK, ALL, weighting=each) for each in ("value", "pattern"))
    for example, pair in enumerate(TASK.pairs):
        n = len(pair.clean)
        for place, head in enumerate(view.heads):
            block = module.get_submodule(f"{beast.blocks}.{head.layer}")
            weight = block.get_submodule(beast.spots["attn.head"][0]).weight
            matrix = weight.T if beast.model_type == "gpt2" else weight  # Conv1D holds it the other way
            values = activation(name, "attn.v", head.layer, pair.clean, torch.float32)
            moved = values[:, beast.columns("attn.v", head.unit // (4 // len(beast.v)))]
            size = (moved @ matrix[:, beast.columns("attn.head", head.unit)].T).norm(dim=-1).numpy()
            expected = plain.patterns[example, place, :n, :n] * size[None]
            np.testing.assert_allclose(view.patterns[example, place, :n, :n], expected, rtol=1e-4, atol=1e-6)


def test_mean_is_by_token_where_layouts_agree():
    """One layout: the plain mean over examples."""
    view = attention(opened("llama"), LEVEL, "attn.head[1, 2]")
    assert view.shared == tuple(range(9))
    np.testing.assert_allclose(view.mean()[0], view.patterns[:, 0].mean(0), rtol=1e-6)
    assert view.labels()[3] == "3 ·mid"


def test_mean_is_by_name_where_they_do_not():
    """Several layouts: entries are looked up by each prompt's own positions."""
    view = attention(opened("llama"), TASK, "attn.head[1, 2]")
    assert view.shared == ("mid", "end")
    by_hand = np.mean([view.patterns[e, 0, p.names["end"], p.names["mid"]] for e, p in enumerate(TASK.pairs)])
    assert view.mean()[0, 1, 0] == pytest.approx(float(by_hand))
    assert view.mean()[0, 0, 1] == 0


def test_prompts_without_shared_names_share_their_first_tokens():
    """Only indices that every prompt has are averaged."""
    pairs = [replace(pair, names={}) for pair in TASK.pairs]
    assert attention(opened("llama"), make_task(*pairs), "attn.head[0, 0]").shared == tuple(range(6))


def test_corrupt_run_reads_the_other_prompt():
    """The corrupt prompts' own patterns."""
    view = attention(opened("llama"), LEVEL, "attn.head[1, 0]", run="corrupt")
    theirs = own_patterns("llama", LEVEL.pairs[0].corrupt, torch.float32)[1][0].numpy()
    np.testing.assert_allclose(view.patterns[0, 0], theirs, atol=2e-6)
    assert view.tokens[0] == tuple(str(token) for token in LEVEL.pairs[0].corrupt)


@pytest.mark.parametrize("by_length", [False, True])
def test_batches_change_nothing(by_length, monkeypatch):
    """One prompt at a time, of one length at a time, or all at once."""
    model = opened("gemma3")
    together = attention(model, TASK, ALL, weighting="value")
    if by_length:
        model = replace(model, anatomy=replace(model.anatomy, by_length=True))
    else:
        monkeypatch.setattr(patterns, "ROOM", 1)
    np.testing.assert_allclose(attention(model, TASK, ALL, weighting="value").patterns, together.patterns, atol=1e-6)


@pytest.mark.parametrize("name", ["mistral", "gemma3", "gpt_oss", "llama", "gpt2"])
def test_allowed_keys_are_those_that_get_attention(name):
    """The mask that chance is counted by is the one that the kernel used, layer by layer, sliding windows and all."""
    (batch,) = patterns.read_patterns(opened(name), [pair.clean for pair in LEVEL.pairs])
    for layer, pattern in batch.patterns.items():
        assert torch.equal(batch.allowed[layer], (pattern > 0).any(0).any(0))
    window = [int(batch.allowed[layer][-1].sum()) for layer in range(3)]
    assert window == {"mistral": [4, 4, 4], "gemma3": [4, 4, 9], "gpt_oss": [4, 9, 4]}.get(name, [9, 9, 9])


def test_heads_are_chosen_by_the_grammar():
    """Patterns and heads mean the same; duplicates are removed; sites may be given as such."""
    model = opened("llama")
    view = attention(model, LEVEL, "attn.head[1, 2], attn.pattern[1, 2], attn.head[0, *]")
    assert [str(head) for head in view.heads] == ["attn.head[1, 2]", *(f"attn.head[0, {i}]" for i in range(4))]
    np.testing.assert_array_equal(
        attention(model, LEVEL, [Site("attn.head", 0, 1)]).patterns[:, 0], view.of("attn.head[0, 1]")
    )


def test_what_is_no_head_is_refused():
    """Each with what to do."""
    model = opened("llama")
    for text, message in (
        ("mlp.out[1]", "no attention head"),
        ("attn.head[1, all]", "no attention head"),
        ("attn.head[1, 2]@end", "shows all positions"),
    ):
        with pytest.raises(BadInput, match=message):
            attention(model, LEVEL, text)
    with pytest.raises(BadInput, match="no heads"):
        attention(model, LEVEL, [])
    with pytest.raises(UnknownName):
        attention(model, LEVEL, "attn.head[1, 9]")
    with pytest.raises(UnknownName, match="units"):
        attention(model, LEVEL, [Site("attn.head", 1, 9)])
    with pytest.raises(UnknownName, match="unknown weighting"):
        attention(model, LEVEL, ALL, weighting="norm")
    with pytest.raises(UnknownName, match="unknown run"):
        attention(model, LEVEL, ALL, run="other")
    with pytest.raises(UnknownName, match="head in this view"):
        attention(model, LEVEL, "attn.head[1, 2]").of("attn.head[0, 0]")


@pytest.mark.parametrize("name", [name for name, beast in ZOO.items() if beast.own_attention])
def test_families_without_patterns_say_why(name):
    """Their attention is their own code."""
    with pytest.raises(BadInput, match="attention is its own code"):
        attention(opened(name), LEVEL, ALL)


def test_it_shows_itself(tmp_path):
    """In a shell, in a notebook without script, as a tidy table, and on disk."""
    view = attention(opened("llama"), TASK, "attn.head[0, *], attn.head[1, *], attn.head[2, *]")
    frame = view.to_frame()
    assert len(frame) == 12 * (81 + 36 + 81)
    row = frame[(frame.example == 1) & (frame["head"] == "attn.head[2, 3]") & (frame["query"] == 5) & (frame.key == 2)]
    assert row.value.item() == view.patterns[1, 11, 5, 2]
    assert row.key_token.item() == str(TASK.pairs[1].clean[2])
    html = view._repr_html_()
    assert html.count('class="map"') == 8
    assert "4 more heads are not drawn" in html
    assert "<script" not in html
    head, query, key, value = view.strongest(1)[0]
    assert f"{head:<20}{query:>16} → {key}" in repr(view)
    assert value == pytest.approx(float(view.mean().max()))
    assert sorted(path.name for path in view.save(tmp_path / "view").iterdir()) == ["arrays.safetensors", "meta.json"]


def test_maps_run_from_the_first_query_down():
    """The last row of a map, its top, is query 0; a cell above the diagonal is zero."""
    view = attention(opened("llama"), LEVEL, "attn.head[0, 0]")
    (panel,) = view.panels()
    np.testing.assert_array_equal(panel.values[-1], view.mean()[0, 0])
    assert panel.values[-1, 0] == pytest.approx(1)
    assert panel.rows[-1].startswith("0")
