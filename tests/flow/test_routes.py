"""Routes equal those found by hand; parts add up, importances sum to one, and skipping parts changes nothing."""

import numpy as np
import pytest
import torch

from crosspatch.core.errors import BadInput, NotFinite, NotProved, UnknownName
from crosspatch.flow import full_graph, routes
from crosspatch.flow import parts as parts_module
from crosspatch.flow.parts import heads_at
from crosspatch.flow.proximity import EPSILON, proximity
from crosspatch.flow.reading import read
from crosspatch.models import open_model
from crosspatch.models.output import Output, output_of
from naive import routes as naive
from zoo import ZOO, fresh, make_pair, make_task, opened, uneven

FAMILIES = [name for name, beast in ZOO.items() if not beast.own_attention]
OWN = [name for name, beast in ZOO.items() if beast.own_attention]
BIASED = ("gpt2", "gpt_neox", "opt", "phi", "gpt_oss", "starcoder2", "gpt_bigcode", "gpt_bigcode_mha")
SHORT = make_pair(6, (2, 4), seed=1)


def as_naive(route, value):
    """Return a route's edges as the twin names them."""

    def node(name):
        if name is None:
            return None
        kind, _, rest = name.partition("[")
        layer, _, position = rest.partition("]@")
        return 2 * int(layer) + {"resid.pre": 0, "resid.mid": 1, "resid.post": 2}[kind], int(position)

    return {(e.component, node(e.source), node(e.target)): getattr(e, value) for e in route}


def assert_same(found, expected, *, tolerance=1e-4):
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_full_graph_equals_the_twin(name):
    """Every edge of every token has the importance that plain hooks and the published formula give."""
    found = as_naive(full_graph(opened(name), [SHORT.clean])[0], "importance")
    assert_same(found, naive.graph(name, SHORT.clean))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("threshold", [0.02, 0.06])
