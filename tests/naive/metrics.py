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


def naive_divergence(first: list[float], second: list[float]) -> float:
    """D(first || second) = Σ p (log p − log q) in nats, both given as logits; swap them for the other way."""
    p, q = naive_probabilities(first), naive_probabilities(second)
    return fsum(a * (log(a) - log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def naive_prob_diff(logits: list[float], right_ids: list[int], wrong_ids: list[int]) -> float:
    """Summed probability of the right answers minus that of the wrong ones (Hanna et al. 2023, greater-than)."""
    return naive_prob(logits, right_ids) - naive_prob(logits, wrong_ids)


def naive_accuracy(logits: list[float], right_ids: list[int]) -> float:
    """1 if a right answer is above every token that is none, else 0: a tie is no hit."""
    return float(max(logits[i] for i in right_ids) > max(x for i, x in enumerate(logits) if i not in right_ids))


def naive_stolfo(base: list[float], patched: list[float], right: int, wrong: int) -> float:
    """Stolfo et al. 2023: ½ [(P(r) − P*(r)) / P*(r) + (P*(w) − P(w)) / P(w)], * the base run, else the patched run."""
    return naive_relative_change(base, patched, [right], [wrong])


def naive_relative_change(base: list[float], patched: list[float], right: list[int], wrong: list[int]) -> float:
    """Stolfo et al. 2023 for sets of answers, whose probabilities are summed."""
    r, r0, w, w0 = (naive_prob(run, ids) for ids in (right, wrong) for run in (patched, base))
    return 0.5 * ((r - r0) / r0 + (w0 - w) / w)
