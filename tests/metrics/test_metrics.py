"""Metrics equal their definitions and keep their identities."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.metrics import METRICS, Metric, Readout, get_metric, metric_from
from naive.metrics import (
    naive_divergence,
    naive_kl,
    naive_logit_diff,
    naive_prob,
    naive_prob_diff,
    naive_rank,
    naive_relative_change,
)

VOCAB = 7
logit = st.floats(-30, 30, width=32).map(lambda x: round(x, 3))
rows = st.lists(logit, min_size=VOCAB, max_size=VOCAB)


@st.composite
def examples(draw):
    """Draw a few rows of logits, each with right and wrong ids that differ."""
    table = draw(st.lists(rows, min_size=1, max_size=4))
    cuts = []
    for _ in table:
        ids = draw(st.permutations(range(VOCAB)))
        r, w = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        cuts.append((ids[:r], ids[r : r + w]))
    reference = draw(st.lists(rows, min_size=len(table), max_size=len(table)))
    return table, cuts, reference


def readout(table, cuts, reference=None, *, padding=0, junk=0.0, dtype=torch.float32):
    """Build the readout that the engine would hand over, with extra padding columns holding junk."""
    logits = torch.tensor(table, dtype=dtype)

    def side(which):
        ids = [cut[which] for cut in cuts]
        width = max(map(len, ids)) + padding
        index = torch.tensor([[*row, *[-1] * (width - len(row))] for row in ids], dtype=torch.long).reshape(-1, width)
        mask = index >= 0
        return logits.gather(1, index.clamp(min=0)).masked_fill(~mask, junk), mask, index

    (right, right_mask, ids), (wrong, wrong_mask, wrong_ids) = side(0), side(1)
    told = None if reference is None else torch.log_softmax(torch.tensor(reference), -1)
    return Readout(right, wrong, right_mask, wrong_mask, ids, logits, told, wrong_ids, told)


def score(name, out):
    return get_metric(name).score(out)


@given(examples())
@settings(deadline=None, max_examples=60)
def test_metrics_equal_their_definitions(example):
    """Every metric gives what plain double-precision arithmetic gives."""
    table, cuts, _ = example
    out = readout(*example)
    pairs = list(zip(table, cuts, strict=True))
    naive = {
        "logit_diff": [naive_logit_diff([row[i] for i in r], [row[i] for i in w]) for row, (r, w) in pairs],
        "right_logit": [sum(row[i] for i in r) / len(r) for row, (r, _) in pairs],
        "prob": [naive_prob(row, r) for row, (r, _) in pairs],
        "logprob": [math.log(naive_prob(row, r)) for row, (r, _) in pairs],
        "rank": [naive_rank(row, r) for row, (r, _) in pairs],
        "kl": [naive_kl(told.tolist(), row) for told, row in zip(out.reference.double(), table, strict=True)],
    }
    naive |= {
        "logit_diff_sum": [math.fsum(row[i] for i in r) - math.fsum(row[i] for i in w) for row, (r, w) in pairs],
        "prob_diff": [naive_prob_diff(row, r, w) for row, (r, w) in pairs],
        "kl_reverse": [
            naive_divergence(row, told.tolist()) for told, row in zip(out.base.double(), table, strict=True)
        ],
        "accuracy": [float(max(row[i] for i in r) > max(row[i] for i in w)) for row, (r, w) in pairs],
        "stolfo": [
            naive_relative_change(told.tolist(), row, r, w) for told, (row, (r, w)) in zip(out.base, pairs, strict=True)
        ],
    }
    assert set(naive) == set(METRICS)
    for name, expected in naive.items():
        torch.testing.assert_close(score(name, out), torch.tensor(expected), rtol=2e-5, atol=2e-5, msg=name)


@given(examples(), st.floats(-1000, 1000, width=32))
@settings(deadline=None, max_examples=60)
def test_a_common_shift_of_the_logits_changes_no_relative_metric(example, shift):
    """Softmax ignores a constant, and so do the metrics that compare (right_logit does not, and its note says so)."""
    table, cuts, reference = example
    moved = [[x + shift for x in row] for row in table]
    for name in ("logit_diff", "prob", "logprob", "kl"):
        still, shifted = score(name, readout(*example)), score(name, readout(moved, cuts, reference))
        torch.testing.assert_close(shifted, still, rtol=2e-4, atol=2e-3, msg=name)


@given(examples(), st.integers(1, 3), st.sampled_from([0.0, 50.0, math.inf, math.nan]))
@settings(deadline=None, max_examples=60)
def test_padding_columns_count_nothing(example, padding, junk):
    """Whatever stands in masked columns, infinity and NaN too, the score is the same to the bit."""
    for name in METRICS:
        plain, padded = readout(*example), readout(*example, padding=padding, junk=junk)
        torch.testing.assert_close(score(name, padded), score(name, plain), rtol=0, atol=0, msg=name)


@given(examples())
@settings(deadline=None, max_examples=60)
def test_kl_is_zero_at_the_clean_run_and_never_negative(example):
    """A divergence is at least 0, and 0 for the run it is measured from."""
    _, cuts, reference = example
    assert (score("kl", readout(*example)) >= 0).all()
    assert (score("kl", readout(reference, cuts, reference)) < 1e-5).all()


def test_kl_does_not_fall_under_zero_by_rounding():
    """Over a large vocabulary float32 sums miss 0 by up to 1e-6 either way; a divergence may not be negative."""
    logits = torch.randn(64, 5000, generator=torch.Generator().manual_seed(0)) * 3
    told = torch.log_softmax(logits.double(), -1).float()
    assert ((told.exp() * (told - torch.log_softmax(logits, -1))).sum(-1) < 0).any()  # the rounding is there
    ids = torch.zeros(64, 1, dtype=torch.long)
    answers, mask = logits[:, :1], torch.ones(64, 1, dtype=torch.bool)
    divergence = score("kl", Readout(answers, answers, mask, mask, ids, logits, told))
    assert (divergence >= 0).all()
    assert (divergence < 1e-5).all()


def test_normalised_kl_reads_like_every_metric():
    """Raw KL falls when a patch helps, but (patched − base) / (source − base) is 1 at source, 0 at base."""
    source, base, half = [2.0, 0, 0, 0, 0, 0, 0], [0.0, 2, 0, 0, 0, 0, 0], [1.5, 0.5, 0, 0, 0, 0, 0]
    at = {
        k: float(score("kl", readout([v], [([0], [1])], [source])))
        for k, v in (("s", source), ("b", base), ("p", half))
    }
    assert at["p"] < at["b"]
    assert 0 < (at["p"] - at["b"]) / (at["s"] - at["b"]) < 1


def test_kl_ignores_tokens_that_both_runs_rule_out():
    """A vocabulary masked with −inf gives no NaN."""
    row = [1.0, 2.0, 0.0, -math.inf, 0.5, 0.0, -math.inf]
    out = readout([row], [([0], [1])], [[0.5, 1.0, 0.0, -math.inf, 0.5, 0.0, -math.inf]])
    assert 0 < float(score("kl", out)) < 1
    assert math.isfinite(float(score("logprob", out)))


def test_kl_has_a_finite_gradient_where_tokens_are_ruled_out():
    """Attribution differentiates metrics: a ruled-out token must not poison the gradient."""
    logits = torch.tensor([[1.0, 2.0, 0.0, -math.inf, 0.5, 0.0, 0.0]], requires_grad=True)
    told = torch.log_softmax(torch.tensor([[0.5, 1.0, 0.0, -math.inf, 0.5, 0.0, 1.0]]), -1)
    out = readout([[0.0] * VOCAB], [([0], [1])])
    get_metric("kl").score(Readout(*(getattr(out, f) for f in FIELDS), logits, told)).sum().backward()
    assert logits.grad.isfinite().all()


FIELDS = ("right", "wrong", "right_mask", "wrong_mask", "right_ids")


def test_rank_shares_ties_fairly():
    """Three tokens on one level: the right one is expected in their middle; other right answers are no rivals."""
    row = [5.0, 3.0, 3.0, 3.0, 1.0, 0.0, 0.0]
    assert score("rank", readout([row], [([1], [0])])).tolist() == [2.0]  # one above, two beside
    assert score("rank", readout([row], [([1, 2], [0])])).tolist() == [1.5]
    assert score("rank", readout([row], [([0], [1])])).tolist() == [0.0]
    assert score("rank", readout([[0.0] * VOCAB], [([4], [1])])).tolist() == [3.0]  # chance level of 7 tokens


def test_rank_of_nan_is_nan():
    """NaN is not the top of the vocabulary."""
    assert score("rank", readout([[math.nan] * VOCAB], [([1], [0])])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", sorted(METRICS))
def test_scores_are_float32_whatever_comes_in(dtype, name):
    """Half precision is lifted before any arithmetic: 100 + 0.25 − 100 survives, softmax sums to one."""
    table = [[100.0, 99.75, 99.5, 0.0, 0.0, 0.0, 0.0]]
    told = [[100.0, 99.0, 99.5, 0.0, 0.0, 0.0, 0.0]]
    out = readout(table, [([0, 1], [2])], told, dtype=dtype)
    exact = readout(torch.tensor(table, dtype=dtype).double().tolist(), [([0, 1], [2])], told)
    assert score(name, out).dtype == torch.float32
    torch.testing.assert_close(score(name, out), score(name, exact), rtol=1e-6, atol=1e-6)


def test_extreme_logits_stay_finite():
    """A probability of e^−400 has a log, and its probability is 0, not NaN."""
    out = readout([[-400.0, 0.0, 0, 0, 0, 0, 0]], [([0], [1])])
    assert float(score("logprob", out)) == pytest.approx(-400 - math.log(6), abs=1e-3)
    assert float(score("prob", out)) == 0.0


def test_logit_diff_without_wrong_answers_says_what_is_missing():
    """A row whose wrong answers are all padding is named, with the metrics that would do."""
    out = readout([[1.0] * VOCAB] * 2, [([0], [1]), ([0], [])])
    with pytest.raises(BadInput, match=r"gives no wrong answer \(row 1\).*prob, logprob, rank"):
        score("logit_diff", out)
    assert score("prob", out).shape == (2,)


@pytest.mark.parametrize("name", ["logit_diff", "right_logit", "prob", "logprob", "rank"])
def test_metrics_refuse_a_row_without_right_answer(name):
    """Nothing to score is an error, not NaN."""
    with pytest.raises(BadInput, match=r"gives no right answer \(row 0\)"):
        score(name, readout([[1.0] * VOCAB], [([], [1])], padding=1))


@pytest.mark.parametrize("name", ["prob", "logprob", "rank", "kl"])
def test_metrics_of_the_vocabulary_refuse_to_guess_it(name):
    """Without the vocabulary's logits the metric says which field is missing."""
    out = readout([[1.0] * VOCAB], [([0], [1])])
    with pytest.raises(BadInput, match=r"Readout.logits is missing"):
        score(name, Readout(*(getattr(out, field) for field in FIELDS)))


