"""Scores of edges from gradients: against the twin's gradient by masks, and against loops by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from builders_circuits import little, names_of, planted_model
from crosspatch.circuits import find, graph_of, slopes
from crosspatch.core.errors import BadInput
from crosspatch.engine import Options
from crosspatch.metrics import metric_from
from crosspatch.models.open import open_model
from crosspatch.sites import Site
from crosspatch.tasks import Pair, Task
from naive.circuits import (
    Body,
    Spot,
    attended,
    logits_of,
    masked_logits,
    mlp_of,
    naive_gradient,
    plain_run,
    projected,
    reading,
)
from zoo import fresh, make_task, uneven

UNEVEN, TWO = make_task(*uneven()), make_task(*uneven()[:2])
EMBED, DOUBLE = Site("embed"), torch.float64
FAMILIES = ("gpt2", "llama", "gpt_neox", "falcon_40b", "gemma2", "olmo2", "bloom", "phi3")
METHODS = ("eap", "eap-ig", "eap-ig-activations", "eap-clean-corrupted")


def score(logits: Tensor) -> Tensor:
    """Logit difference of tokens 5 and 7 at the last position."""
    return logits[-1, 5] - logits[-1, 7]


def scores_of(name: str, by: str, task: Task = UNEVEN, *, layers: int = 2, **how: Any) -> np.ndarray:
    """Return the scores of a family in double precision."""
    found = find(little(name, layers, DOUBLE)[0], task, by=by, **how).scores
    assert found is not None
    return found


def close(found: np.ndarray, losses: list[np.ndarray], task: Task = UNEVEN, *, sign: float | None = None) -> bool:
    """Compare scores with the mean loss over pairs, which counts along the gap."""
    expected = np.mean(losses, axis=0)
    allowed = ~np.isnan(found)
    scale = np.abs(expected[allowed]).max()
    assert scale > 1e-3
    return np.allclose(found[allowed], (sign or 1) * expected[allowed], rtol=0, atol=2e-5 * scale)


def side(name: str, task: Task = UNEVEN, *, layers: int = 2) -> float:
    """Return the sign of the gap of the mean logit difference."""
    body = little(name, layers, DOUBLE)[1]
    full = body.graph.full().astype(float)
    ends = [[masked_logits(body, p.clean, p.corrupt, share * full) for p in task.pairs] for share in (1, 0)]
    return float(np.sign(sum(float(score(clean - corrupt)) for clean, corrupt in zip(*ends, strict=True))))


# against the twin


@pytest.mark.parametrize("name", FAMILIES)
def test_eap_is_the_gradient_by_masks_at_the_clean_run(name: str) -> None:
    """Cut an edge by a little: what the metric loses is its score (Syed et al. 2023); prompts differ in length."""
    body = little(name, 2, DOUBLE)[1]
    full = body.graph.full().astype(float)
    losses = [naive_gradient(body, pair.clean, pair.corrupt, full, score=score) for pair in UNEVEN.pairs]
    found = scores_of(name, "eap")
    assert close(found, losses, sign=side(name))
    assert np.array_equal(np.isnan(found), ~body.graph.full())


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_each_place_has_scores_of_its_own(name: str) -> None:
    body, found = little(name, 2, DOUBLE)[1], scores_of(name, "eap", places=("mid", "end"))
    full = np.concatenate([body.graph.full().astype(float)] * 3)
    losses = []
    for pair in UNEVEN.pairs:
        spots = {pair.names["mid"]: 0, pair.names["end"]: 1}
        places = [spots.get(position, 2) for position in range(len(pair.clean))]
        losses.append(naive_gradient(body, pair.clean, pair.corrupt, full, score=score, places=places))
    assert close(found, losses, sign=side(name))
    assert np.nansum(found, axis=0) == pytest.approx(np.nan_to_num(scores_of(name, "eap")[0]), abs=1e-5)


def test_a_linear_metric_of_the_last_stream_is_told_exactly() -> None:
    """Edges into the logits: their scores at a linear read-out sum to the whole gap."""
    planted, model, task = planted_model("ADDER")
    scores = find(model, task, by="eap").scores
    assert scores is not None
    assert float(np.nansum(scores[0, -1])) == pytest.approx(12.0, rel=1e-3)
    assert planted.name == "ADDER"


# against loops by hand


@dataclass(frozen=True)
class Hand:
    """A pair's clean run by hand, module by module, so that each receiver's own stream can be moved."""

    body: Body
    pair: Pair

    @cached_property
    @torch.no_grad()
    def runs(self) -> list[dict[Site, Tensor]]:
        """What each sender adds in the clean and in the corrupt run."""
        return [plain_run(self.body, ids)[0] for ids in (self.pair.clean, self.pair.corrupt)]

    def change(self, *senders: Site) -> Tensor:
        """Return what senders add in the clean run beyond the corrupt one."""
        return torch.stack([self.runs[0][site] - self.runs[1][site] for site in senders]).sum(0)

    def gradients(self, stream: Tensor, less: Mapping[Spot, Tensor] | None = None) -> list[Tensor]:
        """Return the score's gradient at each receiver's stream, in the run whose first block reads `stream`.

        What attention or an MLP adds is lowered by `less`.
        """
        body, ids, graph, less = self.body, self.pair.clean, self.body.graph, less or {}
        moves = {receiver: torch.zeros_like(stream, requires_grad=True) for receiver in graph.receivers}
        with torch.enable_grad():
            for layer in range(graph.layers):
                readers = [r for r in graph.receivers if r.layer == layer and r.kind != "mlp.in"]
                z = attended(body, ids, layer, projected(body, ids, layer, {r: stream + moves[r] for r in readers}))
                writes = [(("attn.head", layer), slice(None), z)]
                seen = reading(body, ids, writes, [("attn.out", layer)])
                after = stream + seen["attn.out", layer] - less.get(("attn.out", layer), 0)
                mid = (after if graph.sequential else stream) + moves[Site("mlp.in", layer)]
                stream = after + mlp_of(body, ids, layer, mid) - less.get(("mlp.out", layer), 0)
            total = score(logits_of(body, ids, stream + moves[Site("logits")]))
            return list(torch.autograd.grad(total, list(moves.values())))

    def scored(self, gradients: Sequence[Sequence[Tensor]], senders: Sequence[Site] | None = None) -> np.ndarray:
        """Multiply mean gradients with what senders add, all of it; zero for other senders."""
        graph = self.body.graph
        found = np.zeros(graph.shape)
        means = [torch.stack(list(each)).mean(0) for each in zip(*gradients, strict=True)]
        for number, sender in enumerate(graph.senders):
            if senders is None or sender in senders:
                found[0, :, number] = [float((mean * self.change(sender)).sum()) for mean in means]
        return found

    def entering(self, share: float) -> Tensor:
        """Return the embeddings a share of the way from the corrupt to the clean prompt's."""
        return self.runs[1][EMBED] + share * self.change(EMBED)

    def over_inputs(self, *shares: float) -> np.ndarray:
        """Return EAP-IG over embeddings (Hanna et al. 2024)."""
        return self.scored([self.gradients(self.entering(share)) for share in shares])

    def over_activations(self, *shares: float) -> np.ndarray:
        """Return EAP-IG over each part's own output, from what the corrupt run adds to what the clean run adds."""
        total, graph = self.scored([self.gradients(self.entering(share)) for share in shares], [EMBED]), self.body.graph
        for layer in range(graph.layers):
            heads = [Site("attn.head", layer, head) for head in range(graph.heads)]
            for kind, senders in (("attn.out", heads), ("mlp.out", [Site("mlp.out", layer)])):
                less = [{(kind, layer): (1 - share) * self.change(*senders)} for share in shares]
                total += self.scored([self.gradients(self.entering(1), each) for each in less], senders)
        return total


