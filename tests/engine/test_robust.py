"""What must not be lost or silently wrong: short memory, Ctrl-C, resume, numbers that are none, a foreign hook."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import zoo
from crosspatch.core.errors import BadInput, MemoryShortage, NotFinite
from crosspatch.core.progress import SilentProgress
from crosspatch.engine import Options, patch
from crosspatch.models.packed import Packed

SITES = "resid.pre, attn.head, mlp.out"


def run(model, task, **options):
    return patch(model, task, sites=SITES, options=Options(**options))


@pytest.fixture
def model():
    return zoo.opened("llama")


@pytest.fixture
def task():
    return zoo.make_task(*zoo.uneven())


def limited(monkeypatch, most):
    """Let a call of a block fail like a full GPU when it gets more than `most` tokens."""
    call = Packed.__call__

    def narrow(self, layer, hidden, segments, **given):
        if len(hidden) > most:
            raise torch.OutOfMemoryError("out of memory (injected)")
        return call(self, layer, hidden, segments, **given)

    monkeypatch.setattr(Packed, "__call__", narrow)


def test_short_memory_halves_the_work_and_changes_nothing(model, task, monkeypatch):
    """When a pack does not fit, its halves are run; the effects are the same and the halvings are told."""
    whole = run(model, task)
    limited(monkeypatch, 40)
    halved = run(model, task)
    np.testing.assert_allclose(halved.raw, whole.raw, atol=1e-5 * np.abs(whole.raw).max())
    assert halved.provenance["settings"]["halvings"] > 0
    assert whole.provenance["settings"]["halvings"] == 0


def test_memory_for_not_even_one_row(model, task, monkeypatch):
    """When a single pair's runs do not fit, the error says so and what to do."""
    limited(monkeypatch, 3)
    with pytest.raises(MemoryShortage, match=r"out of memory even for.*shorter prompts.*bfloat16"):
        run(model, task)


class StopAfter(SilentProgress):
    """Presses Ctrl-C after some packs."""

    def __init__(self, packs):
        self.left = packs

    def advance(self, done, note=""):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_interruption_keeps_what_is_done(model, task):
    """Ctrl-C returns the effects so far, marked as incomplete; nothing of the model stays changed."""
    part = run(model, task, tokens=20, progress=StopAfter(3))
    assert 0 < np.isnan(part.raw).sum() < part.raw.size
    assert part.provenance["settings"]["complete"] is False
    assert any("Interrupted" in warning for warning in part.warnings)
    assert model.module.config._attn_implementation != "crosspatch"


def test_resume_runs_only_what_is_missing_and_gives_the_same_numbers(model, task, tmp_path):
    """An interrupted sweep with a journal, run again, equals one that ran through; nothing finished is run again."""
    whole = run(model, task, tokens=20)
    part = run(model, task, tokens=20, progress=StopAfter(3), journal=tmp_path)
    rest = run(model, task, tokens=20, journal=tmp_path)
    np.testing.assert_array_equal(rest.raw, whole.raw)
    assert np.isnan(part.raw).any()
    assert 0 < rest.provenance["settings"]["packs"] < whole.provenance["settings"]["packs"]
    assert rest.provenance["settings"]["complete"] is True


def test_model_with_nan_weights(task):
    """A model whose logits are NaN is refused with the run, the example and what to try."""
    module = zoo.fresh("llama")
    model = zoo.open_model(module)
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NotFinite, match=r"base run.*example 0.*float32"):
        run(model, task)


def test_patched_run_that_overflows(model, task):
    """A metric that is finite on both runs and not on a patched one names the site and the example."""
    from crosspatch.metrics import metric_from

    base = run(model, task)
    allowed = np.concatenate([base.base, base.source])

    def fussy(out):
        value = out.right[:, 0] - out.wrong[:, 0]
        known = torch.tensor(allowed)
        near = (value[:, None] - known).abs().amin(1) < 1e-4
        return torch.where(near, value, torch.full_like(value, float("inf")))

    with pytest.raises(NotFinite, match=r"after patching \S+ on example \d"):
        patch(model, task, sites="resid.pre[1]", metric=metric_from(fussy, name="fussy", needs_wrong=True))


def test_foreign_hooks_stay_and_are_told(task):
    """Hooks of the user's own survive a sweep, also one that fails, and the result warns of them."""
    module = zoo.fresh("llama")
    model = zoo.open_model(module)
    calls = []
    handle = module.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    module.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    flags = [p.requires_grad for p in module.parameters()]
    effects = run(model, task)
    assert any("hooks of your own" in warning for warning in effects.warnings)
    assert calls
    assert len(module.model.layers[0]._forward_hooks) == 1

    def fail(*_):
        raise RuntimeError("mine")

    broken = module.model.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="mine"):
        run(model, task)
    broken.remove()
    handle.remove()
    assert [p.requires_grad for p in module.parameters()] == flags
    assert module.config._attn_implementation == "sdpa"
    assert not any("forward" in m.__dict__ for m in module.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_token_of_another_tokenizer(model):
    """Ids beyond the model's vocabulary name the example, the id and the cause."""
    task = zoo.make_task(zoo.make_pair(6, (2,)), zoo.make_pair(6, (2,), seed=3, right=((500,),)))
    with pytest.raises(BadInput, match=r"example 1 has token id 500.*0\.\.96.*another tokenizer"):
        run(model, task)


def test_pair_without_a_difference(model):
    """A pair whose prompts are the same is refused: there is nothing to patch."""
    pair = zoo.make_pair(6, (2,))
    with pytest.raises(BadInput, match=r"example 0.*are the same"):
        run(model, zoo.make_task(replace(pair, corrupt=pair.clean)))


def test_unknown_direction(model, task):
    """Another direction is refused with the two there are."""
    with pytest.raises(BadInput, match=r"'sideways'.*denoise.*noise"):
        patch(model, task, direction="sideways")
