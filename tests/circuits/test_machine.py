"""Runs of circuits against the naive twin, on every family of the zoo: any edges, unequal prompts, places, variants."""

import numpy as np
import pytest
import torch

from builders_circuits import little, machine_of, random_masks
from crosspatch.circuits.circuit import prune
from crosspatch.circuits.graph import CircuitEdge
from crosspatch.circuits.machine import Machine, State
from crosspatch.circuits.measuring import measure
from crosspatch.circuits.opening import edge_sweep, graph_of
from crosspatch.circuits.variants import Variants
from crosspatch.engine import Ablation, Options
from crosspatch.sites import Site
from crosspatch.tasks import Pair
from naive.circuits import body_of, masked_logits, precision
from naive.patching import run
from zoo import ZOO, make_pair, make_task, opened, uneven

UNEVEN = make_task(*uneven())
PLACES = ("mid", "end")  # with "elsewhere" behind them
NORM_BEHIND = ("gemma2", "gemma3", "olmo2")


def measured(machine: Machine, masks: np.ndarray, known: State | None = None) -> np.ndarray:
    """Return the first metric of circuits, `[circuit, pair]`."""
    return machine.scores(Variants.of(machine, known or machine.clean, masks).run())[0].cpu().numpy()


def place_of_tokens(pair: Pair) -> list[int]:
    """Return the place of each token: those of PLACES, then elsewhere."""
    spots = {pair.names[name]: number for number, name in enumerate(PLACES)}
    return [spots.get(position, len(PLACES)) for position in range(len(pair.clean))]


@pytest.mark.parametrize("name", ZOO)
def test_a_run_with_some_edges_is_the_naive_one(name: str) -> None:
    """Few edges leave most nodes dead: nothing leads into them, or nobody reads them."""
    model, body = opened(name, precision(name)), body_of(name)
    with machine_of(model, UNEVEN) as machine:
        masks = random_masks(machine.graph, 0.03, 0.3, 0.7, 0.95)
        found = measured(machine, masks)
    for circuit, mask in enumerate(masks):
        for number, pair in enumerate(UNEVEN.pairs):
            logits = masked_logits(body, pair.clean, pair.corrupt, mask)[-1]
            expected = float(logits[5] - logits[7])
            assert float(found[circuit, number]) == pytest.approx(expected, abs=2e-5), (name, circuit, number)


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon_40b", "gemma2", "phi3"])
def test_each_place_has_its_own_edges(name: str) -> None:
    """Names lie at other tokens in each prompt; all tokens without one are a place too."""
    model, body = opened(name, precision(name)), body_of(name)
    with machine_of(model, UNEVEN, places=PLACES) as machine:
        masks = random_masks(machine.graph, 0.4, 0.85, seed=1)
        found = measured(machine, masks)
    assert machine.graph.places == (*PLACES, "elsewhere")
    for circuit, mask in enumerate(masks):
        for number, pair in enumerate(UNEVEN.pairs):
            logits = masked_logits(body, pair.clean, pair.corrupt, mask, places=place_of_tokens(pair))[-1]
            assert float(found[circuit, number]) == pytest.approx(float(logits[5] - logits[7]), abs=2e-5)


def test_an_edge_at_one_place_is_not_the_same_edge_at_another() -> None:
    edge = Site("embed"), Site("attn.v", 1, 0)
    with machine_of(opened("llama"), UNEVEN, places=PLACES) as machine:
        masks = np.repeat(machine.graph.full()[None], 4, axis=0)
        for row, place in enumerate((*PLACES, "elsewhere")):
            masks[row, *machine.graph.index(CircuitEdge(*edge, place))] = False
            masks[3, *machine.graph.index(CircuitEdge(*edge, place))] = False
        found = measured(machine, masks)
    with machine_of(opened("llama"), UNEVEN) as machine:
        mask = machine.graph.full()[None]
        mask[0, *machine.graph.index(CircuitEdge(*edge))] = False
        assert found[3] == pytest.approx(measured(machine, mask)[0], abs=1e-5)
    assert len(set(found[:, 0].round(5))) == 4


