"""The ground that patching of any module is tested on: what its tables say is true of the models themselves."""

import copy

import pytest
import torch

from naive.modules import at, keep, naive_module_patch, run, seen
from zoo_any import TRANSFORMERS
from zoo_any_nets import NETS
from zoo_odd import ODD, REASONS

CASES = (*TRANSFORMERS, *NETS)
STACKS = [pytest.param(case, stack, id=f"{case.name}, {name}") for case in CASES for name, stack in case.stacks.items()]
named = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def path_of(stack, block, spot):
    return ".".join(piece for piece in (stack.path, str(block), spot.path) if piece)


def value_of(case, stack, block, kind, inputs=None):
    spot = stack.parts[kind]
    (value,) = seen(case.build(), inputs or case.base, path_of(stack, block, spot), spot.side, spot.item)
    return value


def patch(case, stack, block, kind, **settings):
    spot = stack.parts[kind]
    given = {"base": case.base, "source": case.source, "metric": case.metric, "item": spot.item, **settings}
    return naive_module_patch(case.build(), path=path_of(stack, block, spot), side=spot.side, **given)


@named
def test_runs_are_repeatable_and_differ(case):
    module = case.build()
    assert not module.training
    assert sum(weight.numel() for weight in module.parameters()) < 1_000_000
    base, source = run(module, case.base, case.metric), run(module, case.source, case.metric)
    assert base.shape == (2,)
    assert torch.equal(base, run(module, case.base, case.metric))
    assert ((base - source).abs() > 0.02).all()
    assert {k: getattr(v, "shape", v) for k, v in case.base.items()} == {
        k: getattr(v, "shape", v) for k, v in case.source.items()
    }


@named
def test_padding_is_not_read(case):
    module = case.build()
    base = run(module, case.base, case.metric)
    for key, mask in case.padding.items():
        value, missing = case.base[key].clone(), case.base[mask] == 0
        assert missing.any()
        value[missing] = value[missing] + 1
        assert torch.equal(run(module, {**case.base, key: value}, case.metric), base)
        assert not torch.allclose(run(module, {**case.base, key: value.roll(1, 1)}, case.metric), base, atol=1e-3)


def runs_together(case):
    """Say whether two batches put one behind the other give what they give alone."""
    module = case.build()
    both = {k: torch.cat([v, case.source[k]]) if isinstance(v, torch.Tensor) else v for k, v in case.base.items()}
    alone = torch.cat([run(module, inputs, case.metric) for inputs in (case.base, case.source)])
    found = run(module, both, case.metric)
    return found.shape == alone.shape and torch.allclose(found, alone, rtol=1e-4, atol=1e-4)


@named
def test_batches_behind_one_another(case):
    assert runs_together(case) == case.together


@pytest.mark.parametrize(("case", "stack"), STACKS)
def test_every_spot_has_its_width_and_takes_its_own_value(case, stack):
    base = run(case.build(), case.base, case.metric)
    for block in stack.blocks:
        for kind, spot in stack.parts.items():
            value = value_of(case, stack, block, kind)
            assert isinstance(value, torch.Tensor), kind
            assert value.shape[stack.axis] == spot.width, kind
            assert spot.start + spot.n_heads * spot.d_head <= spot.width
            if kind.endswith((".q", ".k", ".v")):
                assert case.build().get_submodule(path_of(stack, block, spot)).out_features == spot.width
        for kind in ("resid.pre", "resid.post"):
            assert torch.equal(patch(case, stack, block, kind, write=keep), base), kind


@pytest.mark.parametrize(("case", "stack"), STACKS)
def test_every_spot_matters_where_it_is_read(case, stack):
    base = run(case.build(), case.base, case.metric)
    for block in stack.blocks if stack.unread else {stack.blocks[0], stack.blocks[-1]}:
        for kind in stack.parts:
            change = (patch(case, stack, block, kind) - base).abs().max()
            assert (change == 0) if block in stack.unread else (change > 1e-5), (block, kind)


@pytest.mark.parametrize(("case", "stack"), [p for p in STACKS if p.values[1].feeds])
def test_the_first_input_is_all_that_passes(case, stack):
    """Written whole, it carries all that the inputs that feed it say; bit for bit."""
    mixed = {**case.base, **{key: case.source[key] for key in stack.feeds}}
    wanted = run(case.build(), mixed, case.metric)
    assert torch.equal(patch(case, stack, stack.blocks[0], "resid.pre", source=mixed), wanted)
    assert not torch.equal(wanted, run(case.build(), case.base, case.metric))


