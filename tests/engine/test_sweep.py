"""The sweep: zeros that are not run are zeros, memory that falls short, numbers that are none, progress, resume."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crosspatch.core.errors import MemoryShortage, NotFinite
from crosspatch.core.progress import SilentProgress
from crosspatch.engine.attempt import Attempt
from crosspatch.engine.cells import cells_of
from crosspatch.engine.effects import Effects
from crosspatch.engine.patching import patch, plan_patch
from crosspatch.engine.sweep import Options, Sweep
from crosspatch.metrics import Readout, get_metric, metric_from
from crosspatch.models.model import Model
from crosspatch.models.open import open_model
from crosspatch.sites import Site
from crosspatch.tasks import Task
from naive.families import naive_effect
from naive.patching import hook
from zoo import ZOO, fresh, make_pair, make_task, opened, uneven

SITES = "resid.pre, attn.head, attn.v@2|4, mlp.out"


def run(model: Model, task: Task, sites: str = SITES, **options: object) -> Effects:
    return patch(model, task, sites=sites, options=Options(**options))  # type: ignore[arg-type]


@contextmanager
def failing(module: nn.Module, when: Callable[[int], bool], error: Callable[[], BaseException]) -> Iterator[list[int]]:
    """Raise in the first block's MLP at calls with some number of tokens; yield the numbers of tokens seen."""
    seen: list[int] = []

    def look(value: Tensor) -> Tensor:
        seen.append(value.shape[:-1].numel())
        if when(seen[-1]):
            raise error()
        return value

    handle = hook(module.model.layers[0].mlp, "in", look)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "falcon_rw"])
