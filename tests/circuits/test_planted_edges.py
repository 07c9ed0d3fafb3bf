"""Edges of planted models: what is known about them is what the naive run of a circuit finds, one edge at a time."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pytest
import torch

from builders_circuits import BUILDERS
from crosspatch.sites import Site
from naive.circuits import Body, body_of_llama, masked_score, naive_acdc, plain_run
from naive.patching import run
from planted import Planted

EXACT, NOTICEABLE = 1e-4, 0.2  # of the gap between the clean and the corrupt run
planted_models = pytest.mark.parametrize("name", BUILDERS)
PAIRS = range(3)


@dataclass(frozen=True)
class Subject:
    planted: Planted
    body: Body
    indices: dict[str, tuple[int, int, int]]  # of each edge, by its name

    def mask(self, edges: Iterable[str]) -> np.ndarray:
        kept = np.zeros(self.body.graph.shape)
        for edge in edges:
            kept[self.indices[edge]] = 1
        return kept

    def without(self, edge: str, edges: Iterable[str] | None = None) -> np.ndarray:
        return self.mask(set(self.indices if edges is None else edges) - {edge})

    def scorer(self, pair: int):
        _, _, right, wrong = self.planted.pairs[pair]
        return lambda logits: logits[-1, right] - logits[-1, wrong]

    def share(self, mask: np.ndarray, pair: int, direction: str = "noise") -> float:
        """Return the share of the gap that a run keeps: 1 where all edges are in, 0 where none is."""
        ends = self.planted.pairs[pair][:2] if direction == "noise" else self.planted.pairs[pair][1::-1]
        whole, nothing = self.bounds[pair][:: 1 if direction == "noise" else -1]
        return (masked_score(self.body, *ends, mask, score=self.scorer(pair)) - nothing) / (whole - nothing)

    @cached_property
    def bounds(self) -> list[list[float]]:
        """The scores of the clean and the corrupt run of each pair."""
        return [
            [float(self.scorer(pair)(run(self.planted.module, ids))) for ids in self.planted.pairs[pair][:2]]
            for pair in PAIRS
        ]


@cache
def subject(name: str) -> Subject:
    planted = BUILDERS[name]()
    body = body_of_llama(planted.module)
    indices = [tuple(index) for index in np.argwhere(body.graph.full()).tolist()]
    return Subject(planted, body, {str(body.graph.edge(index)): index for index in indices})


@cache
@torch.no_grad()
def moved(name: str, pair: int) -> frozenset[Site]:
    """Return the senders that write something else in the corrupt run; an edge of another one is the same in both."""
    it = subject(name)
    clean, corrupt = (plain_run(it.body, ids)[0] for ids in it.planted.pairs[pair][:2])
    return frozenset(site for site in clean if not torch.allclose(clean[site], corrupt[site], rtol=0, atol=1e-6))


@planted_models
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_each_edge_alone(name, direction):
    """Of the first pair each edge that carries anything, of the others each edge that matters."""
    it = subject(name)
    used, moving = it.planted.used(direction), {str(site) for site in moved(name, 0)}
    assert used <= set(it.indices)
    carrying = [edge for edge in it.indices if edge.split(" -> ")[0] in moving]
    lost = {edge: 1 - it.share(it.without(edge), 0, direction) for edge in carrying}
    assert {edge for edge, loss in lost.items() if abs(loss) > NOTICEABLE} == used
    assert all(abs(loss) < EXACT for edge, loss in lost.items() if edge not in used)
    for edge in used:
        others = [1 - it.share(it.without(edge), pair, direction) for pair in PAIRS[1:]]
        assert others == pytest.approx([lost[edge]] * 2, abs=EXACT)


@pytest.mark.parametrize(("name", "absolute"), [*((name, False) for name in BUILDERS), ("negative", True)])
def test_what_acdc_keeps_is_enough_and_no_edge_too_much(name, absolute):
    it = subject(name)
    for edges in it.planted.kept(absolute=absolute):
        for pair in PAIRS:
            share = it.share(it.mask(edges), pair)
            assert share > 1 - EXACT
            assert share < 1 + EXACT or (name == "negative" and not absolute)
            for edge in edges:
                change = share - it.share(it.without(edge, edges), pair)
                assert (abs(change) if absolute else change) > NOTICEABLE, edge


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *[(name, {"backwards": back}) for name in ("AND", "OR", "ADDER", "negative") for back in (False, True)],
        *[("negative", {"absolute": True}), ("induction", {}), ("fraction", {"backwards": True})],
        *[("backup", {}), ("backup", {"backwards": True, "absolute": True})],
    ],
)
def test_acdc_keeps_one_of_these(name, how):
    assert acdc(name, **how) in subject(name).planted.kept(absolute=how.get("absolute", False))


@cache
def acdc(name: str, **how: bool) -> frozenset[str]:
    it = subject(name)
    clean, corrupt, *_ = it.planted.pairs[0]
    found = naive_acdc(it.body, clean, corrupt, score=it.scorer(0), threshold=0.1, **how)
    return frozenset(edge for edge, index in it.indices.items() if found[index])


def test_which_input_of_or_is_kept_hangs_on_the_order():
    found = {acdc("OR", backwards=back) for back in (False, True)}
    assert found == set(subject("OR").planted.acdc_keeps)
    assert len(found) == 2


@planted_models
def test_idle_parts_carry_something_and_are_in_no_circuit(name):
    it = subject(name)
    planted = it.planted
    circuits = (planted.used("noise"), planted.used("denoise"), *planted.kept(), *planted.kept(absolute=True))
    used = {node for edges in circuits for edge in edges for node in edge.split(" -> ")}
    idle = {str(site) for site in moved(name, 0)} - used
    assert any("attn.head" in node for node in idle)
    units = {node.removeprefix("attn.head") for node in idle if "attn.head" in node}
    assert not {f"{kind}{unit}" for kind in ("attn.q", "attn.k", "attn.v") for unit in units} & used


def test_models_differ():
    """Noise and denoise, tests one at a time and in turn, prompts of one program: each tells other edges somewhere."""
    planted = {name: subject(name).planted for name in BUILDERS}
    assert {n for n, p in planted.items() if p.used("noise") != p.used("denoise")} == {
        *("AND", "OR", "backup", "reverse by length")
    }
    assert {n for n, p in planted.items() if list(p.kept()) != [p.edges]} == {"OR", "backup", "negative"}
    assert planted["reverse"].edges < planted["reverse by length"].edges
