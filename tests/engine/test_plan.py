"""The plan: what it counts is what is run, and packs and chunks lose nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crosspatch.core.errors import BadInput
from crosspatch.engine.cells import Cell, Extents, Part
from crosspatch.engine.patching import patch, plan_patch
from crosspatch.engine.plan import (
    GIB,
    Plan,
    block_weights,
    bytes_per_prompt_token,
    chunk_pairs,
    kept_width,
    memory_budget,
    packs_of,
    row_work,
    width_of,
)
from crosspatch.engine.sweep import Options
from crosspatch.models.open import open_model
from crosspatch.sites import Site
from naive.patching import hook
from zoo import ZOO, fresh, make_pair, make_task, opened, uneven

CPU = torch.device("cpu")
KINDS = (
    "embed@3, resid.pre[0|2]@3|all, resid.mid[1]@-2, resid.post[0|2]@-1|all, attn.q[1, 0]@-1, attn.k[1]@3, "
    "attn.v[2, all], attn.in[1]@2|all, attn.head[1], mlp.out[0]@-3"
)


def tokens_run(name: str, sites: str, options: Options) -> tuple[int, Plan]:
    """Count the tokens that the blocks really see in a sweep, and plan it."""
    module, seen = fresh(name), []
    model = open_model(module)
    task = make_task(*uneven(), make_pair(4, (0,), seed=5))
    part = model.anatomy.points["attn.head"].path

    def count(value: Tensor) -> Tensor:
        seen.append(value.shape[:-1].numel())
        return value

    handles = [hook(block.get_submodule(part), "in", count) for block in module.get_submodule(ZOO[name].blocks)]
    patch(model, task, sites=sites, options=options)
    for handle in handles:
        handle.remove()
    return sum(seen), plan_patch(model, task, sites=sites, options=options)


@pytest.mark.parametrize("options", [Options(tokens=1), Options(tokens=100), Options(memory=30_000)])
@pytest.mark.parametrize("name", ["mistral", "bloom"])
def test_work_is_counted_exactly(name: str, options: Options) -> None:
    """Token-blocks run equal the plan's for every kind of entry, however rows are packed, padded or chunked."""
    run, plan = tokens_run(name, KINDS, options)
    assert run == plan.token_blocks
    # One right and one wrong answer of width 32 are read off each row and off both runs of the four pairs.
    assert plan.flops == 2 * (run * block_weights(opened(name)) + (plan.rows + 2 * 4) * 2 * 32)
    assert plan.chunks > 1 or options.memory is None


def test_patches_are_run_zero_or_absent() -> None:
    """The three add up to sites × pairs; positions before the first difference and beyond a prompt are not run."""
    task = make_task(*uneven())  # lengths 9, 6, 9; first differences 3, 2, 5
    plan = plan_patch(opened("llama"), task, sites="resid.pre[0]@0:8")
    assert (plan.patches, plan.zero, plan.absent) == (24, 3 + 2 + 5, 2)
    assert plan.rows == 24 - 10 - 2
    last = plan_patch(opened("llama"), task, sites="mlp.out[2]@0:8, attn.q[2, 0]@-1, attn.k[2, 0]@-2")
    assert (last.rows, last.absent) == (1 + 3 + 3, 2)  # what mlp.out writes before the last token is not read


def test_work_of_a_row() -> None:
    """Its own block on what the patch reaches there, then all blocks above from its start to the end."""
    anatomy, extents = opened("llama").anatomy, Extents(lengths=(10,), differ=(2,), reads=((9,),))
    for kind, layer, positions, expected in (
        ("resid.pre", 0, (4,), 3 * 6),
        ("resid.pre", 3, (4,), 0),
        ("attn.head", 0, (4,), 1 + 2 * 6),
        ("attn.head", 1, (4, 5, 6), 3 + 1 * 6),
        ("attn.v", 1, (4,), 2 * 6),
    ):
        cell = Cell(0, 0, (Part(kind, layer, None, positions),))
        assert row_work(cell, extents, anatomy) == expected, kind
        assert width_of(cell, extents, anatomy) == 6
    assert width_of(Cell(0, 0, (Part("resid.pre", 0, None, (4,)),)), extents, opened("bloom").anatomy) == 10


CELLS = st.tuples(
    st.integers(0, 2), st.sampled_from(["resid.pre", "attn.head", "attn.v"]), st.integers(0, 2), st.integers(0, 5)
)


