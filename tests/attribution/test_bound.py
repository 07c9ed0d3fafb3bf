"""The bound on missed nodes: equal to its naive twin, and true as often as it says, in made worlds and on models."""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pytest

from crosspatch.attribution.bound import bound_missed, contrast, p_missed, subsampling_scores, theta_of
from crosspatch.attribution.joint import Asked, Ground, Joint
from crosspatch.attribution.student import t_quantile
from crosspatch.attribution.subsets import Sampling, Subsets, drawn, sample_subsets
from crosspatch.core.errors import BadInput
from crosspatch.engine import Options
from crosspatch.models.model import Model
from crosspatch.sites import Site
from crosspatch.tasks import Task
from naive.verification import naive_mean_effects, naive_t_cdf, naive_welch
from zoo import make_pair, make_task, opened

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma3", "bloom")


def nodes(count):
    return tuple(Site("mlp.out", number, None, "end") for number in range(count))


def made(members, effects, pairs=None, present=None, live=None):
    """Subsets with these members and effects; all pairs have all nodes unless said."""
    pairs = np.zeros(len(effects), dtype=np.int64) if pairs is None else pairs
    present = np.ones((int(pairs.max(initial=0)) + 1, members.shape[1]), dtype=bool) if present is None else present
    ground = Ground(nodes(members.shape[1]), present, present if live is None else live, ("made",))
    packed = np.packbits(members & present[pairs], axis=1)
    return Subsets(ground, packed, np.asarray(effects, dtype=float), pairs, (Sampling(2, 0.5),))


class World:
    """Additive effects with interactions of pairs of nodes, all of them other in each prompt pair, and noise."""

    def __init__(self, seed, count=30, prompts=20):
        self.rng = np.random.default_rng(seed)
        shared = self.rng.standard_normal(count) * (self.rng.random(count) < 0.3)
        self.single = shared + 0.5 * self.rng.standard_normal((prompts, count))
        self.joint = 0.2 * self.rng.standard_normal((prompts, count, count)) * (self.rng.random((count, count)) < 0.1)

    def truth(self, p):
        """E[effect | n in] − E[effect | n out], averaged over prompt pairs."""
        crossed = self.joint + self.joint.transpose(0, 2, 1)
        crossed[:, range(crossed.shape[1]), range(crossed.shape[1])] = 0.0
        own = np.einsum("pnn->pn", self.joint)
        return (self.single + own + p * crossed.sum(2)).mean(0)

    def sample(self, samples, p):
        members = self.rng.random((samples, self.single.shape[1])) < p
        pairs = self.rng.integers(0, len(self.single), samples)
        effects = (self.single[pairs] * members).sum(1)
        effects += np.einsum("sn,snm,sm->s", members, self.joint[pairs], members)
        present = np.ones(self.single.shape, dtype=bool)
        return made(members, effects + 0.3 * self.rng.standard_normal(samples), pairs, present)


def test_contrast_is_welch_done_by_a_double_loop():
    subsets = World(0).sample(60, 0.2)
    found = contrast(subsets)
    for node in range(30):
        difference, error, freedom = naive_welch(subsets.membership, subsets.effects, node)
        assert found.difference[node] == pytest.approx(difference, rel=1e-9)
        assert found.error[node] == pytest.approx(error, rel=1e-9)
        assert found.freedom[node] == pytest.approx(freedom, rel=1e-9)
    np.testing.assert_array_equal(found.inside + found.outside, 60)
    np.testing.assert_allclose(subsampling_scores(subsets), np.abs(found.difference))


