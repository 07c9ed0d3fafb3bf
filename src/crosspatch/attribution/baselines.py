"""Baselines that order nodes for verification by exact patches alone: brute force, subsampling, blocks, a tree."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from crosspatch.attribution.bound import subsampling_scores
from crosspatch.attribution.joint import Asked, Ground, Joint
from crosspatch.attribution.recall import Order
from crosspatch.attribution.subsets import Subsets
from crosspatch.core.errors import BadInput
from crosspatch.engine.sweep import Options
from crosspatch.models.model import Model
from crosspatch.sites import KINDS, Site
from crosspatch.tasks import Task

Scores = Float64[np.ndarray, " set"]
_RANK = {name: rank for rank, name in enumerate(KINDS)}


@dataclass(frozen=True)
class Blocks:
    """Sets of nodes to patch jointly: `members[b]` are indices into `sites`, in the order that they are verified in."""

    sites: tuple[Site, ...]
    members: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Tree(Blocks):
    """A binary tree over the nodes: set 0 is the root, `children[s]` the halves of set s, or None for a single node."""

    children: tuple[tuple[int, int] | None, ...]


def brute_force(nodes: int, *, seed: int = 0) -> Order:
    """Order nodes at random: no estimate, so nothing is spent on one."""
    return Order("brute force", np.random.default_rng(seed).permutation(nodes), np.zeros(nodes))


def expected_brute_force(nodes: int) -> Float64[np.ndarray, " k"]:
    """Give the mean cost of the top K in random order, K(n + 1)/(K + 1): that of the last of K among n places."""
    ranks = np.arange(1, nodes + 1)
    return ranks * (nodes + 1) / (ranks + 1)


def subsampling(subsets: Subsets) -> Order:
    """Order nodes by |mean with − mean without| of sampled subsets; m samples cost m / pairs passes over all pairs.

    Nodes that were in no sample come last.
    """
    return Order.by_score("subsampling", subsampling_scores(subsets), spent=subsets.spent)


def blocks_of(sites: Sequence[Site], *, size: int | None = None) -> Blocks:
    """Group nodes by layer and kind, or by `size` neighbours in the order of layer, position and unit.

    Raises:
        BadInput: a size below 1.
    """
    if size is not None and size < 1:
        raise BadInput(f"blocks of {size} nodes: give 1 or more, or leave it out for one block a layer and kind.")
    places = in_order(sites)
    if size is not None:
        return Blocks(tuple(sites), tuple(tuple(places[i : i + size]) for i in range(0, len(places), size)))
    groups: dict[tuple[int | None, str], list[int]] = {}
    for place in places:
        groups.setdefault((sites[place].layer, sites[place].kind), []).append(place)
    return Blocks(tuple(sites), tuple(map(tuple, groups.values())))


def tree_of(sites: Sequence[Site]) -> Tree:
    """Halve the nodes, in the order of layer, position and unit, until each is alone: 2n − 1 sets.

    Raises:
        BadInput: no sites.
    """
    if not sites:
        raise BadInput("a tree of no nodes: give one site at least.")
    members: list[tuple[int, ...]] = [tuple(in_order(sites))]
    children: list[tuple[int, int] | None] = []
    while len(children) < len(members):
        here = members[len(children)]
        if len(here) == 1:
            children.append(None)
            continue
        children.append((len(members), len(members) + 1))
        half = (len(here) + 1) // 2
        members += [here[:half], here[half:]]
    return Tree(tuple(sites), tuple(members), tuple(children))


def in_order(sites: Sequence[Site]) -> list[int]:
    """Sort the nodes by layer, position and unit; positions as they first come, which is their order in a selection."""
    positions = {place: rank for rank, place in enumerate(dict.fromkeys(site.position for site in sites))}

    def key(index: int) -> tuple[int, int, int, int]:
        site = sites[index]
        layer, unit = (-1 if number is None else number for number in (site.layer, site.unit))
        return layer, positions[site.position], _RANK[site.kind], unit

    return sorted(range(len(sites)), key=key)


def joint_scores(
    model: Model, task: Task, blocks: Blocks, *, asked: Asked | None = None, options: Options | None = None
) -> Scores:
    """Patch each set of nodes jointly, in one run a pair, and average |effect| over the pairs that have any of it.

    For a `Tree` this is one sweep of all its sets; a set of one node has that node's exact score.

    Raises:
        UnknownName, BadInput: as `patch` does, and with uneven pairs as `sample_subsets` does.
    """
    asked = asked or Asked()
    ground = Ground.of(model, task, blocks.sites, asked=asked)
    if ground.sites != blocks.sites:
        raise BadInput("sites without a position, or given twice: give each node once and say where it is.")
    sets = np.zeros((len(blocks.members), len(ground.sites)), dtype=np.bool_)
    for row, members in zip(sets, blocks.members, strict=True):
        row[list(members)] = True
    effects = np.abs(Joint(model, task, ground, asked, options or Options()).on_all(sets))
    there = ~np.isnan(effects)
    return np.where(there, effects, 0.0).sum(axis=1) / np.where(there.any(axis=1), there.sum(axis=1), np.nan)


def by_blocks(blocks: Blocks, scores: Scores) -> Order:
    """Order nodes block by block, the largest joint effect first; every block was patched before.

    Raises:
        BadInput: another number of scores than blocks.
    """
    _require_scores(blocks, scores)
    ranked = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    nodes = np.array([node for block in ranked for node in blocks.members[block]], dtype=np.int64)
    return Order("blocks", nodes, np.full(len(nodes), float(len(scores))))


def hierarchical(tree: Tree, scores: Scores) -> Order:
    """Order nodes by opening the set with the largest joint effect first; a single node that comes up is verified.

    Opening a set patches its two halves; the root needs no patch. A node counts as verified when it comes up, by when
    the patches of all halves so far have been spent. Ties go to the set that was patched earlier, NaN comes last.

    Raises:
        BadInput: another number of scores than sets.
    """
    _require_scores(tree, scores)
    ranks = np.nan_to_num(scores, nan=-np.inf)
    queue, patches = [(0.0, 0, 0)], int(len(tree.sites) == 1)  # −score, when it was patched, the set
    nodes, paid = [], []
    while queue:
        *_, here = heapq.heappop(queue)
        halves = tree.children[here]
        if halves is None:
            nodes.append(tree.members[here][0])
            paid.append(float(patches))
            continue
        for half in halves:
            patches += 1
            heapq.heappush(queue, (-float(ranks[half]), patches, half))
    verified = np.arange(1, len(nodes) + 1)
    return Order("hierarchical", np.array(nodes, dtype=np.int64), np.array(paid) - verified)


def _require_scores(blocks: Blocks, scores: Scores) -> None:
    if len(scores) != len(blocks.members):
        raise BadInput(f"{len(scores)} scores for {len(blocks.members)} sets of nodes: give one a set.")
