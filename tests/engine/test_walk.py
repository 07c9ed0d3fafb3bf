"""The walk: rows of any start and layer in one pass, whose final streams are those of one forward a patch."""

import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from crosspatch.engine.cells import Cell, cells_of
from crosspatch.engine.plan import row_work
from crosspatch.engine.sweep import Options, Sweep
from crosspatch.engine.walk import Walk
from crosspatch.metrics import get_metric
from crosspatch.models.model import Model
from crosspatch.models.open import open_model
from crosspatch.models.runs import Lane, run_lanes, workbench
from crosspatch.sites import Site
from naive.families import activation, spot_of, value_for
from naive.patching import hook
from zoo import ZOO, fresh, module_of, opened, uneven

DOUBLE = torch.float64


def sites_of(name: str, kinds: set[str], count: int) -> list[Site]:
    """Draw sites of some kinds, all layers and units, single positions and all together."""
    units = ZOO[name].units
    every = [
        Site(kind, None if kind == "embed" else layer, unit, at)
        for kind in sorted(kinds)
        for layer in range(3)
        for unit in ((None, 0, units[kind] - 1) if kind in units else (None,))
        for at in (2, 4, -2, -1, "all")
    ]
    return random.Random(name).sample(list(dict.fromkeys(every)), count)


def walk(model: Model, sites: list[Site]) -> tuple[list[Cell], list[Tensor]]:
    """Walk all cells of a denoising sweep in one pack; return them and their final streams `[read, d_model]`."""
    sweep = Sweep(model, uneven(), sites, (get_metric("logit_diff"),), "denoise", Options())
    cells = [cell for *_, cell in cells_of(sites, uneven(), sweep.extents, model.anatomy) if cell is not None]
    prompts = [sweep.lane(which, range(3)).prompts for which in ("base", "source")]
    with workbench(model, prompts[0]) as bench:
        lanes = [Lane(prompts[0]), Lane(prompts[1], sweep.kinds, sweep.extents.differ)]
        found = list(Walk(bench, *run_lanes(bench, lanes), sweep.extents, cells).run())
    streams = {index: stream for group, rows in found for index, stream in zip(group, rows, strict=True)}
    assert sorted(streams) == list(range(len(cells)))
    return cells, [streams[index] for index in range(len(cells))]


def final_by_hand(name: str, site: Site, cell: Cell) -> Tensor:
    """The last token's final stream of one patched forward."""
    pair, module = uneven()[cell.pair], module_of(name, DOUBLE)
    value = value_for(name, site, pair.clean, pair.corrupt, DOUBLE)
    columns = ZOO[name].columns("attn.head" if site.kind == "attn.pattern" else site.kind, site.unit)

    def write(present: Tensor) -> Tensor:
        flat = present.clone().reshape(-1, present.shape[-1])
        for position in cell.parts[0].positions:
            flat[position, columns] = value[position, columns]
        return flat.reshape(present.shape)

    last, kept = module.get_submodule(f"{ZOO[name].blocks}.2"), []
    spots = [(*spot_of(name, site.kind, site.layer or 0, DOUBLE), write), (last, "out", lambda x: kept.append(x) or x)]
    handles = [hook(*spot) for spot in spots]
    with torch.no_grad():
        module(input_ids=torch.tensor([pair.corrupt]))
    for handle in handles:
        handle.remove()
    return kept[0][0, -1]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma3", "falcon_40b", "opt"])
def test_final_streams_equal_one_forward_a_patch_in_double_precision(name: str) -> None:
    """All kinds mixed in one pass, to nine digits; only the pattern, which is single precision, is kept apart."""
    sites = sites_of(name, ZOO[name].kinds - {"logits", "attn.pattern"}, 40)
    cells, streams = walk(opened(name, DOUBLE), sites)
    assert len(cells) > 40
    for cell, stream in zip(cells, streams, strict=True):
        expected = final_by_hand(name, sites[cell.site], cell)
        torch.testing.assert_close(stream[0], expected, atol=1e-9, rtol=1e-9, msg=str((sites[cell.site], cell)))


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_patterns_are_as_exact_as_they_are_given(name: str) -> None:
    """Patterns come in single precision from transformers' eager kernels."""
    sites = sites_of(name, {"attn.pattern"}, 20)
    for cell, stream in zip(*walk(opened(name, DOUBLE), sites), strict=True):
        torch.testing.assert_close(stream[0], final_by_hand(name, sites[cell.site], cell), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["qwen3", "gptj"])
def test_one_walk_calls_each_block_once(name: str) -> None:
    """A pack of rows that enter everywhere costs one call a block, and each row its own tokens only."""
    module = fresh(name)
    model = open_model(module)
    sites = sites_of(name, ZOO[name].kinds - {"logits"}, 50)
    sweep = Sweep(model, uneven(), sites, (get_metric("logit_diff"),), "denoise", Options())
    calls: Counter[int] = Counter()
    seen: Counter[int] = Counter()
    part = model.anatomy.points["attn.head"].path

    def note(index: int, value: Tensor) -> Tensor:
        calls[index] += 1
        seen[index] += value.shape[:-1].numel()
        return value

    for index, block in enumerate(module.get_submodule(ZOO[name].blocks)):
        hook(block.get_submodule(part), "in", lambda value, index=index: note(index, value))
    cells, _ = walk(model, sites)
    runs = 1 if model.anatomy.packed else 2
    assert calls == {layer: runs + 1 for layer in range(3)}
    if model.anatomy.packed:
        lengths, differ = sweep.extents.lengths, sweep.extents.differ
        own = 3 * (2 * sum(lengths) - sum(differ))
        assert sum(seen.values()) == own + sum(row_work(cell, sweep.extents, model.anatomy) for cell in cells)


def test_rows_that_enter_above_the_last_block_run_none() -> None:
    """A patch of the final stream is read at once."""
    name = "llama"
    sites = [Site("resid.post", 2, None, -1)]
    cells, streams = walk(opened(name, DOUBLE), sites)
    assert [cell.layer for cell in cells] == [3, 3, 3]
    for cell, stream in zip(cells, streams, strict=True):
        torch.testing.assert_close(stream[0], activation(name, "resid.post", 2, uneven()[cell.pair].clean, DOUBLE)[-1])
