"""Baselines of verification: their orders and costs, made by hand, by naive twins and in expectation."""

import numpy as np
import pytest

from crosspatch.attribution.baselines import (
    Tree,
    blocks_of,
    brute_force,
    by_blocks,
    expected_brute_force,
    hierarchical,
    in_order,
    joint_scores,
    subsampling,
    tree_of,
)
from crosspatch.attribution.bound import subsampling_scores
from crosspatch.attribution.joint import Asked
from crosspatch.attribution.recall import recall_costs, recall_curve
from crosspatch.attribution.subsets import Sampling, sample_subsets
from crosspatch.core.errors import BadInput
from crosspatch.engine import patch
from crosspatch.sites import Site
from naive.joint import joint_effect, part_of
from naive.verification import naive_hierarchical
from zoo import make_pair, make_task, module_of, opened

EVEN = make_task(make_pair(7, (2, 4)), make_pair(7, (1,), seed=1))
UNEVEN = make_task(make_pair(6, (2,)), make_pair(9, (1, 4), seed=1))
SITES = (
    *(Site("attn.head", layer, head, "all") for layer in (2, 0) for head in (3, 0)),
    *(Site("mlp.out", layer, None, place) for layer in (0, 1) for place in (5, "end")),
)


def score(pair):
    right, wrong = pair.right[0][0], pair.wrong[0][0]
    return lambda logits: float(logits[right].double() - logits[wrong].double())


def test_brute_force_costs_as_expected():
    """The mean over seeds lies within five standard errors of K(n + 1)/(K + 1)."""
    truth = np.random.default_rng(0).random(12)
    costs = np.stack([recall_costs(brute_force(12, seed=seed).nodes, truth) for seed in range(3000)])
    error = costs.std(0) / np.sqrt(len(costs))
    assert (np.abs(costs.mean(0) - expected_brute_force(12)) <= 5 * error + 1e-9).all()
    assert brute_force(12, seed=3).nodes.tolist() == brute_force(12, seed=3).nodes.tolist()
    assert expected_brute_force(0).shape == (0,)


def test_subsampling_ranks_by_its_scores_and_pays_for_its_samples():
    subsets = sample_subsets(opened("gpt2"), EVEN, SITES, design=Sampling(60, 0.3))
    order, scores = subsampling(subsets), subsampling_scores(subsets)
    assert (np.diff(scores[order.nodes]) <= 0).all()
    assert set(order.spent) == {30.0}


def test_nodes_are_in_order_of_layer_position_and_unit():
    order = [str(SITES[i]) for i in in_order(SITES)]
    assert order == [
        *("attn.head[0, 0]@all", "attn.head[0, 3]@all", "mlp.out[0]@5", "mlp.out[0]@end"),
        *("mlp.out[1]@5", "mlp.out[1]@end", "attn.head[2, 0]@all", "attn.head[2, 3]@all"),
    ]