@pytest.mark.parametrize(("case", "stack"), [p for p in STACKS if any(s.n_heads for s in p.values[1].parts.values())])
def test_columns_of_a_head_are_that_head(case, stack):
    """Another query, key or value of one head moves that head's values, or those of its group, and no others."""
    block = stack.blocks[0]
    for kind, spot in stack.parts.items():
        unit, _, what = kind.partition(".")
        if not spot.n_heads or what == "head":
            continue
        head = stack.parts[f"{unit}.head"]
        before, group = value_of(case, stack, block, f"{unit}.head"), head.n_heads // spot.n_heads
        for index in (0, spot.n_heads - 1):
            columns = slice(spot.start + index * spot.d_head, spot.start + (index + 1) * spot.d_head)
            after = []
            note = note_of(case.build(), path_of(stack, block, head), head, after)
            patch(case, stack, block, kind, write=lambda base, _, columns=columns: turned(base, columns))
            note.remove()
            moved = (after[-1] - before).abs().unflatten(-1, (head.n_heads, head.d_head)).flatten(0, -3).amax((0, 2))
            expected = [index * group <= i < (index + 1) * group for i in range(head.n_heads)]
            assert [bool(x > 0) for x in moved] == expected, kind


def turned(value, columns):
    """Turn some columns to what they are not, alike at no two places."""
    value = value.clone()
    value[..., columns] *= -2
    return value


def note_of(module, path, spot, into):
    """Keep what a head's values are in later runs."""
    part = module.get_submodule(path)
    return part.register_forward_pre_hook(lambda _, args: into.append(args[spot.item or 0].clone()))


def test_part_of_a_tensor():
    """Positions and columns of one; all of them are the whole."""
    case = TRANSFORMERS[0]
    stack = case.stacks["encoder"]
    whole_input = patch(case, stack, 0, "resid.pre")
    assert torch.equal(patch(case, stack, 0, "resid.pre", write=at(...)), whole_input)
    some = patch(case, stack, 0, "resid.pre", write=at(slice(None), slice(3, 5), slice(0, 8)))
    assert not torch.equal(some, whole_input)
    assert not torch.equal(some, run(case.build(), case.base, case.metric))


@pytest.mark.parametrize("case", ODD, ids=lambda case: case.name)
def test_odd_modules_are_as_they_say(case):
    given = (case.base, case.source, case.metric)
    kept = copy.deepcopy(given[:2])
    if case.why != "not repeatable":
        assert case.together == runs_together(case)
    for path, side, item in case.spots:
        module = case.build()
        assert case.expected == ("refused" if case.why else "exact")
        if case.expected == "exact":
            base = run(module, case.base, case.metric)
            assert torch.equal(base, run(module, case.base, case.metric))
            for call in (0, None):
                settings = {"call": call, "item": item}
                assert torch.equal(naive_module_patch(module, *given, path, side, write=keep, **settings), base)
                change = naive_module_patch(module, *given, path, side, **settings) - base
                assert change.abs().max() > 1e-2, (path, side)
        else:
            assert shown(module, given, (path, side, item)) == case.why
    assert [inputs.keys() for inputs in given[:2]] == [inputs.keys() for inputs in kept]
    assert all(torch.equal(inputs["x"], before["x"]) for inputs, before in zip(given[:2], kept, strict=True))
    assert all(inputs.get("seen", []) == [] for inputs in given[:2])


def shown(module, given, spot):
    """Find out why a spot is refused."""
    base, source, metric = given
    before = run(module, base, metric)
    if not torch.equal(before, run(module, base, metric)):
        return "not repeatable"
    present, other = seen(module, base, *spot), seen(module, source, *spot)
    if not present:
        return "never called"
    if not isinstance(present[0], torch.Tensor):
        return "no tensor"
    if len(present) != len(other):
        return "other calls"
    if present[0].shape != other[0].shape:
        return "other shapes"
    changed = naive_module_patch(module, *given, spot[0], spot[1], item=spot[2], write=lambda own, _: own.clone())
    return "exact" if torch.equal(changed, before) else "not its own"


def test_every_reason_has_a_case():
    assert {case.why for case in ODD if case.why} == set(REASONS)
    assert len({case.name for case in (*CASES, *ODD)}) == len(CASES) + len(ODD)
