"""The metrics that come with crosspatch. All compute in float32 whatever the model's own type is."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.metrics.readout import Metric, Readout, Score, metric_from


def logit_diff(out: Readout) -> Float[Tensor, " row"]:
    """Subtract the mean logit of the wrong answers from that of the right ones; raise BadInput if a row has none."""
    _require(out.wrong_mask, "logit_diff compares right with wrong answers", "wrong")
    return right_logit(out) - _mean_where(out.wrong, out.wrong_mask)


def logit_diff_sum(out: Readout) -> Float[Tensor, " row"]:
    """Subtract the summed logits of the wrong answers from those of the right ones; raise BadInput if a row has none.

    For answer sets as in greater-than (Zhang & Nanda 2023): Σ logit(years above) − Σ logit(years below).
    """
    _require(out.wrong_mask, "logit_diff_sum compares right with wrong answers", "wrong")
    _require(out.right_mask, "logit_diff_sum reads the right answers", "right")
    right, wrong = (
        v.float().masked_fill(~m, 0.0) for v, m in ((out.right, out.right_mask), (out.wrong, out.wrong_mask))
    )
    return right.sum(-1) - wrong.sum(-1)


def right_logit(out: Readout) -> Float[Tensor, " row"]:
    """Average the logits of the right answers; raise BadInput if a row has none."""
    _require(out.right_mask, "right_logit reads the right answers", "right")
    return _mean_where(out.right, out.right_mask)


def prob(out: Readout) -> Float[Tensor, " row"]:
    """Sum the probabilities of the right answers; raise BadInput if a row has none or the vocabulary is missing."""
    return logprob(out).exp()


def logprob(out: Readout) -> Float[Tensor, " row"]:
    """Take the log, in nats, of the right answers' summed probability; raise BadInput as `prob` does."""
    _require(out.right_mask, "logprob reads the right answers", "right")
    return _summed(_all(out, "logprob"), out.right_ids, out.right_mask)


def kl(out: Readout) -> Float[Tensor, " row"]:
    """Measure D(clean || this run) over the vocabulary in nats, 0 for the clean run itself.

    The divergence is positive and smaller is closer to clean, so raw effects that help are negative; normalised
    effects read as always (0 = base run, 1 = source run). Raises BadInput if the clean log-probabilities are missing.
    """
    own = _all(out, "kl")
    if out.reference is None:
        raise BadInput("kl compares with the clean run, but Readout.reference (its log-probabilities) is missing.")
    clean = out.reference.float()
    weight = clean.exp()
    # a token that the clean run rules out counts nothing, even if both sides are −inf there
    gap = (clean - own).masked_fill(weight == 0, 0.0)
    return (weight * gap).sum(-1).clamp(min=0)  # rounding can leave the sum a hair under its bound of zero


def kl_reverse(out: Readout) -> Float[Tensor, " row"]:
    """Measure D(this run || clean) in nats over the vocabulary, 0 for the clean run itself; raise BadInput as `kl`.

    It punishes what this run says and the clean one does not; `kl` punishes what this run no longer says.
    """
    own = _all(out, "kl_reverse")
    if out.reference is None:
        raise BadInput(
            "kl_reverse compares with the clean run, but Readout.reference (its log-probabilities) is missing."
        )
    weight = own.exp()
    gap = (own - out.reference.float()).masked_fill(weight == 0, 0.0)
    return (weight * gap).sum(-1).clamp(min=0)


def prob_diff(out: Readout) -> Float[Tensor, " row"]:
    """Subtract the wrong answers' summed probability from the right answers' (Hanna et al. 2023, greater-than)."""
    _require(out.wrong_mask, "prob_diff compares right with wrong answers", "wrong")
    wrong = _summed(_all(out, "prob_diff"), _wrong_ids(out, "prob_diff"), out.wrong_mask)
    return prob(out) - wrong.exp()


def stolfo(out: Readout) -> Float[Tensor, " row"]:
    """Average the relative changes of right and wrong answers' probabilities from the base run (Stolfo et al. 2023).

    ½ [(P(r) − P₀(r)) / P₀(r) + (P₀(w) − P(w)) / P(w)] with P₀ of the base run, which itself scores 0. It explodes where
    P₀(r) or P(w) is tiny. Raises BadInput without wrong answers or without the base run's log-probabilities.
    """
    _require(out.wrong_mask, "stolfo compares right with wrong answers", "wrong")
    if out.base is None:
        raise BadInput("stolfo compares with the base run, but Readout.base (its log-probabilities) is missing.")
    _require(out.right_mask, "stolfo reads the right answers", "right")
    sides = (out.right_ids, out.right_mask), (_wrong_ids(out, "stolfo"), out.wrong_mask)
    (right, right_before), (wrong, wrong_before) = (
        [_summed(run, ids, mask) for run in (_all(out, "stolfo"), out.base.float())] for ids, mask in sides
    )
    return ((right - right_before).exp() - 1 + (wrong_before - wrong).exp() - 1) / 2


def accuracy(out: Readout) -> Float[Tensor, " row"]:
    """Give 1 where the best right answer beats every wrong one, or all tokens if there is none; ties are 0."""
    _require(out.right_mask, "accuracy reads the right answers", "right")
    best = out.right.float().masked_fill(~out.right_mask, -torch.inf).amax(-1)
    rivals = torch.full_like(best, -torch.inf)
    if out.wrong.shape[1]:
        rivals = out.wrong.float().masked_fill(~out.wrong_mask, -torch.inf).amax(-1)
    compared, wins = out.wrong_mask.any(-1), best > rivals
    wins = (wins if bool(compared.all()) else torch.where(compared, wins, rank(out) == 0)).float()
    return wins.masked_fill(best.isnan(), torch.nan)