def test_routes_equal_the_twin(name, threshold):
    """Edges and weights are those of a search through the full graph made by hand, in prompts of several lengths."""
    task = make_task(*uneven())
    for pair, route in zip(task.pairs, routes(opened(name), task, threshold=threshold), strict=True):
        end = (6, len(pair.clean) - 1)
        assert_same(as_naive(route, "weight"), naive.route(naive.graph(name, pair.clean), end, threshold))


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_add_up_to_what_attention_adds(name):
    """All heads' shares of all tokens, and the bias, sum to attn.out, to 1e-5."""
    with read(opened(name), [SHORT.clean]) as reading:
        where = torch.arange(6)[None]
        for layer in range(3):
            output, real = reading.output(layer), torch.ones(1, 6, dtype=torch.bool)
            heads = heads_at(reading, layer, output, where=where, real=real, tolerance=1e-5)
            at = torch.cartesian_prod(torch.tensor([0]), torch.arange(6), torch.arange(4), torch.arange(6))
            rows, index = heads.mapped(torch.ones(1, 4, 6, dtype=torch.bool))
            parts = heads.part(at, rows, index).view(6, 24, -1).sum(1)
            parts = parts + heads.bias[0] if output.biased else parts
            added = reading.added("attn.out", layer)[0]
            assert float((parts - added).abs().max()) <= 1e-5 * float(added.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_importances_sum_to_one(name):
    """At each node of the full graph, and the weights at each node of a route."""
    for found, value in ((full_graph(opened(name), [SHORT.clean])[0], "importance"), (routes_of(name), "weight")):
        sums = {}
        for edge in found:
            sums[edge.target] = sums.get(edge.target, 0.0) + getattr(edge, value)
        assert list(sums.values()) == pytest.approx([1.0] * len(sums), abs=1e-9)


def routes_of(name, **settings):
    return routes(opened(name), [SHORT.clean], **settings)[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_top_down_is_the_full_graph_restricted_to_the_route(name):
    """Importances on the route are those of the full graph, and nothing above the threshold is missing there."""
    route = routes_of(name)
    full = as_naive(full_graph(opened(name), [SHORT.clean], threshold=0.04)[0], "importance")
    found = as_naive(route, "importance")
    targets = {edge[2] for edge in found}
    assert_same(found, {edge: share for edge, share in full.items() if edge[2] in targets}, tolerance=1e-6)
    sources = {edge[1] for edge in found if edge[1] is not None}
    assert targets <= sources | {(6, 5)}
    assert set(route.reached) == {e.source for e in route if e.source} | {route_end(route)}


def route_end(route):
    return f"resid.post[2]@{route.end}"


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma3", "olmo2", "gpt_oss"])
@pytest.mark.parametrize("seed", range(4))
def test_pruning_changes_nothing(name, seed):
    """Random prompts: the same edges and weights whatever is skipped, and the same importances with "exact"."""
    prompts = [make_pair(length, (1,), seed=seed).clean for length in (13, 4, 17)]
    threshold = 0.01 * (1 + seed)
    every, exact, route = (
        routes(opened(name), prompts, threshold=threshold, prune=prune) for prune in ("none", "exact", "route")
    )
    for one, two, three in zip(every, exact, route, strict=True):
        for name_, column in one.edges.items():
            np.testing.assert_allclose(two.edges[name_], column, rtol=1e-5, atol=0)
            if name_ != "importance":
                np.testing.assert_allclose(three.edges[name_], column, rtol=1e-5, atol=0)
        assert_bounds(one, three)
        skipped = [int(each.nodes["skipped"].sum()) for each in (one, two, three)]
        assert skipped[0] == 0 < skipped[1] <= skipped[2]
        counts = one.nodes["evaluated"]
        for each in (two, three):
            np.testing.assert_array_equal(each.nodes["evaluated"] + each.nodes["skipped"], counts)
        np.testing.assert_allclose(two.nodes["clipped"], one.nodes["clipped"], rtol=1e-6)


def assert_bounds(exact, bounded):
    """True importances lie between those given with "route" and those times 1 + slack."""
    slack = dict(zip(zip(*keys(bounded), strict=True), bounded.nodes["slack"], strict=True))
    ends = zip(bounded.edges["stage"], bounded.edges["target"], strict=True)
    high = bounded.edges["importance"] * (1 + np.array([slack[end] for end in ends]))
    assert (bounded.edges["importance"] <= exact.edges["importance"] * (1 + 1e-5)).all()
    assert (exact.edges["importance"] <= high * (1 + 1e-5)).all()


def keys(route):
    return route.nodes["stage"].tolist(), route.nodes["position"].tolist()


def test_the_threshold_skips_parts():
    """In a long prompt few parts can reach the threshold, and the rest leaves importances a little open."""
    prompt = [make_pair(40, (1,)).clean]
    exact, route = (routes(opened("llama"), prompt, prune=prune)[0] for prune in ("exact", "route"))
    np.testing.assert_allclose(route.edges["weight"], exact.edges["weight"], rtol=1e-6)
    assert route.nodes["skipped"].sum() > 1.2 * exact.nodes["skipped"].sum()
    assert np.nanmax(route.nodes["slack"]) > 0


def test_the_bound_matters(monkeypatch):
    """With a bound that is too low, parts are lost: the test above sees it."""
    monkeypatch.setattr(parts_module, "_products", lambda directions, values: 0.0 * products(directions, values))
    lost, kept = routes_of("llama", prune="exact"), routes_of("llama", prune="none")
    assert len(lost) < len(kept)


products = parts_module._products


@pytest.mark.parametrize("name", BIASED)
def test_biases_are_parts_once(name):
    """The output bias is a part of its own at every node behind attention, and it comes from no token."""
    edges = [edge for edge in full_graph(opened(name), [SHORT.clean])[0] if edge.component.startswith("attn.bias")]
    assert len(edges) == 3 * 6
    assert {edge.source for edge in edges} == {None}


def test_a_value_bias_counted_twice_is_refused():
    """The published code adds the value bias to values that hold it already; the sum of parts tells."""
    model = opened("gpt2")
    with read(model, [SHORT.clean]) as reading:
        output = reading.output(0)
        module = model.module.transformer.h[0]
        bias = module.attn.c_attn.bias[64:].detach().view(4, 8)
        reading.run.values[0] = reading.run.values[0] + bias[None, :, None]
        where, real = torch.arange(6)[None], torch.ones(1, 6, dtype=torch.bool)
        with pytest.raises(NotProved, match="miss what attention adds"):
            heads_at(reading, 0, output, where=where, real=real, tolerance=1e-5)


def test_proximity_is_the_published_formula():
    """In double precision, the sum over entries is ‖y‖₁ − ‖z − y‖₁ and never below ε."""
    part, total = torch.randn(2, 50, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total[0, :3] = 0.0
    expected = (total.abs().sum(-1) - (part - total).abs().sum(-1)).clamp_min(EPSILON)
    torch.testing.assert_close(proximity(part, total), expected)
    assert float(proximity(-total, total).max()) == EPSILON


def test_a_small_part_of_a_large_sum_keeps_its_digits():
    """‖y‖₁ − ‖z − y‖₁ in single precision has none left here."""
    total, part = torch.full((1, 64), 1e6), torch.full((1, 64), 1e-3)
    assert float(proximity(part, total)[0]) == pytest.approx(0.064, rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2"])
def test_importance_flows_down(name):
    """All that reaches the end comes from the embeddings and from biases."""
    route = routes_of(name)
    bottom = sum(share for node, share in route.reached.items() if node.startswith("resid.pre"))
    biases = sum(edge.flow for edge in route if edge.source is None)
    assert bottom + biases == pytest.approx(1.0)
    assert route.reached[route_end(route)] == 1.0


def test_without_renormalising_weights_are_importances():
    """Then less than the whole arrives below; the nodes say how much was dropped."""
    kept, plain = routes_of("llama"), routes_of("llama", renormalise=False)
    np.testing.assert_array_equal(plain.edges["weight"], plain.edges["importance"])
    np.testing.assert_array_equal(plain.edges["importance"], kept.edges["importance"])
    for stage, position, dropped in zip(*keys(plain), plain.nodes["dropped"], strict=True):
        into = (plain.edges["stage"] == stage) & (plain.edges["target"] == position)
        if stage:
            assert plain.edges["importance"][into].sum() + dropped == pytest.approx(1.0)


def test_order_and_company_of_prompts_change_nothing():
    """A prompt alone, and among longer ones in another order."""
    prompts = [pair.clean for pair in uneven()]
    together, alone = routes(opened("gemma3"), prompts[::-1]), [routes(opened("gemma3"), [p])[0] for p in prompts]
    for one, two in zip(alone, list(together)[::-1], strict=True):
        assert_same(as_naive(one, "weight"), as_naive(two, "weight"), tolerance=1e-6)


def test_at_a_named_position():
    """A name of the task, and the same position as an index."""
    task = make_task(SHORT)
    named, index = (routes(opened("llama"), task, at=at)[0] for at in ("mid", SHORT.names["mid"]))
    assert named.end == SHORT.names["mid"]
    assert as_naive(named, "weight") == as_naive(index, "weight")


def test_half_precision_stays_close():
    """The model's own numbers are rounded; parts are worked out in single precision from them."""
    exact, half = (opened("llama", dtype) for dtype in (torch.float32, torch.bfloat16))
    one, two = (full_graph(model, [SHORT.clean])[0] for model in (exact, half))
    assert np.abs(one.edges["importance"] - two.edges["importance"]).max() < 0.05


def test_small_pieces_change_nothing(monkeypatch):
    """Targets and parts that are worked out one at a time give the same."""
    whole = routes_of("gemma2")
    monkeypatch.setattr("crosspatch.flow.walk.ROOM", 1)
    monkeypatch.setattr("crosspatch.flow.parts.CHUNK", 1)
    monkeypatch.setattr("crosspatch.flow.reading.ROOM", 1)
    assert_same(as_naive(routes_of("gemma2"), "weight"), as_naive(whole, "weight"), tolerance=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_own_attention_is_refused(name):
    """Attention that gives no pattern cannot be split; the message says so."""
    with pytest.raises(BadInput, match=r"split by head and source token, but attn\.pattern cannot be used"):
        routes(opened(name), [SHORT.clean])


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"threshold": 0.0}, BadInput, "above 0 and below 1"),
        ({"threshold": 1.0}, BadInput, "above 0 and below 1"),
        ({"threshold": float("nan")}, BadInput, "above 0 and below 1"),
        ({"at": "nowhere"}, UnknownName, "Known: mid, end"),
        ({"at": 6}, BadInput, "has 6 tokens, so positions are -6 to 5"),
        ({"at": -7}, BadInput, "has 6 tokens"),
        ({"prune": "all"}, UnknownName, "none, exact, route"),
        ({"prune": "route", "renormalise": False}, BadInput, "use prune='exact'"),
    ],
)
def test_bad_settings(settings, error, words):
    """What was given, and what is allowed."""
    with pytest.raises(error, match=words):
        routes(opened("llama"), make_task(SHORT), **settings)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "at least one prompt"),
        ([[]], "prompt of example 0 is empty"),
        ("a text", "has no tokenizer"),
        ([[3, 400]], "prompt 0 holds token id 400"),
        (["a text"], "has no tokenizer"),
    ],
)
def test_bad_prompts(prompts, words):
    """Empty ones, strange ids, and text without a tokenizer."""
    with pytest.raises(BadInput, match=words):
        routes(opened("llama"), prompts)
    with pytest.raises(BadInput, match="0 or more and below 1"):
        full_graph(opened("llama"), [[3]], threshold=1.0)


def test_names_need_a_task():
    """Token ids alone have no named positions."""
    with pytest.raises(UnknownName, match="indices only"):
        routes(opened("llama"), [SHORT.clean], at="end")


def test_weights_that_are_no_numbers():
    """NaN is found where it enters the stream."""
    module = fresh("llama")
    model = open_model(module)
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NotFinite, match="what block 1 writes"):
        routes(model, [SHORT.clean])


def test_a_norm_that_shifts_is_refused():
    """Behind attention only norms without shift or centring are understood; others miss the sum."""
    output = Output(torch.zeros(1, 1, 8), torch.zeros(8), torch.ones(8))
    written = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    shifted = torch.nn.functional.layer_norm(written, (8,), bias=torch.ones(8))
    with pytest.raises(NotProved, match="norm without shift"):
        output.factor(written, shifted, tolerance=1e-5)


def test_projections_are_read_however_they_are_stored():
    """Transposed, square, or as nothing but a function."""

    class Strange(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    module = fresh("qwen2")
    model = open_model(module)
    block = module.model.layers[0]
    plain = output_of(block, model.anatomy)
    block.self_attn.o_proj = Strange(block.self_attn.o_proj)
    torch.testing.assert_close(output_of(block, model.anatomy).weight, plain.weight)