def test_thresholds_and_p_values_are_two_sides_of_one_test():
    """θ is where the naive tail falls to 1 − level, and the p-value there is 1 − level."""
    subsets = World(1).sample(80, 0.2)
    bound = bound_missed(subsets, level=0.95)
    for node in range(30):
        difference, error, freedom = naive_welch(subsets.membership, subsets.effects, node)
        t = (bound.thresholds[node] - abs(difference)) / error
        assert naive_t_cdf(t, freedom) == pytest.approx(0.95, abs=1e-9)
    assert bound.theta == bound.thresholds.max() == theta_of(subsets, level=0.95)
    assert bound.node == subsets.sites[int(bound.thresholds.argmax())]
    assert p_missed(subsets, bound.theta) == pytest.approx(0.05, abs=1e-9)
    assert p_missed(subsets, bound.theta * 1.3) < 0.05 < p_missed(subsets, bound.theta * 0.9)


def test_offsets_lose_no_digits():
    """Effects far from zero have the same spread, and samples cut into parts give the same sums."""
    subsets = World(2).sample(90, 0.2)
    moved = made(subsets.membership, subsets.effects + 1e6)
    np.testing.assert_allclose(contrast(moved).error, contrast(subsets).error, rtol=1e-8)


def test_parts_add_up(monkeypatch):
    subsets = World(3).sample(70, 0.3)
    whole = contrast(subsets)
    monkeypatch.setattr("crosspatch.attribution.subsets._AT_ONCE", 300)
    assert len(subsets.parts()) == 7
    np.testing.assert_allclose(contrast(subsets).error, whole.error, rtol=1e-12)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_covers_the_true_maximum_in_made_worlds(level):
    """300 worlds: the bound holds at least as often as it says (less four standard deviations of the count)."""
    held = [theta_of(w.sample(300, 0.1), level=level) >= np.abs(w.truth(0.1)).max() for w in map(World, range(300))]
    assert np.mean(held) >= level
    assert np.mean(held) >= 0.95 or level < 0.95


def test_covers_each_node_by_itself():
    """A single node with an effect that is plain to see is covered as often as said, and not more: it is no maximum."""
    worlds = [w for w in (World(1000 + seed, count=1) for seed in range(3000)) if abs(w.truth(0.3)[0]) > 1]
    held = [theta_of(w.sample(60, 0.3), level=0.9) >= abs(w.truth(0.3)[0]) for w in worlds]
    assert len(held) > 200
    assert np.mean(held) == pytest.approx(0.9, abs=4 * np.sqrt(0.9 * 0.1 / len(held)))


def test_is_not_idle():
    """With many samples the bound comes close to the truth, from above."""
    world = World(4)
    truth = np.abs(world.truth(0.1)).max()
    assert truth <= theta_of(world.sample(40_000, 0.1)) <= 1.15 * truth


@dataclass(frozen=True)
class Case:
    """Four to eight random nodes on two or three random pairs of a family, and the exact effects of all subsets."""

    model: Model
    task: Task
    ground: Ground
    p: float
    effects: np.ndarray  # [subset, pair]; bit i of a subset's number says whether node i is in it

    @cached_property
    def truth(self):
        count = len(self.ground.sites)
        mean = {tuple(bool(code >> i & 1) for i in range(count)): e for code, e in enumerate(self.effects.mean(1))}
        return naive_mean_effects(mean.__getitem__, count, self.p)

    def looked_up(self, design):
        """What `sample_subsets` gives, without running the model again."""
        packed, pairs = drawn(self.ground, design)
        members = np.unpackbits(packed, axis=1, count=len(self.ground.sites)).astype(bool)
        effects = self.effects[members @ (1 << np.arange(members.shape[1])), pairs]
        return Subsets(self.ground, packed, effects, pairs, (design,))


