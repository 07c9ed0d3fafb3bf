"""The metrics written out in plain Python numbers, one row at a time, from their definitions."""

from math import exp, fsum, log


def naive_logit_diff(right: list[float], wrong: list[float]) -> float:
    """Zhang & Nanda 2023, §2: Logit(r) − Logit(r'), each a mean over alternatives."""
    return fsum(right) / len(right) - fsum(wrong) / len(wrong)


def naive_probabilities(logits: list[float]) -> list[float]:
    """Softmax in double precision."""
    top = max(logits)
    weights = [exp(x - top) for x in logits]
    return [w / fsum(weights) for w in weights]


def naive_prob(logits: list[float], right_ids: list[int]) -> float:
    """Sum of the right answers' probabilities."""
    return fsum(naive_probabilities(logits)[i] for i in right_ids)


def naive_kl(reference: list[float], logits: list[float]) -> float:
    """Sum of P_clean · (log P_clean − log P), from the clean log-probabilities."""
    run = naive_probabilities(logits)
    return fsum(exp(c) * (c - log(p)) for c, p in zip(reference, run, strict=True))


def naive_rank(logits: list[float], right_ids: list[int]) -> float:
    """Places above the best right answer, half a place for each other token at its level."""
    best = max(logits[i] for i in right_ids)
    others = [x for i, x in enumerate(logits) if i not in right_ids]
    return sum(x > best for x in others) + 0.5 * sum(x == best for x in others)