def test_what_is_not_run_is_zero_by_hand(name: str) -> None:
    """Each patch that the sweep calls exactly zero is exactly that in a forward of its own."""
    beast, model = ZOO[name], opened(name)
    sites = [
        Site(kind, layer, 0 if kind in beast.units else None, at)
        for kind in sorted(beast.kinds - {"logits", "embed"})
        for layer in (0, 2)
        for at in (1, 2, -2, "all")
    ]
    sweep = Sweep(model, uneven(), sites, (get_metric("logit_diff"),), "denoise", Options())
    zeros = [(sites[i], j) for i, j, cell in cells_of(sites, uneven(), sweep.extents, model.anatomy) if cell is None]
    assert len(zeros) > 60
    for site, j in zeros[:: len(zeros) // 60]:
        assert abs(naive_effect(name, site, uneven()[j])) < 2e-6, (str(site), j)


def test_absent_positions_are_not_a_number() -> None:
    """A site that a shorter prompt does not have is left out there, and known elsewhere."""
    effects = run(opened("llama"), make_task(*uneven()), "resid.pre[1]@7, resid.pre[1]@-8")
    assert np.isnan(effects.raw).tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        lambda: MemoryError("Python's own"),
        lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_every_kind_of_short_memory_halves(error: Callable[[], BaseException]) -> None:
    """Out of memory, on GPU, in Python or in torch's allocator, halves packs and pairs; the numbers stay."""
    module = fresh("llama")
    model, task = open_model(module), make_task(*uneven())
    whole = run(model, task)
    with failing(module, lambda tokens: tokens > 30, error) as seen:
        halved = run(model, task)
    assert max(seen) > 30
    scale = float(np.nanmax(np.abs(whole.raw)))
    np.testing.assert_allclose(halved.raw, whole.raw, atol=2e-5 * scale, rtol=0)
    settings = halved.provenance["settings"]
    assert settings["halvings"] > 1
    assert settings["complete"] is True


def test_the_error_is_gone_before_the_next_attempt() -> None:
    """A traceback holds the tensors that did not fit: halves are tried when it is gone."""
    module, handled = fresh("llama"), []

    def look(tokens: int) -> bool:
        handled.append(sys.exception())
        return tokens > 40

    with failing(module, look, lambda: torch.OutOfMemoryError("no")):
        run(open_model(module), make_task(*uneven()))
    assert len(handled) > 10
    assert set(handled) == {None}


def test_one_row_that_does_not_fit() -> None:
    """The error names the smallest piece of work and three ways out."""
    module = fresh("llama")
    model, task = open_model(module), make_task(make_pair(6, (2,)))
    runs = 6 + 4  # the tokens of the base run, and of the source run from its first difference on
    with (
        failing(module, lambda tokens: tokens != runs, lambda: torch.OutOfMemoryError("no")),
        pytest.raises(MemoryShortage, match=r"even for one row: use shorter prompts, a smaller dtype .*, or a device"),
    ):
        run(model, task)
    with (
        failing(module, lambda tokens: tokens == runs, lambda: torch.OutOfMemoryError("no")),
        pytest.raises(MemoryShortage, match="even for the runs of one pair"),
    ):
        run(model, task)


def test_other_errors_pass() -> None:
    """Only short memory is met by halving; another error is the user's to see."""
    module = fresh("llama")
    model = open_model(module)
    with failing(module, lambda _: True, lambda: RuntimeError("mine")), pytest.raises(RuntimeError, match="mine"):
        run(model, make_task(*uneven()))
    with pytest.raises(MemoryShortage, match="already told"), Attempt():
        raise MemoryShortage("already told")
    with Attempt() as attempt:
        pass
    assert not attempt.short


class Log(SilentProgress):
    """Notes what it is told; presses Ctrl-C after some packs."""

    def __init__(self, stop: int = 0) -> None:
        self.total, self.done, self.closed, self.packs, self.stop = 0, 0, 0, 0, stop

    def start(self, total: int, unit: str) -> None:
        self.total = total
        assert unit == "patches"

    def advance(self, done: int, note: str = "") -> None:
        self.done += done
        self.packs += 1
        if self.packs == self.stop:
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("name", ["gemma3", "bloom"])
def test_a_resumed_sweep_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    """Interrupted after any number of packs and resumed: identical numbers, and progress that reaches its end."""
    model, task, sites = opened(name), make_task(*uneven()), "resid.pre@3:8, mlp.out@3:8"
    whole = run(model, task, sites, tokens=30, memory=60_000)
    for stop in (1, 4):
        log, folder = Log(stop), tmp_path / str(stop)
        part = run(model, task, sites, tokens=30, memory=60_000, progress=log, journal=folder)
        assert log.closed == 1
        assert np.isnan(part.raw).any()
        rest = Log()
        resumed = run(model, task, sites, tokens=900, progress=rest, journal=folder)  # cut as before
        np.testing.assert_array_equal(resumed.raw, whole.raw)
        assert rest.done == rest.total == plan_patch(model, task, sites=sites).rows
    again = Log()
    finished = run(model, task, sites, progress=again, journal=tmp_path / "1")
    np.testing.assert_array_equal(finished.raw, whole.raw)
    assert finished.provenance["settings"]["packs"] == 0


def test_interrupted_in_the_first_run() -> None:
    """Ctrl-C before any number is there gives effects of which none is known."""
    module = fresh("llama")
    model, task = open_model(module), make_task(*uneven())
    with failing(module, lambda _: True, KeyboardInterrupt):
        part = run(model, task)
    assert np.isnan(part.raw).all()
    assert np.isnan(part.base).all()
    assert f"Interrupted: {part.raw.size:,} of {part.raw.size:,} patches are missing" in part.warnings[0]


def nothing_on(token: int, *, above: float = -1e9) -> object:
    """A metric that is no number for pairs answered by a token, where the right logit is above something."""

    def score(out: Readout) -> Tensor:
        value = out.right[:, 0]
        return torch.where((out.right_ids[:, 0] == token) & (value > above), torch.nan, value)

    return metric_from(score, name="broken")


def test_a_metric_that_is_no_number_names_the_example() -> None:
    """Examples are counted in the task, not in the chunk of pairs that memory allows."""
    pairs = (*uneven()[:2], make_pair(9, (5,), seed=2, right=((8,),)))
    for memory in (None, 1):
        with pytest.raises(NotFinite, match=r"broken of the base run is nan on example 2 \(1 of \d examples\)"):
            patch(opened("llama"), make_task(*pairs), metric=nothing_on(8), options=Options(memory=memory))


def test_a_patch_that_gives_no_number_names_site_and_example() -> None:
    """Both runs are finite and one patch is not: the error says which."""
    pairs = (*uneven()[:2], make_pair(9, (5,), seed=2, right=((8,),)))
    effects = patch(opened("llama"), make_task(*pairs), sites="resid.pre[2]@*", metric="right_logit")
    logits = effects.raw[:, 2] + effects.base[2]
    site = int(np.argmax(logits))
    assert logits[site] > max(effects.base[2], effects.source[2]) + 1e-4
    broken = nothing_on(8, above=float(logits[site]) - 1e-4)
    words = rf"broken is nan after patching {str(effects.sites[site]).replace('[', '.').replace(']', '.')} on example 2"
    for memory in (None, 1):
        options = Options(memory=memory)
        with pytest.raises(NotFinite, match=words):
            patch(opened("llama"), make_task(*pairs), sites="resid.pre[2]@*", metric=broken, options=options)
