"""From the final stream to the metric: answers, vocabulary, forced answers, references, each against plain forwards."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crosspatch.core.errors import ManyTokenAnswer, NotFinite
from crosspatch.engine.patching import patch
from crosspatch.engine.readout import Scorer, forced, read_positions, require_finite, targets_of
from crosspatch.metrics import get_metric
from crosspatch.models.open import open_model
from crosspatch.sites import Site
from crosspatch.tasks import Pair
from naive.metrics import naive_kl, naive_logit_diff, naive_prob, naive_rank
from naive.patching import patched, read, run
from zoo import ZOO, fresh, make_pair, make_task, module_of, opened

CPU = torch.device("cpu")
SPOT = Site("resid.pre", 1, None, 3)


def pairs_of(**answers: object) -> tuple[Pair, Pair]:
    """Two pairs of unequal lengths with the given answers."""
    return make_pair(7, (2, 5), **answers), make_pair(5, (1, 3), seed=1, **answers)


def three_runs(name: str, pair: Pair, direction: str = "denoise", after: tuple[int, ...] = ()) -> list[Tensor]:
    """Logits `[pos, vocab]` of base, source and patched run at SPOT by plain forwards; `after` follows each prompt."""
    source, base = (pair.clean, pair.corrupt) if direction == "denoise" else (pair.corrupt, pair.clean)
    module = module_of(name)
    block = module.get_submodule(f"{ZOO[name].blocks}.{SPOT.layer}")
    value = read(module, (*source, *after), block, "in")
    changed = patched(module, (*base, *after), (block, "in"), value, ([SPOT.position], slice(None)))
    return [run(module, (*base, *after)), run(module, (*source, *after)), changed]


def check(name: str, pairs: tuple[Pair, ...], metric: str, direction: str, expected: list[list[float]]) -> None:
    """Compare base, source and patched metric of each pair with values made by hand."""
    task = make_task(*pairs, metric=metric)
    effects = patch(opened(name), task, sites=[SPOT], direction=direction)
    found = np.stack([effects.base, effects.source, effects.base + effects.raw[0]], axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere", "gptj", "phi", "opt"])
def test_answers_alone_are_what_the_whole_vocabulary_gives(name: str, direction: str) -> None:
    """Softcaps, scales and biases of the unembedding act on the few rows that are read as on all."""
    pairs = make_pair(7, (2, 5), right=((5,), (9,)), wrong=((7,), (8,), (11,))), make_pair(5, (1, 3), seed=1)
    expected = []
    for pair in pairs:
        ids = [[answer[0] for answer in side] for side in (pair.right, pair.wrong)]
        rows = [logits[-1].tolist() for logits in three_runs(name, pair, direction)]
        expected.append([naive_logit_diff([row[i] for i in ids[0]], [row[i] for i in ids[1]]) for row in rows])
    check(name, pairs, "logit_diff", direction, expected)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("metric", ["prob", "logprob", "rank", "kl", "right_logit"])
def test_metrics_that_read_the_vocabulary(metric: str, direction: str) -> None:
    """Each metric of base, source and patched run by its definition; the reference is always the clean run."""
    pairs, expected = pairs_of(right=((5,), (9,))), []
    for pair in pairs:
        runs = [logits[-1] for logits in three_runs("gemma2", pair, direction)]
        clean = runs[1] if direction == "denoise" else runs[0]
        reference, rows = clean.double().log_softmax(-1).tolist(), [row.tolist() for row in runs]
        by_hand = {
            "prob": lambda row: naive_prob(row, [5, 9]),
            "logprob": lambda row: math.log(naive_prob(row, [5, 9])),
            "rank": lambda row: naive_rank(row, [5, 9]),
            "kl": lambda row, reference=reference: naive_kl(reference, row),
            "right_logit": lambda row: (row[5] + row[9]) / 2,
        }
        expected.append([by_hand[metric](row) for row in rows])
    check("gemma2", pairs, metric, direction, expected)


@pytest.mark.parametrize("name", ["llama", "bloom", "gemma3"])
def test_answers_of_several_tokens_are_forced(name: str) -> None:
    """Teacher forcing by hand: the log-probabilities of the answer's tokens, each after the ones before it."""
    pairs = (
        make_pair(7, (2, 5), right=((5, 9, 6),), wrong=()),
        make_pair(5, (1, 3), seed=1, right=((8,),), wrong=()),
        make_pair(6, (2,), seed=2, right=((11, 12),), wrong=()),
    )
    expected = []
    for pair in pairs:
        answer, last = pair.right[0], len(pair.clean) - 1
        runs = [logits.log_softmax(-1) for logits in three_runs(name, pair, after=answer[:-1])]
        expected.append([sum(float(row[last + i, token]) for i, token in enumerate(answer)) for row in runs])
    check(name, pairs, "logprob", "denoise", expected)


