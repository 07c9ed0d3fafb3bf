"""The whole next-token distribution of a patched run, beside those of the two runs it lies between."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from crosspatch.core.errors import BadInput, MemoryShortage
from crosspatch.core.names import counted
from crosspatch.engine.attempt import Attempt
from crosspatch.engine.effects import Effects
from crosspatch.engine.local import Pass, final_reads
from crosspatch.engine.patching import Question, Sites, effects_of, prepare
from crosspatch.engine.readout import Scorer
from crosspatch.engine.select import select_sites, selection_text
from crosspatch.engine.sweep import Options, Sweep
from crosspatch.metrics import Metric
from crosspatch.metrics.shipped import get_metric
from crosspatch.models.model import Model
from crosspatch.sites import Address, Group, members_of
from crosspatch.tasks import Task

WHOLE = get_metric("kl")  # any metric that reads the whole vocabulary


@dataclass(frozen=True, eq=False)
class PatchedLogits:
    """Logits `[example, vocab]` of the token after each prompt: of the base, the source and the patched run.

    `effects` holds the metric of the same patch, one site (or group) on each pair.
    """

    base: Float32[np.ndarray, "example vocab"]
    source: Float32[np.ndarray, "example vocab"]
    patched: Float32[np.ndarray, "example vocab"]
    effects: Effects

    def __repr__(self) -> str:
        rows, words = self.patched.shape
        return f"PatchedLogits({self.effects.sites[0]}: {counted(rows, 'pair')} × {words:,} tokens)"


def patched_logits(
    model: Model,
    task: Task,
    *,
    sites: Sites,
    direction: str = "denoise",
    metric: str | Metric | None = None,
    options: Options | None = None,
) -> PatchedLogits:
    """Patch all sites of a selection together, in one run of each pair, and return what the model says next.

    The two runs and the rows of the patch are run as in `patch`; of an answer of several tokens, the first is read.

    Raises:
        UnknownName, BadInput, NotFinite, MemoryShortage: as `patch` does.

    >>> found = patched_logits(model, task, sites="attn.head[9, 6|9]@end")  # doctest: +SKIP
    >>> found.patched[0].argmax(), found.effects.mean()  # doctest: +SKIP
    """
    options = options or Options()
    together = _together(select_sites(model, task, sites), selection_text(sites))
    sweep = prepare(model, task, Question([together], direction, (metric,)), options=options)
    plan = sweep.plan()
    sweep.sizes.require_room()
    logits = np.zeros((3, len(sweep.pairs), model.vocab_size), np.float32)
    for chunk, numbers in enumerate(sweep.cuts.chunks):
        with Attempt() as attempt, sweep.opened(numbers) as this:
            _fill(sweep, this, chunk, logits)
        if attempt.short:
            raise MemoryShortage(
                "out of memory for the runs of these pairs: give fewer of them, shorter prompts, or a smaller dtype."
            )
    sweep.complete = True
    draws = task.corruption.draws
    base, source, patched = logits[:, ::draws] if draws == 1 else logits.reshape(3, len(task), draws, -1).mean(2)
    run = {"sites": str(together), "joint": [str(member) for member in members_of(together)]}
    return PatchedLogits(base, source, patched, effects_of(sweep, task, plan, run))


def _together(chosen: Sequence[Address], text: str) -> Address:
    """Join sites into one group, each once; a single site stays itself. Raises BadInput for none."""
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise BadInput(f"{text!r} selects no site of this model and task.")
    return Group(text, tuple(dict.fromkeys(member for address in chosen for member in members_of(address))))


def _fill(sweep: Sweep, this: Pass, chunk: int, logits: Float32[np.ndarray, "run example vocab"]) -> None:
    """Read the runs of one chunk into `logits` (base, source, patched) and the sweep's own numbers."""
    numbers = sweep.cuts.chunks[chunk]
    every = torch.arange(len(numbers), device=sweep.model.device)
    reader = Scorer(sweep.model, (WHOLE,), this.local.targets)
    sweep.base[:, numbers], sweep.source[:, numbers] = this.before.cpu().numpy(), this.after.cpu().numpy()
    sweep.raw[:, 0, numbers] = 0.0
    logits[0, numbers] = logits[2, numbers] = _read(reader, final_reads(this.base, this.local, every), every)
    logits[1, numbers] = _read(reader, final_reads(this.written, this.local, every), every)
    for pack in sweep.packs_in(chunk):
        for indices, stream in sweep.walk(pack, this):
            pairs = torch.tensor([pack[i].pair for i in indices], device=sweep.model.device)
            places = [numbers[pair] for pair in pairs.tolist()]
            effect: Float[Tensor, "metric row"] = this.scorer(stream, pairs) - this.before[:, pairs]
            sweep.raw[:, 0, places] = effect.cpu().numpy()
            logits[2, places] = _read(reader, stream, pairs)


def _read(
    reader: Scorer, stream: Float[Tensor, "row read d_model"], pairs: Int[Tensor, " row"]
) -> Float32[np.ndarray, "row vocab"]:
    found = reader.logits(stream[:, 0].to(pairs.device), reader.targets.right[pairs, 0])[0]
    assert found is not None  # the reader's metric needs the whole vocabulary
    return found.float().cpu().numpy()