def test_kl_refuses_without_the_clean_run():
    """KL needs the clean run's log-probabilities."""
    with pytest.raises(BadInput, match=r"Readout.reference .* is missing"):
        score("kl", readout([[1.0] * VOCAB], [([0], [1])]))


def test_the_table_of_metrics_tells_the_engine_what_each_needs():
    """What a metric reads is what it declares."""
    assert {name for name, metric in METRICS.items() if metric.needs == "answers"} == {
        *("logit_diff", "logit_diff_sum", "right_logit")
    }
    assert {name for name, metric in METRICS.items() if metric.needs_reference} == {"kl", "kl_reverse"}
    assert {name for name, metric in METRICS.items() if metric.needs_base} == {"stolfo"}
    assert {name for name, metric in METRICS.items() if metric.sums_over_answer_tokens} == {"logprob"}
    assert {name for name, metric in METRICS.items() if metric.needs_wrong} == {
        *("logit_diff", "logit_diff_sum", "prob_diff", "stolfo")
    }
    assert all(metric.name == name and metric.unit and metric.note for name, metric in METRICS.items())


def test_get_metric_takes_a_name_or_a_metric():
    """A metric passes through; an unknown name lists what exists, the closest first."""
    assert get_metric("kl") is METRICS["kl"]
    assert get_metric(METRICS["kl"]) is METRICS["kl"]
    with pytest.raises(UnknownName, match=r"unknown metric 'logitdiff'. Did you mean 'logit_diff'\?.*metric_from"):
        get_metric("logitdiff")