@cache
def random_case(number):
    rng = np.random.default_rng(number)
    model = opened(FAMILIES[number % len(FAMILIES)])
    pairs = [make_pair(7, (int(rng.integers(1, 4)), 5), seed=10 * number + i) for i in range(int(rng.integers(2, 4)))]
    task = make_task(*pairs)
    kinds = ("attn.head", "attn.out", "mlp.out", "resid.pre", "attn.v")
    sites, count = {}, int(rng.integers(4, 9))
    while len(sites) < count:
        kind = str(rng.choice(kinds))
        unit = 0 if kind in ("attn.head", "attn.v") else None
        place = (3, 5, "end", "all")[int(rng.integers(4))]
        sites[Site(kind, int(rng.integers(3)), unit, place)] = None
    ground = Ground.of(model, task, tuple(sites), asked=Asked())
    every = (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(bool)
    effects = Joint(model, task, ground, Asked(), Options()).on_all(every)
    return Case(model, task, ground, (0.2, 0.35, 0.5)[number % 3], np.nan_to_num(effects))


def test_covers_the_exact_maximum_on_real_models():
    """24 models, tasks and sets of nodes, with the truth enumerated over all subsets; sampled by running the model."""
    held = []
    for case in map(random_case, range(24)):
        subsets = sample_subsets(case.model, case.task, case.ground.sites, design=Sampling(150, case.p))
        np.testing.assert_allclose(subsets.effects, case.looked_up(subsets.designs[0]).effects, atol=1e-4)
        held.append(theta_of(subsets, level=0.99) >= np.abs(case.truth).max() - 1e-5)
    assert np.mean(held) >= 0.95


@pytest.mark.parametrize(("samples", "level"), [(60, 0.95), (200, 0.95), (200, 0.99)])
def test_covers_the_exact_maximum_as_often_as_it_says(samples, level):
    """The same cases sampled twenty times each, the effects looked up among the enumerated ones."""
    held = []
    for case in map(random_case, range(24)):
        largest = np.abs(case.truth).max() - 1e-5
        for seed in range(20):
            held.append(theta_of(case.looked_up(Sampling(samples, case.p, seed=seed)), level=level) >= largest)
    assert np.mean(held) >= level - 4 * np.sqrt(level * (1 - level) / len(held))
    assert np.mean(held) >= 0.95


def test_sampled_means_approach_the_enumerated_truth():
    for case in map(random_case, range(6)):
        found = contrast(case.looked_up(Sampling(4000, case.p)))
        assert (np.abs(found.difference - case.truth) <= 4.5 * found.error + 1e-5).all()


def test_verified_and_still_nodes_do_not_count():
    subsets = World(5).sample(80, 0.2)
    bound = bound_missed(subsets)
    less = bound_missed(subsets, verified={bound.node})
    assert less.theta < bound.theta
    assert np.isnan(less.thresholds[subsets.sites.index(bound.node)])
    assert less.theta == np.sort(bound.thresholds)[-2]
    live = subsets.ground.present.copy()
    live[:, subsets.sites.index(bound.node)] = False
    still = made(subsets.membership, subsets.effects, subsets.pairs, subsets.ground.present, live)
    found = bound_missed(still)
    assert found.theta == less.theta
    assert found.thresholds[subsets.sites.index(bound.node)] == 0
    assert subsampling_scores(still)[subsets.sites.index(bound.node)] == 0


def test_samples_on_pairs_without_the_node_say_nothing_of_it():
    subsets = World(6).sample(200, 0.3)
    present = subsets.ground.present.copy()
    present[::2, 4] = False
    part = made(subsets.membership, subsets.effects, subsets.pairs, present)
    kept = np.flatnonzero(present[subsets.pairs, 4])
    expected = naive_welch(subsets.membership[kept], subsets.effects[kept], 4)
    assert contrast(part).difference[4] == pytest.approx(expected[0], rel=1e-9)
    assert contrast(part).error[4] == pytest.approx(expected[1], rel=1e-9)


def test_too_few_samples_are_no_bound_and_said_so():
    members = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=bool)
    subsets = made(members, [1.0, 0.0, 1.1, 3.0, 0.1])
    bound = bound_missed(subsets)
    assert bound.theta == np.inf
    assert bound.node == subsets.sites[1]
    assert "1 of 3 unverified nodes were in fewer than 2 samples" in bound.statement
    assert p_missed(subsets, 100.0) == 1
    known = bound_missed(subsets, verified=[subsets.sites[1]])
    assert np.isfinite(known.theta)
    assert "none of the 2 unverified nodes" in known.statement
    assert np.isnan(subsampling_scores(made(members[:3], [1.0, 0.0, 1.0]))[[1, 2]]).all()


