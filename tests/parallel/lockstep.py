"""Packs of their own on each rank, in rounds: blocks are called in step, whatever each rank runs."""

import numpy as np
import questions

import zoo
from crosspatch.engine.cells import cells_of
from crosspatch.engine.plan import packs_of
from crosspatch.engine.select import select_sites
from crosspatch.engine.sweep import Options, Sweep
from crosspatch.engine.walk import Walk
from crosspatch.metrics import get_metric
from crosspatch.models.runs import Lane, run_lanes, workbench

SITES = "resid.pre@*, mlp.out@end, attn.head[*, *]@end, attn.k[*, 0]@mid"


def streams_in_step(model, rank, size, *, tokens=40):
    """Return the final stream of every cell that this rank ran; NaN for those of others."""
    kinds = SITES if model.anatomy.packed else "resid.pre@*, mlp.out@end"
    sites = select_sites(model, questions.task(), kinds)
    sweep = Sweep(model, zoo.uneven(), sites, (get_metric("logit_diff"),), "denoise", Options())
    cells = [cell for *_, cell in cells_of(sites, zoo.uneven(), sweep.extents, model.anatomy) if cell is not None]
    packs = list(packs_of(cells, sweep.extents, model.anatomy, tokens))
    if len(packs) % 2 == 0:  # the last round leaves a rank without a pack
        packs[-1:] = [packs[-1][:1], packs[-1][1:]]
    prompts = [sweep.lane(which, range(3)).prompts for which in ("base", "source")]
    out = np.full((len(cells), model.anatomy.d_model), np.nan)
    with workbench(model, prompts[0]) as bench:
        runs = run_lanes(bench, [Lane(prompts[0]), Lane(prompts[1], sweep.kinds, sweep.extents.differ)])
        for start in range(0, len(packs), size):
            together = packs[start : start + size]
            own = together[rank] if rank < len(together) else []
            first = min(cell.layer for pack in together for cell in pack)
            for indices, streams in Walk(bench, *runs, sweep.extents, own, first).run():
                for index, stream in zip(indices, streams, strict=True):
                    out[cells.index(own[index])] = stream[0].numpy()
    return out
