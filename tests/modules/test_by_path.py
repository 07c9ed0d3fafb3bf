"""Patching by module path: every odd module against a loop of plain hooks."""

import copy
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

import zoo
from crosspatch.core.errors import BadInput, NotFinite, UnknownName
from crosspatch.modules.by_path import patch_modules

Two = namedtuple("Two", "left right")


class Part(nn.Module):
    """A linear layer whose output takes some shape."""

    def __init__(self, wrap=lambda x: x):
        super().__init__()
        self.linear, self.wrap = nn.Linear(4, 4), wrap

    def forward(self, x):
        return self.wrap(torch.tanh(self.linear(x)))


class Odd(nn.Module):
    """Holds parts `a`, `b`, … and runs them as a function says."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def tuples(m, x):
    (first, (second, third)), flag = m.a(x)
    return m.b(first * 2 - second + third) if flag else None


def dicts(m, x):
    out = m.a(x)
    return m.b(out["x"] + out["more"][0] * out["more"][1])


def named(m, x):
    out = m.a(x)
    return m.b(out.left - 0.5 * out.right)


def twice(m, x):
    return m.b(m.a(m.a(x)) + x)


def in_place(m, x):
    y = m.a(x)
    y += 1
    y.mul_(2)
    return m.b(y).add_(y)


def shared(m, x):
    return m.b(m.a(x)) + m.also_a(x)


def listed(m, x):
    for part in m.parts:
        x = x + part(x)
    return m.heads["left"](x) * m.heads["right"](x)


def keyworded(m, x, *, gain, other=None):
    return m.b(m.a(x) * gain + (0 if other is None else other))


def several(m, x, y):
    return m.b(m.a(x) + y)


def modern(m, x):
    out = m.a(x)
    return BaseModelOutput(last_hidden_state=m.b(out.last_hidden_state) + out.hidden_states[1])


def buffered(m, x):
    return m.b(m.a(x) + m.shift)


def writes_its_input(m, x):
    x += 1
    x.clamp_(max=0.5)
    return m.b(m.a(x))


def part_as_tuple():
    return Part(lambda x: ((x, [x * 2, x + 1]), True))


# name: builder, inputs as a function of a tensor [example, 4]
ODD = {
    "tuple": (lambda: Odd(tuples, a=part_as_tuple(), b=Part()), None),
    "dict": (lambda: Odd(dicts, a=Part(lambda x: {"x": x, "more": (x, x - 1), "n": 3}), b=Part()), None),
    "ordered": (lambda: Odd(dicts, a=Part(lambda x: OrderedDict(x=x, more=[x, x - 1], no=None)), b=Part()), None),
    "named": (lambda: Odd(named, a=Part(lambda x: Two(x, x * x)), b=Part()), None),
    "twice": (lambda: Odd(twice, a=Part(), b=Part()), None),
    "in place": (lambda: Odd(in_place, a=Part(), b=Part()), None),
    "shared": (lambda: Odd(shared, **dict.fromkeys(("a", "also_a"), Part()), b=Part()), None),
    "listed": (
        lambda: Odd(
            listed, parts=nn.ModuleList([Part(), Part()]), heads=nn.ModuleDict({"left": Part(), "right": Part()})
        ),
        None,
    ),
    "keywords": (lambda: Odd(keyworded, a=Part(), b=Part()), lambda x: {"x": x, "gain": 3, "other": x.flip(1)}),
    "arguments": (lambda: Odd(several, a=Part(), b=Part()), lambda x: (x, x.flip(1))),
    "model output": (
        lambda: Odd(modern, a=Part(lambda x: BaseModelOutput(x, hidden_states=(x, x * 2))), b=Part()),
        None,
    ),
    "buffers": (lambda: Odd(buffered, a=Part(), b=nn.BatchNorm1d(4)), None),
    "writes its input": (lambda: Odd(writes_its_input, a=Part(), b=Part()), None),
    "inplace relu": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(inplace=True)), None),
}


def made(name):
    build, shape = ODD[name]
    torch.manual_seed(1)
    module = build().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
    base, source = (torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    return module, (shape or (lambda x: x))(base), (shape or (lambda x: x))(source)


def score(output):
    output = output.last_hidden_state if isinstance(output, BaseModelOutput) else output
    return output @ torch.tensor([1.0, -2.0, 0.5, 3.0])


@torch.no_grad()
def run(module, inputs):
    inputs = copy.deepcopy(inputs)
    if isinstance(inputs, dict):
        return score(module(**inputs))
    return score(module(*inputs) if isinstance(inputs, tuple) else module(inputs))


def naive(module, base, source, path):
    """One run that keeps the outputs, one that gives them back, call by call."""
    part, kept = module.get_submodule(path), []
    handle = part.register_forward_hook(lambda _, __, output: kept.append(copy.deepcopy(output)))
    run(module, source)
    handle.remove()
    handle = part.register_forward_hook(lambda *_: copy.deepcopy(kept.pop(0)))
    patched = run(module, base)
    handle.remove()
    return (patched - run(module, base)).numpy()


@pytest.mark.parametrize("name", ODD)
def test_every_module_equals_a_loop_of_plain_hooks(name):
    module, base, source = made(name)
    before = copy.deepcopy((base, source, module.state_dict()))
    effects = patch_modules(module, base=base, source=source, metric=score)
    torch.testing.assert_close(
        (base, source, dict(module.state_dict())), (*before[:2], dict(before[2])), rtol=0, atol=0
    )
    assert not any(part._forward_hooks for part in module.modules())
    np.testing.assert_allclose(effects.base, run(module, base), rtol=1e-5)
    np.testing.assert_allclose(effects.source, run(module, source), rtol=1e-5)
    containers = {path for path, part in module.named_modules() if isinstance(part, (nn.ModuleList, nn.ModuleDict))}
    assert set(effects.skipped) == containers
    assert set(effects.paths) == {path for path, _ in module.named_modules() if path} - containers
    assert effects.raw.dtype == np.float32
    for path, row in zip(effects.paths, effects.raw, strict=True):
        np.testing.assert_allclose(row, naive(module, base, source, path), rtol=1e-4, atol=1e-5, err_msg=path)
    assert np.abs(effects.raw).max() > 0.1


@pytest.mark.parametrize("name", ["tuple", "dict", "named", "model output", "keywords", "buffers"])
def test_the_last_module_patched_is_the_source_run(name):
    module, base, source = made(name)
    if name == "model output":
        module.run = lambda m, x: BaseModelOutput(m.b(m.a(x).last_hidden_state))
    effects = patch_modules(module, base=base, source=source, metric=score, paths=["b"])
    np.testing.assert_allclose(effects.raw[0], effects.source - effects.base, rtol=1e-5, atol=1e-6)
    assert effects.values.mean() == pytest.approx(1, abs=1e-5)


def test_the_paths_asked_for_in_their_order_and_the_largest_first():
    module, base, source = made("listed")
    paths = ("heads.right", "parts.1", "parts.0.linear")
    effects = patch_modules(module, base=base, source=source, metric=score, paths=paths)
    assert effects.paths == paths
    assert not effects.skipped
    means = {path: row.mean() for path, row in zip(paths, effects.raw, strict=True)}
    expected = sorted(means, key=lambda path: -abs(means[path]))
    assert [path for path, _ in effects.top()] == expected
    assert effects.top(1) == [(expected[0], pytest.approx(means[expected[0]]))]
    gap = (effects.source - effects.base).mean()
    np.testing.assert_allclose(effects.values, effects.raw / gap, rtol=1e-6)


def test_a_module_of_two_names_answers_to_both():
    module, base, source = made("shared")
    effects = patch_modules(module, base=base, source=source, metric=score, paths=["a", "also_a"])
    np.testing.assert_array_equal(effects.raw[0], effects.raw[1])


def test_why_a_module_was_left_out():
    """An unused part, one with no tensor in its output, one called another number of times, one of other shapes."""

    def strange(m, x):
        for _ in range(2 if float(x.detach()[0, 0]) > 0 else 1):
            x = m.often(x)
        m.silent(x)
        size = 2 if float(x.detach()[0, 0]) > 0 else 3
        return m.last(x) + m.cut(x[:, :size]).sum()

    parts = {"unused": Part(), "silent": Odd(lambda m, x: "text"), "often": nn.Identity(), "last": nn.Linear(4, 4)}
    module = Odd(strange, **parts, cut=nn.Identity()).eval()
    given = {"base": -torch.ones(2, 4), "source": torch.ones(2, 4), "metric": score}
    effects = patch_modules(module, **given)
    assert effects.paths == ("last",)
    reasons = {
        "unused": "it is not called in the base run",
        "unused.linear": "it is not called in the base run",
        "silent": "its output holds no tensor",
        "often": "it is called 2 times in the source run and 1 times in the base run",
        "cut": "its output has shapes [[2, 2]] in the source run and [[2, 3]] in the base run",
    }
    assert dict(effects.skipped) == reasons
    for path, reason in reasons.items():
        with pytest.raises(BadInput) as caught:
            patch_modules(module, **given, paths=["last", path])
        assert str(caught.value) == f"module {path!r} cannot be patched: {reason}."


def test_shapes_that_differ_at_a_later_call_are_named():
    def later(m, x):
        return m.b(m.a(x)) + m.a(x[:, : 1 if float(x[0, 0]) > 0 else 2]).sum()

    module = Odd(later, a=nn.Identity(), b=nn.Linear(4, 4)).eval()
    words = r"its output has shapes \[\[2, 1\]\] in the source run and \[\[2, 2\]\] in the base run"
    with pytest.raises(BadInput, match=words):
        patch_modules(module, base=-torch.ones(2, 4), source=torch.ones(2, 4), metric=score, paths=["a"])


def test_modules_of_a_transformers_model():
    """Outputs that are ModelOutputs with a cache, tuples and tensors, in a model with no anatomy asked for."""
    module = zoo.fresh("gpt2")
    base, source = ({"input_ids": torch.randint(3, zoo.VOCAB, (2, 6), generator=g)} for g in map(seeded, (1, 2)))
    effects = patch_modules(
        module, base=base, source=source, metric=lambda out: out.logits[:, -1, 5] - out.logits[:, -1, 7]
    )
    rows = dict(zip(effects.paths, effects.raw, strict=True))
    for path in ("transformer", "transformer.h.2", "transformer.ln_f", "lm_head"):
        np.testing.assert_allclose(rows[path], effects.source - effects.base, rtol=1e-4, atol=1e-5, err_msg=path)
    assert not np.allclose(rows["transformer.h.1.attn"], 0, atol=1e-4)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_what_is_refused():
    module, base, source = made("twice")

    def refused(error, words, **changed):
        with pytest.raises(error, match=words):
            patch_modules(**{"module": module, "base": base, "source": source, "metric": score, **changed})
        assert not any(part._forward_hooks for part in module.modules())

    refused(UnknownName, r"unknown module 'c'. .*Known: a, a.linear, b, b.linear. List them with module", paths=["c"])
    refused(UnknownName, r"unknown module 'a.liner'. Did you mean 'a.linear'\?", paths=["a.liner"])
    refused(BadInput, r"the metric gave \[3, 4\]; it must give one number an example", metric=lambda out: out)
    refused(BadInput, r"the metric gave \[\]; it must", metric=torch.sum)
    refused(BadInput, r"the metric gave float; it must", metric=lambda out: float(out.sum()))
    refused(BadInput, r"the source run has 2 examples, the base run 3", source=source[:2])
    broken = source.clone()
    broken[1] = torch.nan
    refused(NotFinite, r"the metric of the unpatched run is not finite on example 1", source=broken)
    module.train()
    refused(BadInput, r"in training mode.*Call .eval\(\) first")


def test_a_patch_that_gives_no_number_says_which():
    """The patched run divides by zero though neither run does alone."""
    module = Odd(lambda m, x: m.b(x) / (m.a(x) - x), a=nn.Linear(4, 4, bias=False), b=nn.Identity()).eval()
    nn.init.eye_(module.a.weight)
    module.a.weight.data *= 2
    with pytest.raises(NotFinite, match=r"the metric of the run patched at a is not finite on example 0"):
        patch_modules(module, base=2 * torch.ones(1, 4), source=torch.ones(1, 4), metric=score)


def test_hooks_leave_after_an_exception_and_foreign_ones_stay():
    module, base, source = made("twice")
    foreign = module.a.register_forward_hook(lambda _, __, output: output * 2)

    def fails(output):
        raise KeyError("metric")

    with pytest.raises(KeyError):
        patch_modules(module, base=base, source=source, metric=fails)
    assert list(module.a._forward_hooks) == [foreign.id]
    effects = patch_modules(module, base=base, source=source, metric=score)
    for path, row in zip(effects.paths, effects.raw, strict=True):
        np.testing.assert_allclose(row, naive(module, base, source, path), rtol=1e-4, atol=1e-5, err_msg=path)
    assert list(module.a._forward_hooks) == [foreign.id]


def test_hidden_states_gathered_by_hooks_are_patched_too():
    """LLaVA reads its vision tower's hidden states off transformers' own hooks."""
    from modules.trials import trial

    given = trial("llava")
    path = next(stack for stack in given.stacks if stack.name == "vision").blocks[0]
    both = torch.arange(given.count)
    runs = {"base": given.corrupt, "source": given.clean, "metric": lambda output: given.metric(output, both)}
    effects = patch_modules(given.module, **runs, paths=[path])
    assert np.abs(effects.raw).min() > 1e-3
