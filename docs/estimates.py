"""Measure estimates against exact patching on Gemma-3-270M; write the tables of docs/estimates.md: `python docs/estimates.py`."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import crosspatch as xp
from crosspatch.attribution.agreement import central, pearson, scores
from crosspatch.attribution.baselines import (
    blocks_of,
    by_blocks,
    expected_brute_force,
    hierarchical,
    joint_scores,
    subsampling,
    tree_of,
)
from crosspatch.attribution.bound import bound_missed
from crosspatch.attribution.joint import Asked
from crosspatch.attribution.recall import Order, area, oracle, recall_curve
from crosspatch.attribution.recall_plot import recall_svg
from crosspatch.attribution.subsets import Sampling, sample_subsets
from crosspatch.core.stats import spearman

SAVED = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/estimates")  # measurements, so that tables can be made anew
PAGE = Path(__file__).with_name("estimates.md")
TASKS = {
    "ioi": {"template": 0, "order": "ABBA"},
    "greater_than": {},
    "docstring": {},
    "capitals": {"template": 0},
    "sva": {},
}
PAIRS, FEWER = 8, 3
STREAM = "resid.pre, attn.out, mlp.out"
KINDS = ("attn.q", "attn.k", "attn.v", "attn.head", "mlp.out")
PLACES = {"docstring": "C_def|B_doc|end"}  # elsewhere all positions
ESTIMATORS = {
    "AtP": {"by": "atp"},
    "AtP + GradDrop": {"by": "atp-drop"},
    "IG, 5 steps": {"by": "ig", "steps": 5},
    "RelP ln": {"by": "relp", "preset": "ln"},
    "RelP cp": {"by": "relp", "preset": "cp"},
    "RelP repo": {"by": "relp", "preset": "repo"},
    "RelP relp": {"by": "relp", "preset": "relp"},
    "RelP attnlrp": {"by": "relp", "preset": "attnlrp"},
}
# What an estimate costs beside verifications, in forwards over all pairs: two runs, and a backward counts as one run.
ORDERS = {
    "AtP*": ({"by": "atp*"}, 2 + 1 + 18 / 2),
    "AtP + QK fix": ({"by": "atp-qk"}, 3.0),
    "AtP": ({"by": "atp"}, 3.0),
    "AtP + GradDrop": ({"by": "atp-drop"}, 2 + 1 + 18 / 2),
    "RelP ln": ({"by": "relp", "preset": "ln"}, 3.0),
    "RelP cp": ({"by": "relp", "preset": "cp"}, 3.0),
    "IG, 5 steps": ({"by": "ig", "steps": 5}, 2 + 10.0),
}
SAMPLES, P, LEVEL, TOP = 600, 0.03, 0.95, 30


def correlations(model, task) -> dict:
    """Correlate each estimator with the exact sweep over layers × positions, by kind; positions without effect count."""
    exact = xp.patch(model, task, sites=STREAM)
    found = {}
    for name, how in ESTIMATORS.items():
        guess = xp.attribute(model, task, sites=STREAM, **how)
        found[name] = {}
        for kind in ("resid.pre", "attn.out", "mlp.out"):
            rows = [i for i, s in enumerate(exact.sites) if s.kind == kind]
            here, there = (np.nan_to_num(e.only(rows).mean().astype(float)) for e in (guess, exact))
            there = np.abs(there) if not guess.signed else there
            found[name][kind] = [pearson(here, there), spearman(here, there)]
    return found


def recall(model, task, places: str) -> dict:
    """Order all heads' queries, keys, values and outputs and all MLPs, by position; noise the clean run, exactly."""
    began = time.perf_counter()
    exact = xp.patch(model, task, sites=", ".join(f"{kind}@{places}" for kind in KINDS), direction="noise")
    truth, nodes = scores(exact), list(exact.sites)
    live = [i for i in range(len(nodes)) if truth[i] > 0]  # the rest is zero by construction, for every method
    nodes, truth = [nodes[i] for i in live], truth[live]
    shares = central(exact.only(live), signed=False)
    asked = Asked("noise")
    orders, spearmans = [], {}
    for name, (how, cost) in ORDERS.items():
        guess = xp.attribute(model, task, sites=nodes, direction="noise", **how)
        orders.append(Order.by_score(name, scores(guess), spent=cost))
        spearmans[name] = spearman(scores(guess), truth)
    samples = sample_subsets(model, task, nodes, design=Sampling(SAMPLES, P, asked=asked))
    orders.append(subsampling(samples))
    blocks, tree = blocks_of(nodes), tree_of(nodes)
    orders.append(by_blocks(blocks, joint_scores(model, task, blocks, asked=asked)))
    orders.append(hierarchical(tree, joint_scores(model, task, tree, asked=asked)))
    curves = {o.method: recall_curve(o, truth) for o in orders}
    random = expected_brute_force(len(truth))
    curves_out = {name: curve.costs.tolist() for name, curve in curves.items()} | {"brute force": random.tolist()}
    areas = {name: curve.area for name, curve in curves.items()} | {"brute force": area(random, oracle(truth))}
    verified = frozenset(nodes[i] for i in orders[0].nodes[:TOP])
    rest = sample_subsets(model, task, nodes, design=Sampling(SAMPLES, P, seed=1, skip=verified, asked=asked))
    bound = bound_missed(rest, verified=verified, level=LEVEL)
    left = [i for i, node in enumerate(nodes) if node not in verified]
    means = np.abs(exact.only([live[i] for i in left]).raw.mean(1))
    return {
        "nodes": len(nodes),
        "gap": abs(exact.mean_gap),
        "areas": areas,
        "costs": curves_out,
        "top20": {name: costs[19] for name, costs in curves_out.items()},
        "spearman": spearmans,
        "bound": bound.theta / abs(exact.mean_gap),
        "missed_mean": float(means.max() / abs(exact.mean_gap)),
        "missed_size": float(shares[left].max()),
        "seconds": time.perf_counter() - began,
    }


