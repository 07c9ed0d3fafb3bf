"""The twin of a circuit's run: identities of the definition, and path patching, which was written apart."""

from functools import cache

import numpy as np
import pytest
import torch

from crosspatch.sites import Site
from naive.circuits import (
    body_of,
    by_head,
    logits_of,
    masked_logits,
    masked_score,
    masked_stream,
    naive_gradient,
    plain_run,
    precision,
)
from naive.estimates import score
from naive.patching import run
from naive.path import path_effect
from zoo import POST_NORMED, ZOO, make_pair, opened

PAIR = make_pair(7, (2, 4, 6))  # the last token differs too, so that no edge is without effect
families = pytest.mark.parametrize("name", ZOO)
POST_NORMED_FAMILIES = {name for name, beast in ZOO.items() if beast.spots["attn.out"] == POST_NORMED["attn.out"]}


def close(name: str) -> dict[str, float]:
    """Tolerances for a family: norms compute in single precision whatever the module's is."""
    return {"rtol": 0, "atol": 1e-6 if precision(name) == torch.float64 else 2e-5}


@cache
def logits(name: str, prompt: str) -> torch.Tensor:
    return run(body_of(name).module, getattr(PAIR, prompt))


def full(name: str) -> np.ndarray:
    return body_of(name).graph.full().astype(float)


def masked(name: str, mask: np.ndarray, **how) -> torch.Tensor:
    return masked_logits(body_of(name), PAIR.clean, PAIR.corrupt, mask, **how)


@families
def test_all_edges_are_the_clean_run_and_none_the_corrupt_run(name):
    assert torch.allclose(masked(name, full(name)), logits(name, "clean"), **close(name))
    assert torch.allclose(masked(name, 0 * full(name)), logits(name, "corrupt"), **close(name))
    assert (logits(name, "clean") - logits(name, "corrupt")).abs().max() > 0.1


@families
def test_heads_add_what_attention_adds(name):
    """Between two runs: a bias of the output projection belongs to no head, and drops out."""
    body = body_of(name)
    runs = [plain_run(body, ids) for ids in (PAIR.clean, PAIR.corrupt)]
    for layer in range(body.graph.layers):
        (clean, then), (corrupt, before) = runs
        heads = sum(clean[site] - corrupt[site] for site in clean if (site.kind, site.layer) == ("attn.head", layer))
        parts = [heads, clean[Site("mlp.out", layer)] - corrupt[Site("mlp.out", layer)]]
        end = ("attn.q", layer + 1) if layer + 1 < body.graph.layers else ("logits", -1)
        moved = [then[spot] - before[spot] for spot in (("attn.q", layer), end)]
        assert torch.allclose(moved[0] + sum(parts), moved[1], **close(name))
        if body.graph.sequential:
            mid = then["mlp.in", layer] - before["mlp.in", layer]
            assert torch.allclose(moved[0] + heads, mid, **close(name))


def some_edges(name: str) -> list[tuple[Site, Site]]:
    """Return edges between five pairs of kinds, others in each family, and of heads and layers one after the other."""
    graph, found = body_of(name).graph, {}
    for count, (r, u) in enumerate(np.argwhere(graph.allowed).tolist()):
        sender, receiver = graph.senders[u], graph.receivers[r]
        found.setdefault((sender.kind, receiver.kind), []).append((count * 7 % 11, sender, receiver))
    assert len(found) == 15
    return [min(edges, key=lambda edge: edge[0])[1:] for edges in list(found.values())[list(ZOO).index(name) % 3 :: 3]]


@pytest.mark.parametrize("name", sorted(set(ZOO) - POST_NORMED_FAMILIES))
def test_without_one_edge_the_run_is_path_patching(name):
    """Noise along one path with all other heads and MLPs held (Wang et al. 2022) is the full graph less one edge.

    Where a post-norm follows attention the two differ: a head's patch there changes the norm's scale too.
    """
    body, anatomy = body_of(name), opened(name, precision(name)).anatomy
    moved = []
    for sender, receiver in some_edges(name):
        mask = full(name)
        mask[0, body.graph.receivers.index(receiver), body.graph.senders.index(sender)] = 0
        parts = [(site.kind, site.layer or 0, site.unit, None) for site in (sender, receiver)]
        expected = path_effect(
            body.module,
            anatomy,
            PAIR.clean,
            PAIR.corrupt,
            sender=parts[:1],
            receivers="logits" if receiver.kind == "logits" else parts[1:],
            score=lambda last: float(last[5] - last[7]),
            frozen=("attn.head", "mlp.out"),
        )
        found = float(score(masked(name, mask)) - score(logits(name, "clean")))
        assert found == pytest.approx(expected, abs=close(name)["atol"]), (str(sender), str(receiver))
        moved.append(abs(found))
    assert len(moved) == 5
    assert np.median(moved) > 1e-4


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_a_part_of_an_edge_of_the_embedding(name):
    """With nothing else in the circuit, the last stream is the corrupt one and this part of the embeddings' change."""
    body, mask = body_of(name), 0 * full(name)
    mask[0, -1, 0] = 0.3
    (clean, _), (corrupt, streams) = (plain_run(body, ids) for ids in (PAIR.clean, PAIR.corrupt))
    stream = streams["logits", -1] + 0.3 * (clean[Site("embed")] - corrupt[Site("embed")])
    assert torch.allclose(masked_stream(body, PAIR.clean, PAIR.corrupt, mask), stream)
    assert torch.allclose(masked(name, mask), logits_of(body, PAIR.corrupt, stream))
    assert (masked(name, mask) - logits(name, "corrupt")).abs().max() > 0.01