def test_targets_are_laid_out_by_position_read() -> None:
    """Alternatives stand beside each other, tokens of a long answer after each other; the rest is masked."""
    short = targets_of(pairs_of(right=((5,), (9,)), wrong=((7,),)), CPU)
    assert short.reads == 1
    assert short.right.tolist() == [[[5, 9]], [[5, 9]]]
    assert short.wrong.tolist() == [[[7]], [[7]]]
    uneven = targets_of((make_pair(4, (1,)), make_pair(4, (1,), wrong=())), CPU)
    assert (uneven.wrong.tolist(), uneven.wrong_mask.tolist()) == ([[[7]], [[0]]], [[[True]], [[False]]])
    long = targets_of((make_pair(4, (1,), right=((5, 6, 8),)), make_pair(4, (1,), right=((9,),))), CPU)
    assert long.right.tolist() == [[[5], [6], [8]], [[9], [0], [0]]]
    assert long.right_mask.tolist() == [[[True]] * 3, [[True], [False], [False]]]
    nothing = targets_of((make_pair(4, (1,), wrong=()),), CPU)
    assert nothing.wrong.shape == nothing.wrong_mask.shape == (1, 1, 0)


def test_long_answers_have_no_alternatives() -> None:
    """Only one answer can be forced; the message names the example."""
    pairs = make_pair(4, (1,), right=((5, 6),)), make_pair(4, (1,), right=((5,), (6,)))
    with pytest.raises(ManyTokenAnswer, match="example 1 has 2 right answers"):
        targets_of(pairs, CPU)


def test_positions_read() -> None:
    """The last of the prompt, then those of the forced answer; a shorter answer repeats its last."""
    pair = make_pair(6, (2,), right=((5, 6, 8),))
    assert read_positions(pair, 1) == (5,)
    assert read_positions(pair, 3) == (5, 6, 7)
    assert read_positions(make_pair(6, (2,)), 3) == (5, 5, 5)
    assert forced(pair.clean, pair, 3) == (*pair.clean, 5, 6)
    assert forced(pair.clean, pair, 1) == pair.clean


@pytest.mark.parametrize("metric", ["logit_diff", "rank"])
def test_rows_are_scored_in_any_number_at_once(metric: str) -> None:
    """Cutting rows into parts changes nothing."""
    model, pairs = opened("llama"), pairs_of()
    stream = torch.randn(7, 1, 32, generator=torch.Generator().manual_seed(0))
    owners = torch.tensor([0, 1, 0, 0, 1, 1, 0])
    whole = Scorer(model, (get_metric(metric),), targets_of(pairs, CPU))
    parts = replace(whole, rows_at_once=2)
    with torch.inference_mode():
        torch.testing.assert_close(parts(stream, owners), whole(stream, owners))


def test_only_the_rows_of_answers_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logit difference never computes the vocabulary; a rank does."""
    seen: list[int] = []
    own = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: seen.append(b.shape[-1]) or own(a, b))
    for metric, whole in (("logit_diff", False), ("rank", True)):
        seen.clear()
        patch(opened("llama"), make_task(*pairs_of(), metric=metric), sites=[SPOT])
        assert (97 in seen) == whole


def test_the_metric_of_a_half_precision_model_is_read_in_single() -> None:
    """Logits are made in float32 from the half-precision stream, not rounded to eight bits after."""
    module = fresh("llama", dtype=torch.bfloat16)
    model, pair = open_model(module), make_pair(7, (2, 5))
    effects = patch(model, make_task(pair), sites=[SPOT])
    stream = read(module, pair.corrupt, module.model.layers[2], "out")[-1].float()
    norm = nn.RMSNorm(32, eps=module.config.rms_norm_eps)
    norm.weight.data = module.model.norm.weight.data.float()
    with torch.no_grad():
        logits = module.lm_head.weight.float() @ norm(stream)
    assert effects.base[0] == pytest.approx(float(logits[5] - logits[7]), abs=2e-5)
    assert effects.base[0] != float(run(module, pair.corrupt)[-1][5] - run(module, pair.corrupt)[-1][7])


def test_numbers_that_are_none() -> None:
    """The first broken example is named as the task counts it, with how many there are."""
    metric, values = get_metric("logit_diff"), torch.tensor([1.0, float("inf"), float("nan")])
    with pytest.raises(NotFinite, match=r"logit_diff of the source run is inf on example 8 \(2 of 3 examples\)"):
        require_finite(values, "source", metric=metric, numbers=[4, 8, 9])
    require_finite(values[:1], "source", metric=metric, numbers=[4])
