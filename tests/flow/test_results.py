"""What routes are asked for: edges, summed heads, tables, files, sums over data sets, contrasts, planted truth."""

import json

import numpy as np
import pytest

from crosspatch.core.errors import BadInput, CorruptFile, UnknownName
from crosspatch.core.stats import bootstrap_difference, bootstrap_mean
from crosspatch.flow import Routes, components, contrast, full_graph, routes
from crosspatch.models import open_model
from planted import induction
from zoo import make_pair, make_task, opened, uneven


def found(name="llama", **settings):
    return routes(opened(name), make_task(*uneven()), **settings)


def test_edges_name_their_ends():
    """Heads come from what enters the block, MLPs from behind attention; a parallel block has nothing in between."""
    for name, ends in (("gpt2", {"mid", "post"}), ("gpt_neox", {"post"})):
        route = full_graph(opened(name), [uneven()[1].clean])[0]
        assert {edge.target.partition("[")[0].removeprefix("resid.") for edge in route} == ends
        middle = "mid" if name == "gpt2" else "post"
        edges = {(e.component, e.source, e.target) for e in route}
        assert ("attn.head[0, 1]", "resid.pre[0]@2", f"resid.{middle}[0]@4") in edges
        assert ("attn.head[1, 1]", "resid.post[0]@2", f"resid.{middle}[1]@4") in edges
        assert ("mlp.out[1]", f"resid.{'mid[1]' if name == 'gpt2' else 'post[0]'}@3", "resid.post[1]@3") in edges
        assert ("attn.bias[1]", None, f"resid.{middle}[1]@4") in edges
        assert ("resid", "resid.post[0]@3", f"resid.{middle}[1]@3") in edges


def test_heads_summed():
    """Edges of all heads between two tokens add up; everything else stays."""
    route = found()[0]
    summed = route.heads_summed()
    expected: dict = {}
    for edge in route:
        component = edge.component.replace("head", "out").partition(",")[0] + "]" * ("head" in edge.component)
        key = component, edge.source, edge.target
        expected[key] = expected.get(key, 0.0) + edge.weight
    assert {(e.component, e.source, e.target): e.weight for e in summed} == pytest.approx(expected)
    assert len(summed) < len(route)
    assert len(found().heads_summed()[0]) == len(summed)
    with pytest.raises(BadInput, match="heads were summed"):
        components(found().heads_summed())


def test_edge_list_is_what_graph_libraries_take():
    """(source, target, attributes); a bias is a source of its own."""
    route = full_graph(opened("gpt2"), [uneven()[1].clean])[0]
    edges = route.edge_list()
    assert len(edges) == len(route)
    assert all(set(data) == {"component", "importance", "weight", "flow"} for _, _, data in edges)
    assert {source for source, _, data in edges if data["component"] == "attn.bias[2]"} == {"attn.bias[2]"}


def test_frame_has_a_row_an_edge():
    """One row an edge of each prompt."""
    pytest.importorskip("pandas")
    result = found()
    frame = result.to_frame()
    assert len(frame) == sum(map(len, result))
    assert list(frame.columns) == ["prompt", "component", "source", "target", "importance", "weight", "flow"]
    assert len(components(result).to_frame()) == 3 * 4 + 3
    assert "difference" in contrast(result, result).to_frame()


def test_saved_routes_come_back(tmp_path):
    """Every column, to the bit; what is damaged is refused."""
    result = found("gpt2")
    again = Routes.load(result.save(tmp_path / "routes"))
    assert repr(again) == repr(result)
    for one, two in zip(result, again, strict=True):
        assert (one.tokens, one.end, one.sequential) == (two.tokens, two.end, two.sequential)
        for name, column in {**one.edges, **one.nodes}.items():
            np.testing.assert_array_equal({**two.edges, **two.nodes}[name], column)
    np.testing.assert_array_equal(components(again).values, components(result).values)
    meta = tmp_path / "routes" / "meta.json"
    content = json.loads(meta.read_text())
    content["meta"]["what"] = "effects"
    meta.write_text(json.dumps(content))
    with pytest.raises(CorruptFile, match="holds no saved routes"):
        Routes.load(tmp_path / "routes")


def test_slices_and_places():
    """Routes are a sequence."""
    result = found()
    assert len(result[1:]) == 2
    assert result[-1] is result[2]
    with pytest.raises(UnknownName, match="routes of 3 prompts"):
        result[3]
    assert "edges" in repr(result)


