"""Probes: a planted direction is found, controls are at chance, groups never leak, layers never by the test set."""

import json
import sys

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from crosspatch.core.errors import BadInput, CorruptFile, MissingExtra, NotFinite, UnknownName
from crosspatch.lenses import ProbedLayers, ProbeResult, Probing, probe, probe_layers
from crosspatch.lenses.probe_data import permuted_labels, read_features, read_question
from crosspatch.lenses.probe_split import split_examples
from naive.lenses import probe_accuracy

N, D = 200, 8
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, N)
NOISE = RNG.normal(size=(N, D))
DIRECTION = np.linspace(1, -1, D) / np.linalg.norm(np.linspace(1, -1, D))
PLANTED = NOISE + 2.5 * np.outer(2 * LABELS - 1, DIRECTION)
WORDS = RNG.integers(0, 25, N)
FEW = Probing(controls=3)


def test_a_planted_direction_is_found_and_controls_are_at_chance():
    """Accuracy is high, control labels of recurring words are near the majority, selectivity is far above zero."""
    found = probe(PLANTED, LABELS, types=WORDS)
    accuracy, low, high = found.accuracy()
    assert 0.93 < low <= accuracy <= high
    assert abs(found.control()[0] - 0.5) < 0.15  # of 25 words, one class may get 16 in a draw
    assert found.selectivity()[1] > 0.3
    assert found.selectivity()[0] == pytest.approx(accuracy - found.control()[0])
    assert found.majority == pytest.approx(0.5, abs=0.08)
    assert found.cautions == ()


def test_noise_is_at_chance():
    """The interval of the accuracy holds a half; of selectivity, zero."""
    found = probe(NOISE, LABELS, types=WORDS)
    assert found.accuracy()[1] < 0.5 < found.accuracy()[2]
    assert found.selectivity()[1] < 0 < found.selectivity()[2]