@pytest.mark.parametrize(
    ("name", "places"),
    [*((name, ()) for name in ("gpt2", "llama", "falcon_40b", *NORM_BEHIND)), ("gemma2", PLACES), ("gpt_neox", PLACES)],
)
def test_circuits_beside_any_known_run(name: str, places: tuple[str, ...]) -> None:
    """Taken over again and again, a known run stays true: what is computed beside it is what the clean run gives.

    With a norm behind attention one head's edge changes what its neighbours add, though none of theirs is cut.
    """
    with machine_of(little(name)[0], UNEVEN, places=places) as machine:
        graph, known = machine.graph, machine.clean.copy()
        for seed, share in enumerate((0.9, 0.15, 0.6, 0.02)):
            step = Variants.of(machine, known, random_masks(graph, share, 0.5, seed=seed))
            step.run()
            step.adopt(0)
            edges = np.argwhere(graph.full())[seed :: graph.size // 15]
            masks = np.repeat(known.masks[None], len(edges), axis=0)
            masks[np.arange(len(edges)), *edges.T] ^= True
            masks = np.concatenate([masks, random_masks(graph, 0.1, 0.7, 1.0, seed=seed + 50)])
            expected = measured(machine, masks)
            found = [measured(machine, mask[None], known)[0] for mask in masks]  # alone: little is computed anew
            assert np.stack(found) == pytest.approx(expected, abs=3e-5), (seed, share)
            assert expected.std() > 1e-3


@pytest.mark.parametrize("name", ["llama", "falcon_40b", "gemma3"])
def test_nothing_is_read_before_it_is_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sender set aside for a run is computed by it, also where heads share keys and only one of them is read.

    What lies in fresh memory must not matter: it is filled with NaN, and a weight of zero would let that through.
    """
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *how, **more: empty(*how, **more).fill_(torch.nan))
    with machine_of(little(name)[0], UNEVEN) as machine:
        rng, edges = np.random.default_rng(0), np.argwhere(machine.graph.full())
        for _ in range(3):
            known = machine.clean.copy()
            for _ in range(25):
                masks = np.repeat(known.masks[None], 2, axis=0)
                for mask in masks:
                    mask[*edges[rng.choice(len(edges), 2)].T] ^= True
                step = Variants.of(machine, known, masks)
                assert step.run().isfinite().all()
                assert step.own.isfinite().all()
                step.adopt(0)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_edges_on_no_path_carry_nothing(name: str) -> None:
    """What nobody hears, and what a node adds into which no edge leads, is the corrupt run's whatever else is there."""
    with machine_of(opened(name), UNEVEN) as machine:
        masks = random_masks(machine.graph, *[0.05] * 6, *[0.2] * 3)
        slim = np.stack([prune(machine.graph, mask) for mask in masks])
        assert (masks.sum((1, 2, 3)) > slim.sum((1, 2, 3))).all()
        assert measured(machine, slim) == pytest.approx(measured(machine, masks), abs=1e-5)


# what absent edges carry


def last_streams(prompts: list[tuple[int, ...]]) -> torch.Tensor:
    """Return GPT-2's stream behind the last block at the last token of each prompt."""
    seen: list[torch.Tensor] = []
    handle = opened("gpt2").module.transformer.ln_f.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for ids in prompts:
        run(opened("gpt2").module, ids)
    handle.remove()
    return torch.stack([stream[0, -1] for stream in seen])


@torch.no_grad()
def read_off(stream: torch.Tensor) -> float:
    """Return the logit difference of GPT-2 at a stream."""
    module = opened("gpt2").module
    logits = module.lm_head(module.transformer.ln_f(stream))
    return float(logits[5] - logits[7])


@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_without_edges_there_are_biases_and_means(by: str) -> None:
    """By hand: zero leaves the output biases of attention; a mean of sums is the sum of means; a resample is a run."""
    task = make_task(*(make_pair(7, (2, 4), seed=seed) for seed in range(3)))
    corrupt, blocks = [pair.corrupt for pair in task.pairs], opened("gpt2").module.transformer.h
    if by == "zero":
        expected = [read_off(sum(block.attn.c_proj.bias for block in blocks))] * 3
    elif by == "mean":
        expected = [read_off(last_streams(corrupt).mean(0))] * 3
    else:
        expected = [read_off(stream) for stream in last_streams(Ablation(by).drawn(task.pairs))]
    clean = [read_off(stream) for stream in last_streams([pair.clean for pair in task.pairs])]
    with machine_of(opened("gpt2"), task, ablation=Ablation(by)) as machine:
        full = machine.graph.full()
        found = measured(machine, np.stack([0 * full > 0, full]))
    assert found[0] == pytest.approx(expected, abs=1e-5)
    assert found[1] == pytest.approx(clean, abs=1e-5)
    assert np.abs(found[0] - found[1]).min() > 0.01


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "falcon_40b"])
@pytest.mark.parametrize("by", ["zero", "mean"])
def test_ablated_circuits_beside_any_known_run(name: str, by: str) -> None:
    """A node without any edge into it speaks too: it reads zeros or means, and what it makes of them is not these."""
    task = make_task(*(make_pair(7, (2, 4), seed=seed) for seed in range(3)))
    with machine_of(opened(name), task, ablation=Ablation(by)) as machine:
        masks = random_masks(machine.graph, 0.5, 0.05, 1.0, seed=2)
        known = machine.clean.copy()
        step = Variants.of(machine, known, random_masks(machine.graph, 0.3))
        step.run()
        step.adopt(0)
        assert measured(machine, masks, known) == pytest.approx(measured(machine, masks), abs=3e-5)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
def test_in_bfloat16_runs_are_near_those_in_single_precision(name: str) -> None:
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        with machine_of(opened(name, dtype), UNEVEN) as machine:
            found[dtype] = measured(machine, random_masks(machine.graph, 1.0, 0.0, 0.5, 0.9))
            ends = [values[0].cpu().numpy() for values in machine.ends]
            assert found[dtype][:2] == pytest.approx(np.stack(ends), abs=0.01 + 0.02 * float(np.abs(ends).max()))
    exact = found[torch.float32]
    assert found[torch.bfloat16] == pytest.approx(exact, abs=0.01 + 0.1 * float(np.ptp(exact)))


def test_pairs_in_chunks_and_all_at_once() -> None:
    """Little memory: a pair a chunk, a circuit a pass; the same numbers."""
    model = little("llama")[0]
    graph = graph_of(model, PLACES)
    masks, found = random_masks(graph, 0.2, 0.5, 0.9), []
    for memory in (None, 40_000):
        sweep = edge_sweep(model, UNEVEN, graph, ["logit_diff", "kl"], options=Options(memory=memory))
        assert (len(sweep.cuts.chunks) == len(UNEVEN.pairs)) == (memory is not None)
        found.append(measure(sweep, list(masks)))
    whole, parts = found
    for name in ("values", "full", "empty"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=2e-5)
    assert parts.calls > whole.calls == 1
