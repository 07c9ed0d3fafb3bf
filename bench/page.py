"""What the page of a result costs: seconds to write it and its size, alone and with all that can stand on it.

python bench/page.py [--layers 18] [--heads 4] [--positions 15] [--pairs 64] [--repeat 5] [--json FILE]
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from crosspatch.circuits.graph import Graph
from crosspatch.engine.effects import Effects, ExampleView
from crosspatch.lenses import HeadPatterns
from crosspatch.report import CircuitContent, CircuitCurve
from crosspatch.report.compare import compare_html
from crosspatch.report.page import page_html
from crosspatch.sites import Site
from machine import describe

STREAMS = ("resid.pre", "attn.out", "mlp.out")
KIB = 1024
Page = Callable[[], str]


def make_effects(given: argparse.Namespace, seed: int) -> Effects:
    """Make effects of streams at every position and of heads at the last one; a third of the positions differ."""
    rng, last = np.random.default_rng(seed), given.positions - 1
    layers, positions = range(given.layers), range(given.positions)
    sites = [Site(kind, layer, None, position) for kind in STREAMS for layer in layers for position in positions]
    sites += [Site("attn.head", layer, head, "end") for layer in layers for head in range(given.heads)]
    early = [isinstance(site.position, int) and site.position < 2 * given.positions // 3 for site in sites]
    raw = rng.normal(rng.normal(0, 1, (len(sites), 1)), 0.2, (len(sites), given.pairs))
    raw[early] = 0.0  # before the first differing token both runs agree
    tokens = tuple(f" word{position}" for position in positions)
    corrupt = (*tokens[: last - 4], " other", *tokens[last - 3 :])
    view = ExampleView(tokens, corrupt, " right", " wrong", {"subject": last - 4, "end": last})
    ends = {"base": rng.normal(-3, 0.5, given.pairs), "source": rng.normal(3, 0.5, given.pairs)}
    return Effects(
        sites=tuple(sites),
        raw=raw.astype(np.float32),
        **{name: values.astype(np.float32) for name, values in ends.items()},
        direction="denoise",
        metric="logit_diff",
        metric_unit="logits",
        model="random",
        task="random",
        layers=given.layers,
        examples=(view,) * given.pairs,
    )


def make_patterns(effects: Effects, heads: int) -> HeadPatterns:
    """Make causal attention of all heads on the first eight pairs."""
    rng = np.random.default_rng(0)
    chosen = tuple((layer, head) for layer in range(effects.layers) for head in range(heads))
    shown = effects.examples[:8]
    n = len(shown[0].clean_tokens)
    weights = np.exp(rng.normal(0, 2, (len(shown), 2, len(chosen), n, n))) * np.tri(n)
    weights = np.rint(255 * weights / weights.sum(-1, keepdims=True)).astype(np.uint8)
    about = {"model": effects.model, "task": effects.task, "layers": effects.layers, "pairs": effects.n}
    tokens = tuple((example.clean_tokens, example.corrupt_tokens) for example in shown)
    sizes = {"heads": heads, "kv_heads": heads, "chosen": chosen, "runs": ("clean", "corrupt")}
    return HeadPatterns(**about, **sizes, patterns=tuple(weights), tokens=tokens)


def make_circuit(given: argparse.Namespace) -> CircuitContent:
    """Make a circuit of a hundred edges among four hundred with scores, and its curve."""
    graph = Graph(given.layers, given.heads, given.heads)
    scores = np.where(graph.full(), np.random.default_rng(0).standard_t(2, graph.shape), np.nan)
    order = np.argsort(-np.abs(np.nan_to_num(scores)).ravel())[:400]
    edges = tuple(graph.edge(tuple(np.unravel_index(i, graph.shape))) for i in order)
    counts = np.array([10.0, 20, 50, 100, 200, 400])
    share = 1 - np.exp(-counts / 60)
    curve = CircuitCurve("eap-ig", counts, share, share - 0.05, share + 0.05)
    about = {"method": "eap-ig", "model": "random", "task": "random", "finding": "100 edges.", "curves": (curve,)}
    return CircuitContent(graph=graph, edges=edges, scores=scores.ravel()[order], size=100, signed=True, **about)


def pages(given: argparse.Namespace) -> dict[str, Page]:
    """Name the ways to write a page; each call starts from fresh effects, of which nothing is known yet."""
    first, second = make_effects(given, 0), make_effects(given, 1)
    patterns = make_patterns(first, given.heads)
    other, circuit = replace(second, metric="kl"), make_circuit(given)
    return {
        "a result": lambda: page_html(replace(first)),
        "with attention": lambda: page_html(replace(first), attention=patterns),
        "with attention and a second metric": lambda: page_html(
            replace(first), attention=patterns, others=[replace(other)]
        ),
        "with a circuit": lambda: page_html(replace(first), circuit=circuit),
        "two results compared": lambda: compare_html([("first", replace(first)), ("second", replace(second))]),
    }


def measure(page: Page, repeat: int) -> dict[str, float]:
    """Write a page several times; give the median and the range of the seconds, and the size."""
    seconds, size = [], 0
    for _ in range(repeat):
        began = time.perf_counter()
        size = len(page().encode())
        seconds.append(time.perf_counter() - began)
    return {"seconds": median(seconds), "least": min(seconds), "most": max(seconds), "kib": size / KIB}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, size in (("layers", 18), ("heads", 4), ("positions", 15), ("pairs", 64), ("repeat", 5)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--json", type=Path, default=Path("bench/out/page.json"))
    given = parser.parse_args()
    given.device, given.seed = "cpu", 0
    ways = pages(given)
    ways["a result"]()  # templates and assets are read once
    found = {name: measure(page, given.repeat) for name, page in ways.items()}
    table = Table("page", "seconds", "least–most", "KiB")
    for name, row in found.items():
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['least']:.2f}–{row['most']:.2f}", f"{row['kib']:.0f}")
    Console().print(table)
    sizes = {name: getattr(given, name) for name in ("layers", "heads", "positions", "pairs", "repeat")}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(describe(given) | {"sizes": sizes, "pages": found}, indent=1))


if __name__ == "__main__":
    main()