@pytest.mark.parametrize("groups", [None, np.arange(N) // 5], ids=["alone", "grouped"])
def test_the_numbers_are_those_of_plain_sklearn(groups):
    """The same fit by hand on the same examples, for the labels and for each control task."""
    found = probe(PLANTED * 5 + 3, LABELS, groups=groups, types=WORDS, probing=FEW)
    kept = np.setdiff1d(np.arange(N), found.test)
    assert found.accuracy()[0] == pytest.approx(probe_accuracy(PLANTED * 5 + 3, LABELS, kept, found.test))
    assert found.truth.tolist() == LABELS[found.test].tolist()
    # a word has one control label, whichever example it is in
    for labels in found.control_truth:
        assert all(len(set(labels[WORDS[found.test] == word])) <= 1 for word in range(25))


def test_a_word_may_be_memorised():
    """Features that name the word: the real labels and the control are learnt alike, so nothing is selective."""
    onehot = np.eye(25)[WORDS]
    of_word = RNG.integers(0, 2, 25)[WORDS]
    found = probe(onehot, of_word, types=WORDS)
    assert found.accuracy()[0] > 0.95
    assert found.control()[0] > 0.95
    assert abs(found.selectivity()[0]) < 0.05


def test_an_mlp_finds_what_no_line_can():
    """Exclusive or of two numbers."""
    x = RNG.normal(size=(300, 2))
    y = (x[:, 0] > 0) ^ (x[:, 1] > 0)
    settings = Probing(controls=0, penalty=0.1)
    assert probe(x, y, kind="mlp", probing=settings).accuracy()[1] > 0.85
    assert probe(x, y, probing=settings).accuracy()[2] < 0.75


def test_groups_do_not_leak():
    """Features name the group and each group has a random label: known groups would be named, new ones are guessed."""
    groups = np.arange(N) // 4
    of_group = np.random.default_rng(5).permutation(np.repeat([0, 1], 25))[groups]
    names = np.eye(50)[groups]
    guarded, leaking = probe(names, of_group, groups=groups, probing=FEW), probe(names, of_group, probing=FEW)
    assert leaking.accuracy()[0] > 0.9  # but for groups of which all four are held out
    assert guarded.accuracy()[0] < 0.7
    kept = np.setdiff1d(np.arange(N), guarded.test)
    assert not set(groups[kept]) & set(groups[guarded.test])


@pytest.mark.parametrize("seed", range(5))
def test_splits_keep_groups_whole_and_classes_even(seed):
    """Groups of unequal size and mixed labels; without groups each class gives its share as in scikit-learn."""
    rng = np.random.default_rng(seed)
    labels, groups = rng.choice(3, size=150, p=[0.6, 0.3, 0.1]), rng.zipf(1.5, size=150) % 40
    examples = read_question(labels, groups, None).examples
    kept, test = split_examples(examples, 0.3, seed=seed)
    assert sorted((*kept, *test)) == list(range(150))
    assert not set(groups[kept]) & set(groups[test])
    for label in range(3):
        share = (labels[test] == label).sum() / (labels == label).sum()
        assert share == pytest.approx(0.3, abs=0.15)
    alone = split_examples(read_question(labels, None, None).examples, 0.3, seed=seed)[1]
    theirs = train_test_split(np.arange(150), test_size=len(alone), stratify=labels, random_state=0)[1]
    assert np.abs(np.bincount(labels[alone]) - np.bincount(labels[theirs])).max() <= 1


def test_intervals_are_over_groups():
    """Examples of a group that stand and fall together tell no more than one of them."""
    groups = np.arange(N) // 10
    of_group = np.resize([0, 1], 20)[groups]
    x = np.repeat(np.random.default_rng(2).normal(size=(20, 1)), 10, axis=0) + of_group[:, None]
    found = probe(x, of_group, groups=groups, probing=Probing(controls=0, held_out=0.5))
    alone = ProbeResult(**{**vars(found), "groups": np.arange(len(found))})
    width, other = (each.accuracy()[2] - each.accuracy()[1] for each in (found, alone))
    assert width > 2 * other


def test_p_values_are_small_where_something_is_learnt_and_uniform_where_not():
    """The least p that the draws allow for a planted label; for noise, p-values of several seeds lie about a half."""
    assert probe(PLANTED, LABELS, probing=Probing(controls=0, permutations=19)).p == pytest.approx(0.05)
    found = [
        probe(NOISE[:60], LABELS[:60], probing=Probing(controls=0, permutations=9, seed=seed)).p for seed in range(6)
    ]
    assert 0.25 < np.mean(found) < 0.95


def test_permutations_keep_what_the_null_keeps():
    """Groups of one label stay so; mixed groups keep their own labels."""
    rng, groups = np.random.default_rng(0), np.arange(40) // 4
    pure = permuted_labels(read_question((groups % 2).tolist(), groups, None).examples, rng)
    assert all(len(set(pure[groups == g])) == 1 for g in range(10))
    assert (pure != groups % 2).any()
    mixed = rng.integers(0, 2, 40)
    moved = permuted_labels(read_question(mixed, groups, None).examples, rng)
    assert all(sorted(moved[groups == g]) == sorted(mixed[groups == g]) for g in range(10))
    assert (moved != mixed).any()


def test_the_best_layer_is_chosen_by_validation_alone():
    """A layer that is made to look perfect on the test examples is not chosen."""
    test = probe(NOISE, LABELS, probing=FEW).test
    cheat = NOISE.copy()
    cheat[test] += 20 * np.outer(2 * LABELS[test] - 1, DIRECTION)
    cheat[np.setdiff1d(np.arange(N), test)] += 0.3 * np.outer(
        2 * LABELS[np.setdiff1d(np.arange(N), test)] - 1, DIRECTION
    )
    weak = NOISE + 1.2 * np.outer(2 * LABELS - 1, DIRECTION)
    found = probe_layers({3: NOISE, 4: weak, 5: cheat}, LABELS, types=WORDS, probing=FEW)
    assert found[5].accuracy()[0] > found[4].accuracy()[0]
    assert found.best == "4"
    np.testing.assert_array_equal(found[4].predicted, probe(weak, LABELS, types=WORDS, probing=FEW).predicted)
    assert found.validation_correct.shape == (3, 36)  # a quarter of each class of 140
    assert len({tuple(result.test) for result in found.results}) == 1


def test_validation_groups_are_on_no_other_side():
    """Fitted, validation and test examples have no group in common."""
    groups = np.arange(N) // 5
    found = probe_layers({0: PLANTED}, LABELS, groups=groups, probing=FEW)
    rest = set(groups) - set(found[0].groups) - set(found.validation_groups)
    assert not set(found[0].groups) & set(found.validation_groups)
    assert len(rest) > 15


def test_texts_and_truths_are_labels():
    """Classes are what was given."""
    names = np.where(LABELS, "verb", "noun")
    found = probe(PLANTED, names.tolist(), probing=FEW)
    assert found.classes == ("noun", "verb")
    assert set(found.to_frame().label) == {"noun", "verb"}
    assert probe(PLANTED, LABELS.astype(bool), probing=FEW).classes == (0, 1)


def test_the_seed_decides():
    """Alike for one seed, another split for another."""
    first, same, other = (probe(PLANTED, LABELS, probing=Probing(controls=2, seed=s)) for s in (0, 0, 1))
    assert first.summary() == same.summary()
    assert set(first.test) != set(other.test)


def test_cautions(monkeypatch):
    """More numbers than examples, few groups, types that never recur, a fit that was cut short."""
    wide = probe(RNG.normal(size=(40, 60)), LABELS[:40], groups=np.arange(40) // 5, probing=FEW)
    assert [text.split()[0] for text in wide.cautions] == [str(wide.fitted), "only", "no"]
    assert "Cover 1965" in repr(wide)
    monkeypatch.setattr("crosspatch.lenses.probe_fit.MOST_STEPS", 2)
    assert "raise the penalty" in probe(PLANTED, LABELS, probing=FEW).cautions[-1]


def test_they_show_and_save_themselves(tmp_path, monkeypatch):
    """As text, HTML, JSON, pandas and folders that come back the same."""
    found = probe(PLANTED, LABELS, probing=Probing(controls=2, permutations=3))
    layers = probe_layers({"a": NOISE, "b": PLANTED}, LABELS, probing=FEW)
    for each, kind in ((found, ProbeResult), (layers, ProbedLayers)):
        back = kind.load(each.save(tmp_path / kind.__name__))
        assert repr(back) == repr(each)
        assert json.dumps(back.summary()) == json.dumps(each.summary())
        assert "<script" not in each._repr_html_()
        with pytest.raises(CorruptFile, match="as crosspatch writes"):
            (ProbedLayers if kind is ProbeResult else ProbeResult).load(tmp_path / kind.__name__)
    assert "p by permutation" in repr(found)
    assert len(found.to_frame()) == len(found) == 60
    assert found.to_frame().correct.mean() == found.accuracy()[0]
    assert len(layers.to_frame()) == 120
    assert probe(PLANTED, LABELS, probing=Probing(controls=0)).summary()["selectivity"]["mean"] is None
    with pytest.raises(UnknownName, match="layer"):
        layers["c"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    for each in (found, layers):
        with pytest.raises(MissingExtra, match="pandas"):
            each.to_frame()


def test_without_sklearn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtra, match=r"crosspatch\[probes\]"):
        probe(PLANTED, LABELS)


def test_what_cannot_be_probed_is_refused():
    """Each with what to do."""
    hole = PLANTED.copy()
    hole[7, 2] = np.nan
    with pytest.raises(NotFinite, match="example 7"):
        probe(hole, LABELS)
    for features, labels, message in (
        (PLANTED[:-1], LABELS, "a row a label"),
        (PLANTED, np.zeros(N, int), "two classes or more"),
        (PLANTED, LABELS + 0.5, "bins first"),
        (PLANTED, np.array([0, "a"] * 100, dtype=object), "mix texts"),
        (PLANTED, [2, *LABELS[1:]], "class 2"),
    ):
        with pytest.raises(BadInput, match=message):
            probe(features, labels)
    for features, message in ((PLANTED[:, 0], "a row a label"), ({0: PLANTED}, "probe_layers")):
        with pytest.raises(BadInput, match=message):
            read_features(features, N)
    with pytest.raises(BadInput, match="groups have shape"):
        probe(PLANTED, LABELS, groups=[1, 2])
    with pytest.raises(BadInput, match="types have shape"):
        probe(PLANTED, LABELS, types=[1, 2])
    with pytest.raises(BadInput, match="two groups at least"):
        probe(PLANTED, LABELS, groups=LABELS)
    with pytest.raises(UnknownName, match="kind of probe"):
        probe(PLANTED, LABELS, kind="svm")
    with pytest.raises(BadInput, match="between 0 and 1"):
        probe(PLANTED, LABELS, probing=Probing(held_out=1.0))
    with pytest.raises(BadInput, match="penalty above zero"):
        Probing(penalty=0.0)
    with pytest.raises(BadInput, match="one at least"):
        probe_layers({}, LABELS)