def test_get_metric_takes_a_function_as_it_is():
    """A bare function may read anything, so the vocabulary is computed for it."""

    def top(out: Readout) -> torch.Tensor:
        return out.logits.amax(-1)

    metric = get_metric(top)
    assert (metric.name, metric.needs) == ("top", "vocab")
    assert get_metric(lambda out: out.right[:, 0]).name == "lambda"
    assert metric.score(readout([[1.0, 4, 2, 0, 0, 0, 0]], [([0], [1])])).tolist() == [4.0]


def test_metric_from_wraps_a_function():
    """Name, needs and unit are kept; the score comes back as float32."""
    metric = metric_from(lambda out: out.right.double()[:, 0], name="mine", unit="logits", needs_wrong=True)
    assert isinstance(metric, Metric)
    assert (metric.name, metric.needs, metric.unit, metric.needs_wrong) == ("mine", "answers", "logits", True)
    assert metric.score(readout([[3.0] * VOCAB], [([0], [1])])).dtype == torch.float32


@pytest.mark.parametrize(
    ("returned", "said"),
    [(torch.tensor(1.0), r"'mine' returned \(\)"), (torch.ones(3), r"\(3,\).*shape \(2,\)"), (1.0, "returned float")],
)
def test_a_function_that_returns_another_shape_is_refused(returned, said):
    """A mean over the batch would hide the examples."""
    metric = metric_from(lambda out: returned, name="mine")
    with pytest.raises(BadInput, match=said):
        metric.score(readout([[1.0] * VOCAB] * 2, [([0], [1])] * 2))


def test_metric_from_refuses_what_it_cannot_use():
    """Unknown needs and missing names are errors of the caller."""
    with pytest.raises(BadInput, match=r"needs='everything' is not one of 'answers', 'vocab'"):
        metric_from(lambda out: out.right[:, 0], name="mine", needs="everything")
    with pytest.raises(BadInput, match="needs a name"):
        metric_from(lambda out: out.right[:, 0], name="")


def test_the_package_loads_no_torch_until_a_metric_is_asked_for():
    """Importing the name of the floor is free; a name that does not exist lists those that do."""
    loaded = "'torch' in sys.modules"
    code = f"import sys, crosspatch.metrics as m; assert not {loaded}; m.METRICS; assert {loaded}"
    subprocess.run([sys.executable, "-c", code], check=True)
    import crosspatch.metrics as package

    with pytest.raises(AttributeError, match="offers METRICS, Metric, Readout"):
        package.nothing  # noqa: B018