def by_hand(name: str, layers: int = 2) -> list[Hand]:
    return [Hand(little(name, layers, DOUBLE)[1], pair) for pair in TWO.pairs]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma2"])
def test_the_loop_by_hand_is_the_twin_at_the_clean_run(name: str) -> None:
    for hand in by_hand(name, 1):
        full = hand.body.graph.full()
        expected = naive_gradient(hand.body, hand.pair.clean, hand.pair.corrupt, full.astype(float), score=score)
        assert hand.over_inputs(1)[full] == pytest.approx(expected[full], abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_eap_ig_goes_over_inputs(name: str) -> None:
    """From the corrupt end on, without the clean one; all of the change at each point."""
    found = scores_of(name, "eap-ig", TWO, steps=3)
    assert close(found, [hand.over_inputs(0, 1 / 3, 2 / 3) for hand in by_hand(name)], sign=side(name, TWO))


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_both_ends(name: str) -> None:
    found = scores_of(name, "eap-clean-corrupted", TWO)
    assert close(found, [hand.over_inputs(0, 1) for hand in by_hand(name)], sign=side(name, TWO))


@pytest.mark.parametrize("name", ["gpt2", "falcon_40b", "gemma3"])
def test_eap_ig_goes_over_activations(name: str) -> None:
    found = scores_of(name, "eap-ig-activations", TWO, steps=2)
    assert close(found, [hand.over_activations(1 / 2, 1) for hand in by_hand(name)], sign=side(name, TWO))
    assert not np.allclose(found, scores_of(name, "eap", TWO), rtol=1e-2, equal_nan=True)


def test_many_steps_over_activations_tell_the_whole_change() -> None:
    """Completeness: of a sender's edges into the logits and beyond, an integral gives what the metric loses in all."""
    steps, name = 24, "gpt2"
    found = scores_of(name, "eap-ig-activations", TWO, layers=1, steps=steps)
    losses = []
    for hand in by_hand(name, 1):
        mask = hand.body.graph.full().astype(float)
        mask[0, :, -1] = 0  # the last MLP is heard by the logits alone
        ends = [masked_logits(hand.body, hand.pair.clean, hand.pair.corrupt, m) for m in (hand.body.graph.full(), mask)]
        losses.append(float(score(ends[0] - ends[1])))
    assert float(found[0, -1, -1]) == pytest.approx(side(name, TWO, layers=1) * np.mean(losses), rel=0.05)


# what must not matter


@pytest.mark.parametrize(
    ("name", "by"), [("gpt2", "eap"), ("olmo2", "eap"), ("mixtral", "eap-ig"), ("gemma2", "eap-ig-activations")]
)
def test_chunks_and_parts_of_tokens_do_not_matter(name: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"places": ("mid",)} if by == "eap" else {"steps": 2}
    model = little(name)[0]
    whole = find(model, UNEVEN, by=by, **how).scores
    monkeypatch.setattr(slopes, "AT_ONCE", 2 * 4 * 32 * len(graph_of(model).senders))  # two tokens
    parts = find(model, UNEVEN, by=by, options=Options(memory=40_000), **how).scores
    assert whole is not None
    assert parts is not None
    assert np.allclose(whole, parts, rtol=0, atol=2e-5 * np.nanmax(np.abs(whole)), equal_nan=True)


@dataclass
class Calls:
    """How often a block was run to its end: without gradients, with them, and backwards."""

    plain: int = 0
    taped: int = 0
    back: int = 0

    def note(self, module: nn.Module, args: Any, out: Tensor) -> None:
        del module, args
        self.taped += out.requires_grad
        self.plain += not out.requires_grad
        if out.requires_grad:
            out.register_hook(self.pulled)

    def pulled(self, gradient: Tensor) -> None:
        self.back += 1


@pytest.mark.parametrize(
    ("by", "steps", "taped"),
    [("eap", None, 1), ("eap-clean-corrupted", None, 2), ("eap-ig", 5, 5), ("eap-ig-activations", 3, 9)],
)
def test_runs_are_as_few_as_the_definition_says(by: str, steps: int | None, taped: int) -> None:
    """Clean and corrupt runs, and one forward and backward a point; over activations a point of each part before."""
    module, calls = fresh("gpt2", n_layer=2), Calls()
    model = open_model(module)
    with module.transformer.h[0].mlp.c_proj.register_forward_hook(calls.note):
        find(model, UNEVEN, by=by, steps=steps)
    assert calls.taped == calls.back == taped
    assert calls.plain <= (1 if by != "eap-ig-activations" else 2)  # both runs go together


# metrics


def test_a_metric_without_slope_is_refused() -> None:
    """A divergence from the clean run is least there: at the clean point alone nothing can be scored."""
    model = little("llama")[0]
    for metric in ("kl", "kl_reverse"):
        with pytest.raises(BadInput, match=r"kl.* has no slope .* Use logit_diff, or by='eap-ig'"):
            find(model, UNEVEN, by="eap", metric=metric)
        for by in METHODS[1:]:
            assert find(model, UNEVEN, by=by, metric=metric).size > 0
    with pytest.raises(BadInput, match=r"does not change smoothly .* Use logit_diff"):
        find(model, UNEVEN, by="eap-ig", metric="accuracy")
    with pytest.raises(BadInput, match="has no slope"):
        find(model, UNEVEN, by="eap", metric=metric_from(lambda out: 0 * out.right[:, 0] + 1, name="flat"))


@pytest.mark.parametrize("by", METHODS)
def test_a_positive_score_says_that_the_metric_needs_the_edge(by: str) -> None:
    """Whether the metric is higher or lower in the clean run: what is lost is what moves it to the corrupt one."""
    planted, model, task = planted_model("negative")
    swapped = Task("swapped", tuple(replace(p, right=p.wrong, wrong=p.right) for p in task.pairs), metric=task.metric)
    for each in (task, swapped):
        found = find(model, each, by=by, size=4)
        assert found.signed
        assert names_of(found) == planted.edges
        told = {str(edge): found.score(edge) for edge in found.edges}
        assert told["attn.head[0, 0] -> logits"] == pytest.approx(12, rel=1e-3)
        assert told["attn.head[0, 1] -> logits"] == pytest.approx(-4, rel=1e-3)
