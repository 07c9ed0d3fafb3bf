"""`patch_any`: exact patching of any module by sites, from a trial to effects."""

import time
from collections.abc import Sequence

import numpy as np

from crosspatch.core.errors import BadInput
from crosspatch.core.provenance import here
from crosspatch.engine.effects import Effects, ExampleView
from crosspatch.models.fingerprint import fingerprint
from crosspatch.modules.cells import cells_of, length_of, select
from crosspatch.modules.sweeping import Counts, sweep
from crosspatch.modules.trial import Trial
from crosspatch.sites import Address


def patch_any(
    trial: Trial,
    *,
    sites: str | Sequence[Address],
    direction: str = "denoise",
    step: int | None = None,
    rows: int = 64,
) -> Effects:
    """Patch every site of a selection, one at a time, on every pair of a trial; exactly, by running the module.

    Sites are those of the trial's stacks: `encoder.resid.post`, `decoder.cross.head[5, *]`. `direction` is as in
    `patch`. A submodule that is called several times is patched at all its calls, or only at call `step` (a denoising
    step, say). Up to `rows` patched runs share a batch, and fewer if memory is short. What a write cannot change is
    not computed; that this gives the module's own numbers is proved for each place before it is used, and where it
    does not, the whole module is run, with a warning.

    Raises:
        UnknownName, BadInput: a site, direction or step that this module does not have; a metric of another shape.
        NotFinite: the metric of a run is not a number.
        MemoryShortage: not even one patched run fits in memory.

    >>> effects = patch_any(trial, sites="encoder.resid.post, decoder.cross.head")  # doctest: +SKIP
    """
    if direction not in ("denoise", "noise"):
        raise BadInput(f"direction {direction!r}: use 'denoise' (clean values into the corrupt run) or 'noise'.")
    if rows < 1:
        raise BadInput(f"rows={rows}: a batch has one patched run at least.")
    began = time.perf_counter()
    chosen = select(trial, sites)
    cells = list(cells_of(trial, chosen, step))
    count = Counts()
    found, base, source = sweep(trial, cells, direction=direction, rows=rows, count=count)
    raw = np.full((len(chosen), trial.count), np.nan, dtype=np.float32)
    for cell, value in found.items():
        raw[cell.site, cell.example] = value - base[cell.example]
    settings = {
        "module": type(trial.module).__name__,
        "model_hash": fingerprint(trial.module),
        "sites": sites if isinstance(sites, str) else ", ".join(map(str, sites)),
        "stacks": {stack.name or "blocks": stack.layers for stack in trial.stacks},
        "direction": direction,
        "metric": trial.metric_name,
        "step": step,
        "n": trial.count,
        "proofs": count.proofs,
        "runs": count.runs,
        "rows": count.rows,
        "halvings": count.halvings,
        "complete": len(found) == len(cells),
        "seconds": time.perf_counter() - began,
        "normalisation": "raw effect / mean over pairs of (source − base)",
    }
    return Effects(
        sites=chosen,
        raw=raw,
        base=base,
        source=source,
        direction=direction,
        metric=trial.metric_name,
        metric_unit="",
        model=type(trial.module).__name__,
        task=trial.name,
        layers=max((stack.layers for stack in trial.stacks), default=1),
        examples=tuple(_view(trial, example) for example in range(trial.count)),
        warnings=tuple(_warnings(count, len(cells) - len(found))),
        provenance=here(**settings),
    )


def _view(trial: Trial, example: int) -> ExampleView:
    longest = max((length_of(trial, layer["resid.post"]) for s in trial.stacks for layer in s.places), default=1)
    blank = ("",) * longest
    return ExampleView(blank, blank, "", "", trial.names_of(example))


def _warnings(count: Counts, missing: int) -> list[str]:
    found = []
    if missing:
        found.append(f"Interrupted: {missing:,} patches are missing.")
    if count.plain:
        found.append(
            f"Nothing could be reused at {count.plain[0]}{' and others' if len(count.plain) > 1 else ''}: the module "
            "keeps a state, or changes what it is handed. It was run as a whole there; the numbers are exact."
        )
    return found
