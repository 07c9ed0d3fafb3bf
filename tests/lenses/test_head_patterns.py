"""Attention kept beside a result: the model's own in bytes, whole or what fits, and back from disk as it was."""

from dataclasses import replace

import numpy as np
import pytest

from builders import small_effects
from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.lenses import HeadPatterns, attention, patterns, read_head_patterns
from crosspatch.lenses.head_patterns import rank_heads
from crosspatch.sites import Site
from crosspatch.tasks import corrupt
from zoo import ZOO, make_task, opened, uneven

TASK = make_task(*uneven())
ALL = "attn.head[*, *]"


@pytest.fixture(scope="module")
def kept():
    return read_head_patterns(opened("llama"), TASK)


@pytest.mark.parametrize("run", [0, 1])
def test_bytes_are_the_views_weights(kept, run):
    """All heads of both runs, each prompt with its own length, within half a step of 1/255."""
    view = attention(opened("llama"), TASK, ALL, run=kept.runs[run])
    assert kept.chosen == tuple((head.layer, head.unit) for head in view.heads)
    assert (kept.layers, kept.heads, kept.kv_heads, kept.group, kept.pairs) == (3, 4, 2, 2, 3)
    for example, pair in enumerate(TASK.pairs):
        n = len(pair.clean)
        weights = kept.patterns[example][run] / 255
        np.testing.assert_allclose(weights, view.patterns[example, :, :n, :n], atol=0.5 / 255 + 1e-6)
        assert len(kept.tokens[example][run]) == n


@pytest.mark.parametrize("run", [0, 1])
def test_sizes_make_of_attention_what_the_view_weights_it_by(kept, run):
    """Attention times size is the view's "value" weighting, which tests compare with the projection by hand."""
    view = attention(opened("llama"), TASK, ALL, run=kept.runs[run], weighting="value")
    plain = attention(opened("llama"), TASK, ALL, run=kept.runs[run])
    for example, pair in enumerate(TASK.pairs):
        n = len(pair.clean)
        found = plain.patterns[example, :, :n, :n] * kept.sizes[example][run][:, None]
        np.testing.assert_allclose(found, view.patterns[example, :, :n, :n], rtol=1e-5)


def test_heads_whose_output_is_not_known_have_no_sizes():
    model = opened("llama")
    points = {kind: point for kind, point in model.anatomy.points.items() if kind != "attn.head"}
    bare = replace(model, anatomy=replace(model.anatomy, points=points))
    made = read_head_patterns(bare, TASK)
    assert made.sizes == ()
    np.testing.assert_array_equal(made.patterns[0], read_head_patterns(model, TASK).patterns[0])


def test_folders_of_earlier_versions_have_no_sizes(kept, tmp_path):
    replace(kept, sizes=()).save(tmp_path)
    assert HeadPatterns.load(tmp_path).sizes == ()


def test_it_comes_back_from_disk_as_it_was(kept, tmp_path):
    kept.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention.json", "attention.safetensors"]
    back = HeadPatterns.found(tmp_path)
    for name in ("model", "task", "layers", "heads", "kv_heads", "pairs", "chosen", "runs", "tokens"):
        assert getattr(back, name) == getattr(kept, name)
    for mine, theirs in zip((*kept.patterns, *kept.sizes), (*back.patterns, *back.sizes), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert HeadPatterns.found(tmp_path / "nowhere") is None


def test_damage_is_told(kept, tmp_path):
    kept.save(tmp_path)
    arrays = tmp_path / "attention.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"\x07")
    with pytest.raises(CorruptFile, match=r"attention\.json"):
        HeadPatterns.load(tmp_path)


def test_shapes_must_agree(kept):
    with pytest.raises(BadInput, match="one array"):
        replace(kept, chosen=kept.chosen[:-1])
    with pytest.raises(BadInput, match="one array"):
        replace(kept, tokens=kept.tokens[:-1])
    with pytest.raises(BadInput, match="sizes need"):
        replace(kept, sizes=kept.sizes[:-1])


def test_what_does_not_fit_is_left_out():
    """First whole pairs are left out; where not one fits, all heads but the strongest."""
    model, sizes = opened("llama"), [2 * 12 * len(pair.clean) ** 2 for pair in TASK.pairs]
    assert len(read_head_patterns(model, TASK, pairs=2).patterns) == 2
    assert len(read_head_patterns(model, TASK, room=sum(sizes[:2])).patterns) == 2
    one = read_head_patterns(model, TASK, room=sizes[0])
    assert (len(one.patterns), len(one.chosen)) == (1, 12)
    few = read_head_patterns(model, TASK, room=sizes[0] // 4, first=[(2, 1), (0, 3)])
    assert few.chosen == ((2, 1), (0, 3), (0, 0))
    np.testing.assert_array_equal(few.patterns[0], one.patterns[0][:, [9, 3, 0]])
    np.testing.assert_array_equal(few.sizes[0], one.sizes[0][:, [9, 3, 0]])
    np.testing.assert_array_equal(one.part(1, [9, 3]).sizes[0], one.sizes[0][:, [9, 3]])


def test_prompts_too_long_are_refused(monkeypatch):
    with pytest.raises(BadInput, match="too long"):
        read_head_patterns(opened("llama"), TASK, room=10)
    monkeypatch.setattr(patterns, "ROOM", 100)
    with pytest.raises(BadInput, match="too long"):
        read_head_patterns(opened("llama"), TASK)


def test_a_corrupt_run_of_other_embeddings_is_not_read():
    """Its tokens are the clean ones: a plain run of them would be shown for what it is not."""
    assert read_head_patterns(opened("llama"), corrupt(TASK, "zero")).runs == ("clean",)


def test_a_model_without_patterns_says_why():
    name = next(name for name, beast in ZOO.items() if beast.own_attention)
    with pytest.raises(BadInput, match="attention is its own code"):
        read_head_patterns(opened(name), TASK)


def test_heads_are_ranked_by_their_largest_effect():
    """Over all kinds and positions; a key belongs to all heads that share it, other kinds to none."""
    sites = [
        Site("attn.head", 1, 0, "end"),
        Site("attn.head", 1, 0, "S2"),
        Site("attn.q", 0, 3, "end"),
        Site("attn.k", 1, 1, "S2"),
        Site("resid.pre", 1, None, 3),
    ]
    raw = np.repeat([[0.1], [-0.5], [0.3], [0.2], [9.0]], 8, axis=1)
    assert rank_heads(small_effects(sites, raw), 2) == ((1, 0), (0, 3), (1, 2), (1, 3))


def test_a_part_keeps_what_is_named(kept):
    part = kept.part(1, [3, 0])
    assert (part.chosen, len(part.tokens)) == (((0, 3), (0, 0)), 1)
    np.testing.assert_array_equal(part.patterns[0], kept.patterns[0][:, [3, 0]])