def test_a_post_norm_keeps_the_scale_of_its_run():
    """What a head adds behind a norm is its part of the sum that the norm saw, at the scale that the sum gave it."""
    body = body_of("gemma2")
    norm, project = body.part(1, "post_attention_layernorm"), body.part(1, "self_attn.o_proj")
    z = torch.randn(7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alone = torch.where(torch.arange(32) // 8 == 2, z, 0)
    scale = (project(z).square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    expected = project(alone) * scale * (1 + norm.weight)
    assert torch.allclose(by_head(body, 1, z)[Site("attn.head", 1, 2)], expected, rtol=0, atol=1e-6)
    assert not torch.allclose(norm(project(alone)), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon_40b"])
def test_each_token_has_the_edges_of_its_place(name):
    """Early tokens never hear of later ones: all edges of theirs are the clean run, none the corrupt run."""
    places = [0, 0, 0, 1, 1, 1, 1]
    both, one = np.concatenate([full(name)] * 2), np.random.default_rng(0).random(full(name).shape)
    assert torch.equal(masked(name, np.concatenate([one, one]), places=places), masked(name, one))
    for early, kept in ((1, "clean"), (0, "corrupt")):
        mask = both * np.array([early, 1 - early])[:, None, None]
        found, expected = masked(name, mask, places=places), logits(name, kept)
        assert torch.allclose(found[:3], expected[:3], **close(name))
        assert (found[3:] - expected[3:]).abs().max() > 0.01
    with pytest.raises(AssertionError):
        masked(name, both, places=[*places[:-1], 2])


def test_edges_that_the_graph_does_not_have_are_not_read():
    """A parallel MLP does not hear its own layer's heads."""
    everything = np.ones(body_of("phi").graph.shape)
    assert torch.equal(masked("phi", everything), masked("phi", full("phi")))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "bloom", "gemma2"])
@pytest.mark.parametrize("at", [1.0, 0.4, 0.0])
def test_the_gradient_is_the_slope(name, at):
    """Against central differences, along random directions and on single edges."""
    body, start, rng = body_of(name), at * full(name), np.random.default_rng(3)
    gradient = naive_gradient(body, PAIR.clean, PAIR.corrupt, start, score=score)
    assert not gradient[~body.graph.full()].any()
    top = [np.eye(1, gradient.size, index).reshape(gradient.shape) for index in np.argsort(-np.abs(gradient).ravel())]
    for step in (rng.standard_normal(start.shape), top[0], *[top[3]] * (at > 0)):  # at 0 only one edge has a slope
        # Gemma's norms and Bloom's softmax are in single precision.
        h, rel = (1e-3, 2e-3) if name in ("gemma2", "bloom") else (1e-5, 1e-6)
        ends = [masked_score(body, PAIR.clean, PAIR.corrupt, start + s * h * step, score=score) for s in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * h)
        assert float((gradient * step).sum()) == pytest.approx(slope, rel=rel)
        assert abs(slope) > 1e-3


def test_the_gradient_at_all_edges_is_change_times_gradient():
    """EAP's formula (Syed et al. 2023), written out for the edges that end in the logits."""
    body = body_of("gpt2")
    with torch.no_grad():
        (clean, streams), (corrupt, _) = (plain_run(body, ids) for ids in (PAIR.clean, PAIR.corrupt))
    stream = streams["logits", -1].detach().requires_grad_()
    (slope,) = torch.autograd.grad(score(logits_of(body, PAIR.clean, stream)), stream)
    expected = [float(((clean[site] - corrupt[site]) * slope).sum()) for site in body.graph.senders]
    found = naive_gradient(body, PAIR.clean, PAIR.corrupt, full("gpt2"), score=score)[0, -1]
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert np.abs(found).min() > 1e-6