@given(st.lists(CELLS, max_size=40), st.integers(1, 60))
def test_packs_hold_every_cell_once_and_no_more_than_fits(drawn: list[tuple[int, str, int, int]], tokens: int) -> None:
    """Later layers come first, and a pack is over its size only if it is a single row."""
    anatomy, extents = opened("llama").anatomy, Extents((6, 8, 12), (0, 0, 0), ((5,), (7,), (11,)))
    found = [Cell(i, pair, (Part(kind, layer, None, (at,)),)) for i, (pair, kind, layer, at) in enumerate(drawn)]
    packs = list(packs_of(found, extents, anatomy, tokens))
    flat = [cell for pack in packs for cell in pack]
    assert sorted(flat, key=lambda cell: cell.site) == found
    assert [cell.layer for cell in flat] == sorted((cell.layer for cell in found), reverse=True)
    assert all(pack for pack in packs)
    assert all(len(p) == 1 or sum(width_of(cell, extents, anatomy) for cell in p) <= tokens for p in packs)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 100), st.integers(1, 1000), st.booleans())
def test_chunks_hold_every_pair_once(lengths: list[int], per_pair: int, budget: int, by_length: bool) -> None:
    """A chunk fits into half of the budget or is one pair; lengths are kept apart where they must be."""
    chunks = chunk_pairs(lengths, per_pair, budget, by_length=by_length)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    assert all(len(chunk) == 1 or len(chunk) * per_pair <= budget // 2 for chunk in chunks)
    assert not by_length or all(len({lengths[i] for i in chunk}) == 1 for chunk in chunks)


def test_memory_budget() -> None:
    """Two gibibytes on a processor unless asked otherwise; nothing is no budget."""
    assert memory_budget(None, CPU) == 2 * GIB
    assert memory_budget(7, CPU) == 7
    for wrong in (0, -1):
        with pytest.raises(BadInput, match=f"memory budget {wrong} bytes: give a positive number"):
            memory_budget(wrong, CPU)


def test_memory_counts_what_runs_keep() -> None:
    """Two runs' streams, keys and values, and the activations of the kinds swept; half as much in half precision."""
    llama = opened("llama")
    streams, keys = 2 * 4 * 32, 2 * 3 * 2 * 8
    assert bytes_per_prompt_token(llama, (), 9) == 4 * (streams + keys)
    widths = {"attn.head": 32, "attn.v": 16, "mlp.hidden": 48, "mlp.out": 32, "attn.pattern": 4 * 9}
    assert {kind: kept_width(kind, llama.anatomy, 9) for kind in widths} == widths
    assert bytes_per_prompt_token(llama, tuple(widths), 9) == 4 * (streams + keys + 3 * sum(widths.values()))
    assert bytes_per_prompt_token(opened("llama", torch.bfloat16), (), 9) == 2 * (streams + keys)


def test_a_plan_reads_as_a_sentence() -> None:
    """Numbers of patches, forwards and packs; nothing is divided by zero."""
    task = make_task(*uneven())
    plan = plan_patch(opened("llama"), task, sites="resid.pre", options=Options(tokens=40))
    text = str(plan)
    assert f"{plan.patches:,} patches: {plan.rows:,} run, {plan.zero:,} exactly zero" in text
    assert f"{plan.packs:,} packs" in text
    assert plan.forwards == pytest.approx(plan.token_blocks / (3 * 24 / 3))
    assert plan.forwards_saved > 0
    nothing = Plan(0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0, 0)
    assert (nothing.forwards, nothing.forwards_saved) == (0.0, 0.0)


def test_positions_read_by_a_long_answer_are_counted() -> None:
    """A forced answer makes rows longer, and its positions are read too."""
    pair = make_pair(6, (2,), right=((5, 6, 8),), wrong=())
    plan = plan_patch(opened("llama"), make_task(pair, metric="logprob"), sites=[Site("mlp.out", 2, None, -1)])
    assert plan.rows == 1
    assert plan.token_blocks == 3 * (8 + 6) + 1


def test_work_counts_the_readout() -> None:
    """A metric of the whole vocabulary multiplies the whole unembedding once a row; one of answers, their rows."""
    model, task = opened("llama"), make_task(make_pair(6, (2,)))
    answers, vocabulary = (plan_patch(model, task, sites="mlp.out", metric=name) for name in ("logit_diff", "prob"))
    rows = answers.rows + 2
    assert vocabulary.flops - answers.flops == 2 * rows * 32 * (model.anatomy.vocab - 2)
