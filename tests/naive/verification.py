"""Subset bounds, costs of recall and the tree baseline (Kramár et al. 2024), one sample and one node at a time."""

from itertools import product
from math import exp, lgamma, log, pi

import numpy as np


def naive_t_cdf(t, nu, steps=20_000):
    """Integrate Student's density from 0 to |t| by Simpson's rule; half of it lies below zero."""
    x = np.linspace(0.0, abs(t), 2 * steps + 1)
    scale = exp(lgamma((nu + 1) / 2) - lgamma(nu / 2) - 0.5 * log(nu * pi))
    y = scale * (1 + x**2 / nu) ** (-(nu + 1) / 2)
    area = (x[1] - x[0]) / 3 * (y[0] + 4 * y[1::2].sum() + 2 * y[2:-1:2].sum() + y[-1])
    return 0.5 + area if t >= 0 else 0.5 - area


def naive_welch(members, effects, node):
    """Welch's difference, standard error and degrees of freedom: samples with the node against those without."""
    inside, outside = [], []
    for member, effect in zip(members, effects, strict=True):
        (inside if member[node] else outside).append(float(effect))
    means, squares = [], []
    for side in (inside, outside):
        means.append(sum(side) / len(side))
        squares.append(sum((value - means[-1]) ** 2 for value in side) / (len(side) - 1) / len(side))
    freedom = sum(squares) ** 2 / sum(
        s**2 / (len(side) - 1) for s, side in zip(squares, (inside, outside), strict=True)
    )
    return means[0] - means[1], sum(squares) ** 0.5, freedom


def naive_mean_effects(effect, nodes, p):
    """E[effect | node in] − E[effect | node out] over all subsets; `effect` maps a tuple of flags to a number."""
    found = np.zeros(nodes)
    for flags in product((False, True), repeat=nodes):
        for node in range(nodes):
            others = [p if flag else 1 - p for i, flag in enumerate(flags) if i != node]
            found[node] += (1 if flags[node] else -1) * np.prod(others) * effect(flags)
    return found


def naive_recall(order, truth, paid):
    """Verify one node after the other; the cost of the top K is what was paid when the last of them was seen."""
    ranked = sorted(range(len(truth)), key=lambda node: (-truth[node], node))
    costs = []
    for k in range(1, len(truth) + 1):
        missing = set(ranked[:k])
        for node, cost in zip(order, paid, strict=True):
            missing.discard(node)
            if not missing:
                costs.append(cost)
                break
    return costs


def naive_area(costs):
    """The geometric mean over K of cost / K with weight 1/K."""
    weight = sum(1 / k for k in range(1, len(costs) + 1))
    return exp(sum(log(cost / k) / k for k, cost in enumerate(costs, start=1)) / weight)


def naive_hierarchical(nodes, score):
    """Open the set with the largest |joint effect| until all single nodes came up: (nodes, patches by then)."""
    found, paid, opened, patches = [], [], [tuple(nodes)], int(len(nodes) == 1)
    while opened:
        best = max(opened, key=lambda each: float("inf") if each == tuple(nodes) else score(each))
        opened.remove(best)
        if len(best) == 1:
            found, paid = [*found, best[0]], [*paid, patches]
            continue
        half = (len(best) + 1) // 2
        opened, patches = [*opened, best[:half], best[half:]], patches + 2
    return found, paid
