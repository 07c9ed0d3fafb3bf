"""The doctor finds healthy models healthy, names what is wrong with broken ones, and leaves both as they were."""

from dataclasses import replace

import pytest
import torch

import zoo
from crosspatch.engine import doctor
from crosspatch.engine.doctor import examine
from crosspatch.models.model import Check
from crosspatch.models.open import open_model

SWEEPS = ["patch all = source run", "sweep = one forward a patch", "padding honoured"]
PROOF = "parts proved again"
LAST = "model untouched"


def failed(checks):
    return [check.name for check in checks if not check.ok]


def detail(checks, name):
    return next(check.detail for check in checks if check.name == name)


def altered(name, **facts):
    model = zoo.opened(name)
    return replace(model, anatomy=replace(model.anatomy, **facts))


def moved(name, kind, **changed):
    """Return a model with one point of its anatomy changed."""
    points = zoo.opened(name).anatomy.points
    return altered(name, points={**points, kind: replace(points[kind], **changed)})


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_healthy_model(name):
    model = zoo.opened(name)
    checks = examine(model)
    assert not failed(checks)
    names = [check.name for check in checks]
    assert names == [*(check.name for check in model.checks), PROOF, *SWEEPS, LAST]
    kinds = "resid.pre, attn.head, attn.v, attn.out, mlp.out"
    assert detail(checks, SWEEPS[1]).startswith(f"60 patches of {kinds}: largest relative error ")
    assert detail(checks, PROOF) == "as opened"


@pytest.mark.parametrize("name", ["opt", "gpt_neox", "gemma2", "olmo2", "mixtral", "falcon_40b"])
def test_an_odd_family_is_proved_again_as_it_was(name):
    checks = doctor.proved_again(zoo.opened(name))
    assert not failed(checks)
    assert [check.name for check in checks] == [*(check.name for check in zoo.opened(name).checks), PROOF]


def test_half_precision_is_healthy():
    assert not failed(examine(zoo.opened("llama", torch.bfloat16)))


@pytest.mark.parametrize(
    ("kind", "starts", "found"),
    [
        ("attn.v", (4, 12), "attn.v heads"),
        ("attn.v", (8, 0), "attn.v heads"),
        ("attn.q", (8, 0, 16, 24), "attn.q heads"),
        ("attn.k", (8, 0), "attn.k heads"),
        ("attn.head", (24, 16, 8, 0), "attn.v heads"),
    ],
)
def test_head_columns_that_are_others(kind, starts, found):
    """A sweep and one forward a patch would agree on the wrong columns; the proof does not."""
    checks = examine(moved("llama", kind, starts=starts))
    assert {found, PROOF} <= set(failed(checks))
    assert not {*SWEEPS} & {check.name for check in checks}
    assert detail(checks, found).endswith("moves other heads")
    assert not {LAST, "blocks form one stream"} & set(failed(checks))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_part_at_another_module(name):
    points = zoo.opened(name).anatomy.points
    checks = examine(moved(name, "attn.out", path=points["mlp.out"].path))
    assert failed(checks) == ["parts sum to the block", PROOF]
    checks = examine(moved(name, "attn.out", path="nowhere"))
    assert failed(checks) == [PROOF]
    assert "nowhere" in detail(checks, PROOF)


@pytest.mark.parametrize(
    "facts", [{"sequential": False}, {"packed": False}, {"tuples": True}, {"causal": False}, {"d_model": 31}]
)
def test_a_fact_that_is_no_longer_so(facts):
    checks = examine(altered("llama", **facts))
    assert failed(checks) == [PROOF]
    assert detail(checks, PROOF) == f"no longer as opened: {next(iter(facts))}"


def test_a_norm_left_out_of_the_readout():
    readout = replace(zoo.opened("llama").anatomy.readout, norms=())
    checks = examine(altered("llama", readout=readout))
    assert failed(checks) == [PROOF]
    assert detail(checks, PROOF) == "no longer as opened: readout"


def test_a_module_changed_after_it_was_opened():
    """A hook on a block that mixes its tokens: the proof of opening no longer holds, and nothing was cached of it."""
    model = open_model(zoo.fresh("llama"))
    block = model.module.model.layers[1]
    handle = block.register_forward_hook(lambda _, __, output: output + output.mean(1, keepdim=True))
    try:
        checks = examine(model)
    finally:
        handle.remove()
    assert failed(checks) == [PROOF]
    assert "do not run by themselves" in detail(checks, PROOF)
    assert not failed(doctor.proved_again(model))


def test_sweeps_that_disagree(monkeypatch):
    """Each check of the sweep fails where what it compares differs."""
    model = zoo.opened("llama")
    slow = doctor.one_forward
    monkeypatch.setattr(doctor, "one_forward", lambda *given: slow(*given) + 0.5)
    assert not doctor.against_one_forward(model, doctor.random_task(model)).ok
    monkeypatch.undo()
    fast = doctor.patch

    def wrong(*given, **named):
        effects = fast(*given, **named)
        return replace(effects, raw=effects.raw * 1.5)

    monkeypatch.setattr(doctor, "patch", wrong)
    assert not doctor.everything_patched(model, doctor.random_task(model)).ok


def test_a_model_that_ignores_its_mask(monkeypatch):
    model = open_model(zoo.fresh("llama"))
    forward = model.module.forward

    def from_the_end(input_ids, **kwargs):
        out = forward(input_ids=input_ids, **kwargs)
        out.logits = out.logits + input_ids.shape[1]
        return out

    model.module.forward = from_the_end
    assert not doctor.padding(model).ok
    assert doctor.padding(zoo.opened("llama")).ok


def test_a_check_that_failed_at_opening_is_still_told():
    model = zoo.opened("llama")
    refused = replace(model, checks=(*model.checks, Check("attn.z heads", False, "8 heads; head 3 moves other heads")))
    assert failed(doctor.proved_again(refused)) == ["attn.z heads"]


def snapshot(module):
    hooks = [(tuple(part._forward_hooks), tuple(part._forward_pre_hooks)) for part in module.modules()]
    flags = [(weight.requires_grad, weight.grad is None) for weight in module.parameters()]
    own = [sorted(part.__dict__) for part in module.modules()]
    return hooks, flags, own, module.config._attn_implementation, module.training, torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_the_module_is_left_as_it_was(name):
    model = open_model(zoo.fresh(name))
    weights = {key: value.clone() for key, value in model.module.state_dict().items()}
    before = snapshot(model.module)
    examine(model)
    examine(replace(model, anatomy=replace(model.anatomy, layers=2)))
    assert snapshot(model.module) == before
    assert all(torch.equal(value, weights[key]) for key, value in model.module.state_dict().items())


def test_a_check_that_leaves_something_behind_is_found(monkeypatch):
    model = open_model(zoo.fresh("llama"))

    def forgets(given):
        given.module.register_forward_hook(lambda *_: None)
        return Check("padding honoured", True, "")

    monkeypatch.setattr(doctor, "padding", forgets)
    monkeypatch.setattr(doctor, "against_one_forward", lambda *_: Check("sweep", True, ""))
    assert failed(examine(model)) == [LAST]
