"""What estimates must satisfy, whatever the model; and where each of them is exact, or fails as it is known to."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from crosspatch import attribute, patch
from crosspatch.attribution import conservation
from crosspatch.attribution.softmax import key_effects
from crosspatch.models.scores import Scores
from naive.estimates import key_effect
from planted.wiring import Planted as Wired
from planted.wiring import blank, example

LAYERS = 3
BY = ("atp", "atp-qk", "atp-drop", "atp*", "ig", "ig-activations", "relp")


def close(found, expected, rtol=1e-4):
    np.testing.assert_allclose(found, expected, atol=rtol * max(float(np.nanmax(np.abs(expected))), 1e-9), rtol=0)


# --- the closed form of keys ---


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    keys=st.integers(1, 7),
    own=st.integers(1, 7),
    sharp=st.sampled_from([0.1, 1.0, 10.0, 60.0]),
    sink=st.booleans(),
)
def test_key_closed_form_is_the_softmax_recomputed(seed, keys, own, sharp, sink):
    """In double precision to 1e-10, from flat to saturated rows, with causal masks and learnt sinks."""
    own, maker = min(own, keys), torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=maker, dtype=torch.float64)  # noqa: E731
    scores, change, slope = sharp * draw(1, 2, own, keys), sharp * draw(1, 2, own, own), draw(3, 1, 2, own, keys)
    future = torch.arange(keys)[None] > torch.arange(keys - own, keys)[:, None]
    scores = scores.masked_fill(future, torch.finfo(torch.float64).min)
    sinks = sharp * draw(1, 2, 1, 1).expand(1, 2, own, 1) if sink else None
    found = key_effects(Scores(scores, sinks), change.masked_fill(future[:, keys - own :], 0.0), slope)
    assert found.shape == (3, 1, 2, own)
    for drop in range(3):
        for head in range(2):
            for key in range(own):
                row, g = scores[0, head], slope[drop, 0, head]
                row = row if sinks is None else torch.cat([row, sinks[0, head]], -1)
                g = g if sinks is None else torch.nn.functional.pad(g, (0, 1))
                delta = change[0, head][:, key].masked_fill(future[:, keys - own + key], 0.0)
                expected = key_effect(row, delta, g, keys - own + key)
                assert float(found[drop, 0, head, key]) == pytest.approx(expected, abs=1e-10)


def test_key_closed_form_where_one_key_has_nearly_all():
    """Single precision keeps what a subtraction from one would lose: shares of e^−30 that a change brings up."""
    scores = torch.tensor([[[[0.0, 30.0]]]])
    for change in (30.0, 40.0, -40.0):
        delta, slope = torch.tensor([[[[change]]]]), torch.tensor([[[[[3.0, -2.0]]]]])
        found = float(key_effects(Scores(scores.flip(-1)), delta, slope.flip(-1)))
        expected = key_effect(
            scores.flip(-1)[0, 0].double(), torch.tensor([change]).double(), slope[0, 0, 0].flip(-1).double(), 1
        )
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-12)


# --- linear models ---

TOKENS = ("<s>", "A=0", "A=1", "=", "yes", "no", "x", "y")


@torch.no_grad()
def linear(queries=0.0):
    """Two blocks whose heads copy channels with uniform attention; `queries` let the pattern of the last one change.

    Heads 0, 2 and 4 are what a proof of heads looks at: they do something, and nothing reads it.
    """
    board = blank(TOKENS, ("A", "is A", "first", "second"), layers=2, heads=5)
    for token, weights in (("A=1", {"A": 1.0, "is A": 1.0}), ("A=0", {"is A": 1.0}), ("x", {"is A": 0.5})):
        board.embed(token, **weights)
    attention = board.module.model.layers[0].self_attn
    maker = torch.Generator().manual_seed(0)
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        for head in (0, 2, 4):
            rows = slice(32 * head, 32 * (head + 1))
            part.weight[rows] = torch.randn(32, part.weight.shape[1], generator=maker)
    board.head(0, 1, values={"A": "first"})
    board.head(1, 1, values={"A": "second", "first": "second"})
    if queries:
        last = board.module.model.layers[1].self_attn
        last.q_proj.weight[32 + 8, board.channels["first"]] = queries
        last.k_proj.weight[32 + 8, board.channels["A"]] = queries
    for token, sign in (("yes", 1.0), ("no", -1.0)):
        board.answer(token, first=sign, second=2 * sign, A=0.5 * sign)
    pairs = [example(board, f"<s> A=1 {x} =", f"<s> A=0 {x} =") for x in ("x", "y")]
    return Wired("linear", "", board.module, pairs, {"A": 1, "end": 3}, {}).task(), zoo.open_model(board.module)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("by", ["atp", "atp-qk", "ig", "ig-activations", "relp"])
def test_exact_on_a_linear_model(by, direction):
    """Uniform attention, norms of constant scale, no MLP: a patch is a step on a plane."""
    task, model = linear()
    sites = "resid.pre@*, resid.mid@*, resid.post@*, attn.v@*, attn.head@*, attn.out@*, mlp.out@*, attn.q@*, attn.k@*"
    exact = patch(model, task, sites=sites, direction=direction)
    found = attribute(model, task, sites=sites, direction=direction, by=by)
    assert np.abs(exact.raw).max() > 0.5
    close(found.raw, exact.raw)


def test_softmax_fix_is_exact_where_the_rest_is_linear():
    """Queries and keys of the last block: their effect passes one softmax, then nothing but linear maps."""
    task, model = linear(queries=12.0)
    sites = "attn.q[1, *]@*, attn.k[1, *]@*"
    exact, fixed, plain = (
        patch(model, task, sites=sites, direction="noise"),
        *(attribute(model, task, sites=sites, by=by, direction="noise") for by in ("atp-qk", "atp")),
    )
    assert np.abs(exact.raw).max() > 0.1
    close(fixed.raw, exact.raw)
    assert np.abs(plain.raw - exact.raw).max() > 0.2 * np.abs(exact.raw).max()


def test_graddrop_finds_what_cancels():
    """A head that the next block undoes: AtP sees the sum, which is zero; GradDrop sees both paths."""
    with torch.no_grad():
        board = blank(TOKENS, ("A", "first", "undone"), layers=3, heads=2)
        board.embed("A=1", A=1.0)
        board.head(0, 0, values={"A": "first"})
        board.head(1, 0, values={"first": "undone"})
        # uniform attention of the last token sees four tokens, which hold 1/2 + 1/3 + 1/4 of what A writes
        share = (1 / 2 + 1 / 3 + 1 / 4) / 4 / (1 / 4)
        for token, sign in (("yes", 1.0), ("no", -1.0)):
            board.answer(token, first=sign, undone=-sign / share)
        pairs = [example(board, "<s> A=1 x =", "<s> A=0 x =")]
    task = Wired("cancels", "", board.module, pairs, {"A": 1, "end": 3}, {}).task()
    model, site = zoo.open_model(board.module), "attn.head[0, 0]@all"
    # the metric has no gap at all, which is the point
    plain, dropped = (float(attribute(model, task, sites=site, by=by).raw[0, 0]) for by in ("atp", "atp-drop"))
    assert abs(plain) < 1e-5
    assert abs(dropped) > 0.05


# --- nothing is changed, nothing is left behind ---


@pytest.mark.parametrize("by", BY)
def test_module_is_left_as_it_was(by):
    """Weights, what asks for gradients, hooks, the attention that was chosen; and no gradient is left on a weight."""
    module = zoo.fresh("llama")
    some = next(iter(module.parameters()))
    some.requires_grad_(False)
    before = {name: (weight.clone(), weight.requires_grad) for name, weight in module.named_parameters()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), set(m.__dict__)) for m in module.modules()]
    kernel = module.config._attn_implementation
    attribute(zoo.open_model(module), zoo.make_task(*zoo.uneven()), sites="resid.pre, attn.head, attn.q@*", by=by)
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks), set(m.__dict__)) for m in module.modules()]
    assert module.config._attn_implementation == kernel
    for name, weight in module.named_parameters():
        assert torch.equal(weight, before[name][0])
        assert weight.requires_grad == before[name][1]
        assert weight.grad is None


def test_modules_own_values_are_kept_under_an_error():
    """A metric that fails in the middle leaves no rule, no hook and no frozen weight."""
    module = zoo.fresh("llama")
    model, task = zoo.open_model(module), zoo.make_task(zoo.make_pair(6, (2,)))
    ids = torch.tensor([task.pairs[0].clean])
    before = module(input_ids=ids).logits

    def fails(readout):
        raise RuntimeError("no")

    from crosspatch.metrics import metric_from

    with pytest.raises(RuntimeError, match="no"):
        attribute(model, task, by="relp", metric=metric_from(fails, name="fails"))
    assert all(weight.requires_grad for weight in module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert torch.equal(module(input_ids=ids).logits, before)


@pytest.mark.parametrize("by", BY)
def test_half_precision_is_near(by):
    """A bfloat16 model gives the estimates of its float32 copy up to its own rounding; sums are in float32."""
    task = zoo.make_task(*zoo.uneven())
    sites = "resid.pre, attn.head, attn.q@*, mlp.out"
    half, full = (attribute(zoo.opened("llama", d), task, sites=sites, by=by) for d in (torch.bfloat16, torch.float32))
    live = ~np.isnan(full.raw) & (np.abs(full.raw) > 0.05 * np.nanmax(np.abs(full.raw)))
    assert half.raw.dtype == np.float32
    assert np.corrcoef(half.raw[live], full.raw[live])[0, 1] > 0.95


def test_long_answers_and_noise():
    """Answers of several tokens are read at several positions; a corruption of embeddings is the corrupt run."""
    from crosspatch import tasks

    model = zoo.opened("gpt2")
    pair = zoo.make_pair(6, (2,), right=((5, 9, 4),), wrong=())
    long = zoo.make_task(pair, metric="logprob")
    found, exact = attribute(model, long, by="ig", steps=40), patch(model, long)
    close(found.base, exact.base)
    close(found.source, exact.source)
    first = [i for i, s in enumerate(found.sites) if (s.kind, s.layer) == ("resid.pre", 0)]
    assert float(found.raw[first].sum()) == pytest.approx(float(found.gap[0]), rel=3e-2)
    noisy = tasks.corrupt(zoo.make_task(*zoo.uneven()), "gaussian", at=("mid",), draws=3)
    found, exact = (
        attribute(model, noisy, by="ig", steps=40, sites="resid.pre[0]@all"),
        patch(model, noisy, sites="resid.pre[0]@all"),
    )
    close(found.raw, exact.raw, rtol=5e-2)


def test_work_is_what_was_planned():
    """Tokens that pass the first block: the base prompts, the source's changed parts, and nothing else."""
    module = zoo.fresh("llama")
    model, task = zoo.open_model(module), zoo.make_task(*zoo.uneven())
    seen = []
    handle = module.model.layers[0].mlp.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    attribute(model, task, sites="mlp.out", by="atp")
    handle.remove()
    lengths, starts = [9, 6, 9], [3, 2, 5]
    assert sum(seen) == sum(lengths) + sum(n - s for n, s in zip(lengths, starts, strict=True))


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3", "phi3", "olmo2", "granite"])
def test_relevance_is_conserved(name):
    """All rules of `relp` on models without biases: at every layer the relevance of the stream is the metric."""
    found = conservation(zoo.opened(name), zoo.make_task(*zoo.uneven()), run="corrupt")
    assert found.relevance.shape == (LAYERS + 1, 3)
    assert found.error < 1e-4
    assert conservation(zoo.opened(name), zoo.make_task(*zoo.uneven()), preset="ln").error > 1e-2