def _wrong_ids(out: Readout, name: str) -> Int[Tensor, "row wrong"]:
    if out.wrong_ids is None:
        raise BadInput(f"{name} reads the wrong answers' probability, but Readout.wrong_ids is missing.")
    return out.wrong_ids


def rank(out: Readout) -> Float[Tensor, " row"]:
    """Count the tokens placed above the best right answer, ties as one half each; 0 is the top of the vocabulary."""
    _require(out.right_mask, "rank reads the right answers", "right")
    logits = _vocabulary(out, "rank")
    right = _chosen(logits, out.right_ids).masked_fill(~out.right_mask, -torch.inf)
    best = right.amax(-1, keepdim=True)
    level = (logits == best).sum(-1) - ((right == best) & out.right_mask).sum(-1)
    places = (logits > best).sum(-1) + level / 2
    return places.masked_fill(best[:, 0].isnan(), torch.nan)  # comparing with NaN would call it the top


def _all(out: Readout, name: str) -> Float[Tensor, "row vocab"]:
    """Return the log-probabilities of the vocabulary, or say which metric misses them."""
    _vocabulary(out, name)
    return out.logprobs


def _vocabulary(out: Readout, name: str) -> Float[Tensor, "row vocab"]:
    if out.logits is None:
        raise BadInput(f"{name} reads the whole vocabulary, but Readout.logits is missing: say needs='vocab'.")
    return out.logits.float()


def _summed(
    logprobs: Float[Tensor, "row vocab"], ids: Int[Tensor, "row answer"], mask: Bool[Tensor, "row answer"]
) -> Float[Tensor, " row"]:
    """Return the log of the answers' summed probability."""
    return torch.logsumexp(_chosen(logprobs, ids).masked_fill(~mask, -torch.inf), -1)


def _chosen(values: Float[Tensor, "row vocab"], ids: Int[Tensor, "row answer"]) -> Float[Tensor, "row answer"]:
    return values.gather(1, ids.clamp(min=0).long())  # padding may be any number, −1 too


def _sum_where(values: Float[Tensor, "row answer"], mask: Bool[Tensor, "row answer"]) -> Float[Tensor, " row"]:
    return values.float().masked_fill(~mask, 0.0).sum(-1)


def _mean_where(values: Float[Tensor, "row answer"], mask: Bool[Tensor, "row answer"]) -> Float[Tensor, " row"]:
    return _sum_where(values, mask) / mask.sum(-1)


def _require(mask: Bool[Tensor, "row answer"], reason: str, side: str) -> None:
    missing = (~mask.any(-1)).nonzero()
    if len(missing):
        raise BadInput(
            f"{reason}, but the task gives no {side} answer (row {int(missing[0])}). "
            f"Give {side}=… when you make the task" + _INSTEAD[side]
        )


_INSTEAD = {"wrong": ", or choose a metric that needs none: prob, logprob, rank, kl, right_logit.", "right": "."}


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="logit_diff",
            needs="answers",
            score=logit_diff,
            unit="logits",
            note="mean logit of the right answers minus mean logit of the wrong ones",
            needs_wrong=True,
        ),
        Metric(
            name="prob",
            needs="vocab",
            score=prob,
            unit="probability",
            note="summed probability of the right answers; cannot fall below 0, so it hides negative components",
        ),
        Metric(
            name="logprob",
            needs="vocab",
            score=logprob,
            unit="nats",
            note="log of the right answers' summed probability; answers of several tokens add up over their tokens",
            sums_over_answer_tokens=True,
        ),
        Metric(
            name="kl",
            needs="vocab",
            score=kl,
            unit="nats",
            note="divergence D(clean || run) over the vocabulary; lower is closer to the clean run",
            needs_reference=True,
        ),
        Metric(
            name="logit_diff_sum",
            needs="answers",
            score=logit_diff_sum,
            unit="logits",
            note="summed logits of the right answers minus summed logits of the wrong ones, for answer sets",
            needs_wrong=True,
        ),
        Metric(
            name="prob_diff",
            needs="vocab",
            score=prob_diff,
            unit="probability",
            note="summed probability of the right answers minus that of the wrong ones",
            needs_wrong=True,
        ),
        Metric(
            name="kl_reverse",
            needs="vocab",
            score=kl_reverse,
            unit="nats",
            note="divergence D(run || clean) over the vocabulary; lower is closer to the clean run",
            needs_reference=True,
        ),
        Metric(
            name="stolfo",
            needs="vocab",
            score=stolfo,
            unit="ratio",
            note="mean relative change of the probabilities from the base run; explodes where they are tiny",
            needs_wrong=True,
            needs_base=True,
        ),
        Metric(
            name="accuracy",
            needs="vocab",
            score=accuracy,
            unit="share",
            note="1 where a right answer beats every wrong one; yes or no, so it confirms and does not explore",
        ),
        Metric(
            name="rank",
            needs="vocab",
            score=rank,
            unit="places",
            note="tokens above the best right answer, ties as one half; 0 is the top and lower is better",
        ),
        Metric(
            name="right_logit",
            needs="answers",
            score=right_logit,
            unit="logits",
            note="mean logit of the right answers; also moves when every logit moves",
        ),
    )
}


def get_metric(metric: str | Metric | Score) -> Metric:
    """Return the metric of that name, the metric itself, or your function made a metric that may read the vocabulary.

    Raises UnknownName with the names that exist. A function that needs only the answers is cheaper as
    `metric_from(function, name=…)`.
    """
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, str):
        return metric_from(metric, name=getattr(metric, "__name__", "custom").strip("<>"), needs="vocab")
    if metric not in METRICS:
        raise UnknownName.of("metric", metric, METRICS, hint="Make your own with metric_from(function, name=…).")
    return METRICS[metric]