def test_blocks_hold_each_node_once():
    by_kind, by_size = blocks_of(SITES), blocks_of(SITES, size=3)
    assert [len(block) for block in by_kind.members] == [2, 2, 2, 2]
    assert [len(block) for block in by_size.members] == [3, 3, 2]
    for blocks in (by_kind, by_size):
        assert sorted(node for block in blocks.members for node in block) == list(range(8))
    assert {SITES[i].kind for i in by_kind.members[0]} == {"attn.head"}


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
@pytest.mark.parametrize("task", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_joint_scores_are_mean_sizes_of_joint_effects(name, task):
    """Blocks with nodes that a pair lacks are patched without them; a pair with none of a block does not count."""
    sites = (*SITES, Site("mlp.out", 1, None, 7)) if task is UNEVEN else SITES
    blocks = blocks_of(sites, size=3)
    found = joint_scores(opened(name), task, blocks, asked=Asked("noise"))
    for block, value in zip(blocks.members, found, strict=True):
        sizes = []
        for pair in task.pairs:
            there = [sites[i] for i in block if sites[i].position != 7 or len(pair.clean) > 7]
            parts = [part_of(site, pair.names) for site in there]
            module, anatomy = module_of(name), opened(name).anatomy
            twin = joint_effect(module, anatomy, pair.clean, pair.corrupt, parts=parts, score=score(pair))
            sizes += [abs(twin)] if there else []
        assert value == pytest.approx(np.mean(sizes), abs=5e-5)


def test_single_nodes_have_their_exact_scores():
    """Also in a sweep of a whole tree, and where one pair lacks a node."""
    sites = (*SITES, Site("mlp.out", 1, None, 7))
    tree = tree_of(sites)
    found = joint_scores(opened("llama"), UNEVEN, tree)
    exact = np.nanmean(np.abs(patch(opened("llama"), UNEVEN, sites=sites).raw), axis=1)
    leaves = {members[0]: found[i] for i, members in enumerate(tree.members) if len(members) == 1}
    np.testing.assert_allclose([leaves[i] for i in range(len(sites))], exact, atol=2e-5)
    assert len(found) == 2 * len(sites) - 1


def test_blocks_by_hand():
    """Blocks (0, 1), (2, 3), (4): the last is largest, then the first; three patches are spent before any node."""
    sites = tuple(Site("mlp.out", layer, None, "end") for layer in range(5))
    order = by_blocks(blocks_of(sites, size=2), np.array([0.5, 0.2, 0.9]))
    assert order.nodes.tolist() == [4, 0, 1, 2, 3]
    assert order.spent.tolist() == [3] * 5
    assert recall_costs(order.nodes, np.array([0.1, 0.9, 0.2, 0.0, 0.5]), spent=order.spent).tolist() == [6, 6, 7, 7, 8]


@pytest.mark.parametrize("seed", range(30))
def test_hierarchical_equals_its_twin(seed):
    """Random scores with ties and sizes from one node on; each node comes up once."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 25))
    tree = tree_of(tuple(Site("mlp.out", layer, None, "end") for layer in range(count)))
    scores = rng.integers(0, 6, len(tree.members)).astype(float) if seed % 2 else rng.random(len(tree.members))
    order = hierarchical(tree, scores)
    by_members = dict(zip(tree.members, scores, strict=True))
    nodes, paid = naive_hierarchical(tree.members[0], by_members.__getitem__)
    assert order.nodes.tolist() == nodes
    np.testing.assert_array_equal(order.spent + np.arange(1, count + 1), paid)
    assert sorted(nodes) == list(range(count))
    assert paid[-1] == max(1, 2 * count - 2)


def test_hierarchical_by_hand():
    """Four nodes: the right half leads, its second node first; the left half is opened when it is the largest left."""
    tree = tree_of(tuple(Site("mlp.out", layer, None, "end") for layer in range(4)))
    assert tree.members == ((0, 1, 2, 3), (0, 1), (2, 3), (0,), (1,), (2,), (3,))
    order = hierarchical(tree, np.array([0.0, 0.4, 0.8, 0.3, 0.2, 0.1, 0.9]))
    assert order.nodes.tolist() == [3, 0, 1, 2]
    assert (order.spent + np.arange(1, 5)).tolist() == [4, 6, 6, 6]


def test_missing_scores_come_last():
    tree = tree_of(tuple(Site("mlp.out", layer, None, "end") for layer in range(3)))
    order = hierarchical(tree, np.array([np.nan, np.nan, 0.5, 0.9, 0.8]))
    assert order.nodes.tolist() == [2, 0, 1]
    assert by_blocks(tree_of(tree.sites[:1]), np.array([np.nan])).nodes.tolist() == [0]


def test_all_equal_scores_keep_an_order():
    tree = tree_of(tuple(Site("mlp.out", layer, None, "end") for layer in range(4)))
    first, second = (hierarchical(tree, np.ones(7)) for _ in range(2))
    assert first.nodes.tolist() == second.nodes.tolist()
    assert recall_curve(first, np.ones(4)).area > 1


def test_bad_blocks_and_trees():
    blocks = blocks_of(SITES, size=4)
    with pytest.raises(BadInput, match="blocks of 0 nodes"):
        blocks_of(SITES, size=0)
    with pytest.raises(BadInput, match="a tree of no nodes"):
        tree_of([])
    for order, sets in ((by_blocks, blocks), (hierarchical, tree_of(SITES))):
        with pytest.raises(BadInput, match="give one a set"):
            order(sets, np.ones(1))
    with pytest.raises(BadInput, match="without a position"):
        joint_scores(opened("gpt2"), EVEN, Tree((Site("attn.head", 0, 0),), ((0,),), (None,)))
    assert blocks_of(()).members == ()
