"""The metrics that come with crosspatch. All compute in float32 whatever the model's own type is."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.metrics.readout import Metric, Readout, Score, metric_from


def logit_diff(out: Readout) -> Float[Tensor, " row"]:
    """Subtract the mean logit of the wrong answers from that of the right ones; raise BadInput if a row has none."""
    _require(out.wrong_mask, "logit_diff compares right with wrong answers", "wrong")
    return right_logit(out) - _mean_where(out.wrong, out.wrong_mask)


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
    answers = _right_of(torch.log_softmax(_vocabulary(out, "logprob"), -1), out)
    return torch.logsumexp(answers.masked_fill(~out.right_mask, -torch.inf), -1)


def kl(out: Readout) -> Float[Tensor, " row"]:
    """Measure D(clean || this run) over the vocabulary in nats, 0 for the clean run itself.

    The divergence is positive and smaller is closer to clean, so raw effects that help are negative; normalised
    effects read as always (0 = base run, 1 = source run). Raises BadInput if the clean log-probabilities are missing.
    """
    logits = _vocabulary(out, "kl")
    if out.reference is None:
        raise BadInput("kl compares with the clean run, but Readout.reference (its log-probabilities) is missing.")
    clean = out.reference.float()
    weight = clean.exp()
    # a token that the clean run rules out counts nothing, even if both sides are −inf there
    gap = (clean - torch.log_softmax(logits, -1)).masked_fill(weight == 0, 0.0)
    return (weight * gap).sum(-1).clamp(min=0)  # rounding can leave the sum a hair under its bound of zero


def rank(out: Readout) -> Float[Tensor, " row"]:
    """Count the tokens placed above the best right answer, ties as one half each; 0 is the top of the vocabulary."""
    _require(out.right_mask, "rank reads the right answers", "right")
    logits = _vocabulary(out, "rank")
    right = _right_of(logits, out).masked_fill(~out.right_mask, -torch.inf)
    best = right.amax(-1, keepdim=True)
    level = (logits == best).sum(-1) - ((right == best) & out.right_mask).sum(-1)
    places = (logits > best).sum(-1) + level / 2
    return places.masked_fill(best[:, 0].isnan(), torch.nan)  # comparing with NaN would call it the top


def _vocabulary(out: Readout, name: str) -> Float[Tensor, "row vocab"]:
    if out.logits is None:
        raise BadInput(f"{name} reads the whole vocabulary, but Readout.logits is missing: say needs='vocab'.")
    return out.logits.float()


def _right_of(values: Float[Tensor, "row vocab"], out: Readout) -> Float[Tensor, "row right"]:
    return values.gather(1, out.right_ids.clamp(min=0).long())  # padding may be any number, −1 too


def _mean_where(values: Float[Tensor, "row answer"], mask: Bool[Tensor, "row answer"]) -> Float[Tensor, " row"]:
    return values.float().masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)


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
