"""The cost of verified recall against a naive simulation, and its picture."""

from xml.etree import ElementTree

import numpy as np
import pytest

from crosspatch.attribution.recall import Order, RecallCurve, area, oracle, recall_costs, recall_curve
from crosspatch.attribution.recall_plot import recall_svg
from crosspatch.core.errors import BadInput
from crosspatch.draw import Curve, curves_svg
from naive.verification import naive_area, naive_recall


@pytest.mark.parametrize("seed", range(20))
def test_costs_equal_a_simulation(seed):
    """With ties among the true scores, and with costs that grow on the way."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 30))
    truth = rng.integers(0, 8, count).astype(float)
    order, spent = rng.permutation(count), np.cumsum(rng.integers(0, 3, count)).astype(float)
    paid = np.arange(1, count + 1) + spent
    np.testing.assert_allclose(recall_costs(order, truth, spent=spent), naive_recall(order, truth, paid))
    curve = recall_curve(Order("m", order, spent), truth)
    assert curve.area == pytest.approx(naive_area(list(curve.costs)), rel=1e-12)


def test_a_case_by_hand():
    """Truth ranks nodes 2, 0, 1; verified in the order 0, 1, 2 after an estimate of 3 passes."""
    costs = recall_costs([0, 1, 2], np.array([0.5, 0.1, 0.9]), spent=3)
    assert costs.tolist() == [6, 6, 6]
    assert recall_costs([2, 1, 0], np.array([0.5, 0.1, 0.9])).tolist() == [1, 3, 3]


def test_the_oracle_is_the_unit():
    truth = np.array([0.3, 0.3, 0.9, 0.0])
    curve = recall_curve(Order.by_score("oracle", truth), truth)
    assert curve.costs.tolist() == oracle(truth).tolist() == [1, 2, 3, 4]
    assert curve.area == 1
    assert recall_curve(Order.by_score("paid", truth, spent=2), truth).area > 1


def test_estimates_rank_ties_by_index_and_missing_ones_last():
    scores = np.array([np.nan, 1.0, 2.0, 1.0, np.inf, 0.0])
    assert Order.by_score("e", scores).nodes.tolist() == [4, 2, 1, 3, 5, 0]


def test_first_ranks_weigh_most():
    """Twice the cost at K = 1 alone costs more than at K = 3 alone."""
    assert area(np.array([2.0, 2, 3]), np.array([1.0, 2, 3])) > area(np.array([1.0, 2, 6]), np.array([1.0, 2, 3]))


def test_no_one_and_equal_nodes():
    none = recall_curve(Order.by_score("none", np.zeros(0)), np.zeros(0))
    assert none.costs.shape == (0,)
    assert np.isnan(none.area)
    assert recall_curve(Order.by_score("one", np.zeros(1)), np.zeros(1)).costs.tolist() == [1]
    assert recall_costs([2, 0, 1], np.ones(3)).tolist() == [2, 3, 3]


@pytest.mark.parametrize(
    ("order", "truth", "spent", "words"),
    [
        ([0, 0], [1.0, 2.0], 0, "must stand in it once"),
        ([0, 1, 2], [1.0, 2.0], 0, "an order of 3 entries for 2 nodes"),
        ([1, 2], [1.0, 2.0], 0, "0..1"),
        ([0, 1], [1.0, np.nan], 0, "1 of 2 true scores are no number"),
        ([0, 1], [1.0, 2.0], np.zeros(3), "one a place"),
    ],
)
def test_bad_orders(order, truth, spent, words):
    with pytest.raises(BadInput, match=words):
        recall_costs(order, np.array(truth), spent=spent)


def test_bad_costs():
    with pytest.raises(BadInput, match="2 and 3 ranks"):
        area(np.ones(2), np.ones(3))
    with pytest.raises(BadInput, match="above zero"):
        area(np.array([0.0, 1.0]), np.ones(2))


def lines(svg):
    """Read the points of each curve off its path."""
    root = ElementTree.fromstring(svg)
    paths = [e for e in root.iter() if e.get("class") == "curve"]
    return [[tuple(map(float, p.split())) for p in e.get("d", "M")[1:].split("L") if p] for e in paths]


def test_picture_shows_every_method_at_its_place():
    curves = [RecallCurve("oracle", np.arange(1.0, 101), 1.0), RecallCurve("<brute>", np.full(100, 100.0), 12.3)]
    svg = recall_svg(curves, relative=False)
    first, second = lines(svg)
    assert (first[0], first[-1]) == ((58.0, 260.0), (418.0, 30.0))
    assert first[9] == (238.0, 145.0)
    assert {y for _, y in second} == {30.0}
    words = "".join(ElementTree.fromstring(svg).itertext())
    for text in ("oracle (1.00)", "<brute> (12.30)", "K, true top nodes", "forward passes", "100"):
        assert text in words
    assert 'stroke="#0072b2"' in svg
    assert 'fill="currentColor"' in svg


def test_relative_costs_divide_by_the_oracle():
    flat, falling = lines(
        recall_svg([RecallCurve("oracle", np.arange(1.0, 6), 1.0), RecallCurve("b", np.full(5, 5.0), 2.0)])
    )
    assert {y for _, y in flat} == {260.0}
    assert (falling[0][1], falling[-1][1]) == (30.0, 260.0)


def test_many_lines_and_points_stay_apart_and_few():
    """Colours repeat with other dashes; long lines keep their ends and at most 400 points."""
    svg = curves_svg(
        [Curve(f"c{i}", np.arange(1.0, 5001), np.arange(1.0, 5001)) for i in range(8)],
        title="t",
        x_label="x",
        y_label="y",
    )
    styles = {
        (e.get("stroke"), e.get("stroke-dasharray"))
        for e in ElementTree.fromstring(svg).iter()
        if e.get("class") == "curve"
    }
    assert len(styles) == 8
    assert all(len(line) <= 400 and (line[0], line[-1]) == ((58.0, 260.0), (418.0, 30.0)) for line in lines(svg))


def test_pictures_of_little():
    """One point, no point, and numbers that are missing."""
    none, one = (Curve("n", np.zeros(0), np.zeros(0)), Curve("o", np.ones(1), np.ones(1)))
    gap = Curve("g", np.arange(1.0, 4), np.array([1.0, np.nan, 3.0]))
    found = lines(curves_svg([none, one, gap], title="t", x_label="x", y_label="y"))
    assert [len(line) for line in found] == [0, 2, 2]
    assert lines(curves_svg([none], title="t", x_label="x", y_label="y")) == [[]]


def test_bad_pictures():
    with pytest.raises(BadInput, match="no curves"):
        recall_svg([])
    with pytest.raises(BadInput, match="logarithmic"):
        curves_svg([Curve("zero", np.array([0.0]), np.ones(1))], title="t", x_label="x", y_label="y")