def test_skipped_nodes_must_be_verified():
    case = random_case(2)
    sites = case.ground.sites
    subsets = case.looked_up(Sampling(60, 0.5, skip=frozenset(sites[:1])))
    assert subsets.still[0] or theta_of(subsets) == np.inf
    assert theta_of(subsets, verified=sites[:1]) < np.inf


def test_nothing_left_to_bound():
    subsets = World(7).sample(20, 0.5)
    bound = bound_missed(subsets, verified=subsets.sites)
    assert (bound.theta, bound.node) == (0.0, None)
    assert "Every node was verified" in bound.statement
    assert p_missed(subsets, 1.0, verified=subsets.sites) == 0


def test_equal_effects_have_no_spread():
    members = np.random.default_rng(0).random((40, 3)) < 0.5
    subsets = made(members, np.full(40, 0.7))
    assert theta_of(subsets) == pytest.approx(0, abs=1e-12)
    assert p_missed(subsets, 0.1) == 0
    assert p_missed(subsets, 0.0) == 1


def test_one_node_that_is_the_whole_effect():
    members = np.arange(10)[:, None] % 2 == 0
    subsets = made(members, 2.0 * members[:, 0])
    bound = bound_missed(subsets)
    assert bound.theta == pytest.approx(2.0)
    assert bound.node == subsets.sites[0]


def test_missing_effects_are_left_out():
    subsets = World(8).sample(100, 0.3)
    holes = subsets.effects.copy()
    holes[::3] = np.nan
    kept = ~np.isnan(holes)
    expected = contrast(made(subsets.membership[kept], subsets.effects[kept]))
    found = contrast(made(subsets.membership, holes))
    np.testing.assert_allclose(found.error, expected.error, rtol=1e-9)
    np.testing.assert_array_equal(found.inside, expected.inside)
    assert theta_of(made(subsets.membership, np.full(100, np.nan))) == np.inf


def test_statement_says_what_is_and_what_is_not_bounded():
    text = bound_missed(World(9).sample(100, 0.3), level=0.99).statement
    for words in (
        "99 % confidence",
        "30 unverified nodes",
        "over pairs and over random joint",
        "does not bound",
    ):
        assert words in text
    assert text.count(". ") == 1


def test_more_samples_tighten_the_bound():
    world = World(10)
    first = world.sample(200, 0.1)
    second = world.sample(3000, 0.1)
    second = Subsets(first.ground, second.packed, second.effects, second.pairs, (Sampling(2, 0.5, seed=1),))
    assert theta_of(first.joined(second)) < theta_of(first)


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, -0.1, float("nan")])
def test_bad_levels(level):
    with pytest.raises(BadInput, match="between 0 and 1"):
        bound_missed(World(0).sample(20, 0.5), level=level)


def test_bad_nodes_and_thresholds():
    subsets = World(0).sample(20, 0.5)
    with pytest.raises(BadInput, match="taken as verified"):
        bound_missed(subsets, verified=[Site("mlp.out", 0, None, 3)])
    for theta in (-1.0, float("inf"), float("nan")):
        with pytest.raises(BadInput, match="size of effect"):
            p_missed(subsets, theta)


def test_a_normal_quantile_would_not_do():
    """Few samples need Student's wider tails: the quantile at 3 degrees of freedom is nearly twice the normal one."""
    assert t_quantile(0.99, np.array([3.0]))[0] / t_quantile(0.99, np.array([1e9]))[0] > 1.9