def kept(name: str, make: Callable[[], dict]) -> dict:
    """Measure, or load what was measured."""
    file = SAVED / f"{name}.json"
    if not file.exists():
        SAVED.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make()))
    return json.loads(file.read_text())


def measure(name: str) -> dict:
    """Measure one task, or load what was measured."""

    def made(n: int) -> tuple:
        model = xp.open_model("gemma-3-270m")
        return model, xp.tasks.get_task(name, model, n=n, **TASKS[name])

    places = PLACES.get(name, "*")
    return {
        "correlations": kept(f"{name}-correlations", lambda: correlations(*made(PAIRS))),
        "recall": kept(f"{name}-recall", lambda: recall(*made(FEWER), places)),
    }


def correlation_table(results: dict) -> list[str]:
    """Write Pearson correlations, a row an estimator, residual / attention / MLP for each task; the best in bold."""
    kinds = ("resid.pre", "attn.out", "mlp.out")
    best = {(t, k): max(r["correlations"][e][k][0] for e in ESTIMATORS) for t, r in results.items() for k in kinds}
    lines = [f"| estimator | {' | '.join(results)} |", "|---|" + "---|" * len(results)]
    for name in ESTIMATORS:
        cells = []
        for task, found in results.items():
            values = [(found["correlations"][name][kind][0], best[task, kind]) for kind in kinds]
            cells.append(" / ".join(f"**{v:.2f}**" if v >= top - 0.005 else f"{v:.2f}" for v, top in values))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def recall_table(results: dict) -> list[str]:
    """Write the areas of the cost of verified recall (1 is the oracle), methods in order of their geometric mean.

    The last column leaves out what gradients cost: how good the order is by itself.
    """
    found = [r["recall"] for r in results.values()]
    areas = {name: [r["areas"][name] for r in found] for name in found[0]["areas"]}
    means = {name: mean(values) for name, values in areas.items()}
    head = " | ".join(f"{task} ({r['nodes']:,} nodes)" for task, r in zip(results, found, strict=True))
    lines = [f"| order by | {head} | mean | order alone |", "|---|" + "---:|" * (len(results) + 2)]
    for name in sorted(means, key=means.__getitem__):
        free = mean([order_alone(r["costs"][name], name) for r in found]) if name in ORDERS else means[name]
        cells = " | ".join(f"{v:.1f}" for v in areas[name])
        lines.append(f"| {name} | {cells} | {means[name]:.2f} | {free:.2f} |")
    return lines


def order_alone(costs: list[float], name: str) -> float:
    """Return the area of an estimator's order as if its gradients were free."""
    free = np.array(costs) - ORDERS[name][1]
    return area(free, np.arange(1, len(free) + 1, dtype=float))


def mean(values: list[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(values))))


def bound_table(results: dict) -> list[str]:
    """Write the bound on missed nodes beside what was really missed, as shares of the gap."""
    lines = [
        "| task | bound | largest missed \\|mean effect\\| | largest missed mean \\|effect\\| |",
        "|---|---:|---:|---:|",
    ]
    for task, found in results.items():
        r = found["recall"]
        lines.append(f"| {task} | {r['bound']:.3f} | {r['missed_mean']:.3f} | {r['missed_size']:.3f} |")
    return lines


def write(results: dict) -> None:
    """Put the tables between the page's marks, and draw the recall curves."""
    text = PAGE.read_text(encoding="utf-8")
    tables = {"correlations": correlation_table, "recall": recall_table, "bound": bound_table}
    for name, make in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = before + start + "\n".join(make(results)) + "\n" + end + rest.split(end)[1]
    PAGE.write_text(text, encoding="utf-8")
    from crosspatch.attribution.recall import RecallCurve

    shown = ("AtP*", "AtP + QK fix", "AtP", "RelP ln", "subsampling", "blocks", "hierarchical", "brute force")
    found = next(iter(results.values()))["recall"]
    curves = [RecallCurve(name, np.array(found["costs"][name]), found["areas"][name]) for name in shown]
    PAGE.with_name("recall.svg").write_text(recall_svg(curves, title="Cost of verified recall: IOI"), encoding="utf-8")


if __name__ == "__main__":
    results = {name: measure(name) for name in TASKS}
    if PAGE.exists():
        write(results)