@pytest.mark.parametrize("by", ["weight", "importance", "flow"])
def test_components_add_up_edges(by):
    """Importance is the sum of a component's edges on the route, frequency the share of routes with one."""
    result = found("gpt2", threshold=0.02)
    totals = components(result, by=by)
    for prompt, route in enumerate(result):
        for name in totals.names:
            expected = sum(getattr(edge, by) for edge in route if edge.component == name)
            assert totals[name][prompt] == pytest.approx(expected)
    np.testing.assert_allclose(totals.mean, totals.values.mean(1))
    on = [[any(edge.component == name for edge in route) for route in result] for name in totals.names]
    np.testing.assert_allclose(totals.frequency, np.mean(on, axis=1))
    assert {name.partition("[")[0] for name in totals.names} == {"attn.head", "attn.bias", "mlp.out"}
    low, high = totals.interval()
    assert (low <= totals.mean + 1e-12).all()
    assert (high >= totals.mean - 1e-12).all()
    assert totals.top(1)[0][1] == totals.mean.max()


def test_components_of_a_model_without_biases():
    """Heads and MLPs alone."""
    assert len(components(found("llama")).names) == 3 * 4 + 3


def test_contrast_subtracts_means():
    """Of two sets of any size, or prompt by prompt where they belong together."""
    first = routes(opened("llama"), [pair.clean for pair in uneven()], threshold=0.02)
    second = routes(opened("llama"), [make_pair(8, (1,), seed=seed).clean for seed in range(4)], threshold=0.02)
    one, two = components(first), components(second)
    apart = contrast(first, second)
    np.testing.assert_allclose(apart.difference, one.mean - two.mean)
    np.testing.assert_allclose(apart.frequency, one.frequency - two.frequency)
    assert apart.interval()[0].tolist() == bootstrap_difference(one.values, two.values)[0].tolist()
    together = contrast(first, second[:3], paired=True)
    expected = bootstrap_mean(one.values - two.values[:, :3])
    np.testing.assert_array_equal(together.interval()[1], expected[1])
    assert not contrast(one, one).difference.any()
    assert apart.top(1)[0][1] == apart.difference.max()
    assert "minus" in repr(apart)
    assert "minus" in repr(contrast(first[:1], second))


def test_what_cannot_be_compared():
    """Other models, other importances, pairs that are none, unknown names."""
    result, other = found(), found("gpt2")
    with pytest.raises(BadInput, match="cannot be compared"):
        contrast(result, other)
    with pytest.raises(BadInput, match="cannot be compared"):
        contrast(components(result), components(result, by="flow"))
    with pytest.raises(BadInput, match="3 and 2 prompts make no pairs"):
        contrast(result, result[:2], paired=True)
    with pytest.raises(UnknownName, match="unknown importance 'size'"):
        components(result, by="size")
    with pytest.raises(UnknownName, match="unknown component"):
        components(result)["attn.head[9, 9]"]


def test_difference_of_means_has_the_interval_of_independent_draws():
    """Close to that of normal theory on many examples, and none for a single one."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(1.0, 1.0, (1, 400)), rng.normal(0.0, 2.0, (1, 100))
    low, high = bootstrap_difference(first, second)
    middle, error = first.mean() - second.mean(), np.sqrt(first.var() / 400 + second.var() / 100)
    assert low[0] == pytest.approx(middle - 1.96 * error, abs=0.05)
    assert high[0] == pytest.approx(middle + 1.96 * error, abs=0.05)
    assert np.isnan(bootstrap_difference(first, second[:, :1])[0]).all()


def test_planted_induction():
    """The answer is read off B by head 1.0; the head that looks for it two tokens back writes what nobody reads.

    Routes follow values: the key by which B is found (head 0.0 at B) is on the route as what else B's stream holds.
    """
    planted = induction.build()
    result = routes(open_model(planted.module), planted.task())
    names = planted.names
    for route in result:
        edges = {(e.component, e.source, e.target): e.weight for e in route}
        end = len(route.tokens) - 1
        assert ("attn.head[1, 0]", f"resid.post[0]@{names['B']}", f"resid.mid[1]@{end}") in edges
        assert ("attn.head[0, 0]", f"resid.pre[0]@{names['A1']}", f"resid.mid[0]@{names['B']}") in edges
        into = {e.source for e in route if e.component == "attn.head[1, 0]"}
        assert into == {f"resid.post[0]@{names['B']}"}
        heads = [e for e in route if e.component.startswith("attn.head[0, 0]")]
        # each looks exactly one token back
        assert {int(e.target.split("@")[1]) - int(e.source.split("@")[1]) for e in heads} == {1}
        assert not [e for e in route if e.component.startswith("mlp.out")]
    totals = components(result)
    assert totals.frequency[totals.names.index("attn.head[1, 0]")] == 1.0
    assert totals["mlp.out[0]"].max() == 0.0


def test_corrupt_prompts_lose_the_planted_head():
    """Where no earlier copy is there, the head rests on the first token, which says nothing: no proximity is left."""
    planted = induction.build()
    model, task = open_model(planted.module), planted.task()
    against = contrast(
        routes(model, task), routes(model, [pair.corrupt for pair in task.pairs]), paired=True, by="importance"
    )
    name, difference = against.top(1)[0]
    assert name == "attn.head[1, 0]"
    assert difference > 0.1
