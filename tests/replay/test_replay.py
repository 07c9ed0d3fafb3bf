"""Replay: what is reused gives the bits of a whole run, on odd modules too; and it is not computed."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crosspatch.core.errors import BadInput, NotProved
from crosspatch.replay import Spot, outline, record, replay, see
from modules.test_by_path import ODD, Odd, Part, made, run, score

ROWS = [2, 0, 2, 1]


def rows_of(inputs, rows):
    if isinstance(inputs, dict):
        return {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    return tuple(value[rows] for value in inputs) if isinstance(inputs, tuple) else inputs[rows]


def spots_of(recording):
    return [
        Spot(call.path, side, call.number, tensor)
        for call in recording.calls
        for side, tensors in (("input", 1), ("output", len(call.shapes)))
        for tensor in range(tensors)
    ]


def naive(module, inputs, spot, value):
    """Give one call of a submodule another value by a plain hook, and run everything."""
    part, calls = module.get_submodule(spot.path), [0]

    def put(found, at):
        if isinstance(found, torch.Tensor):
            at.append(1)
            return value.clone() if len(at) - 1 == spot.tensor else found
        if isinstance(found, (tuple, list)):
            many = [put(each, at) for each in found]
            return type(found)(*many) if hasattr(found, "_fields") else type(found)(many)
        if isinstance(found, dict):
            changed = copy.copy(found)
            for key in found:
                changed[key] = put(found[key], at)
            return changed
        return found

    def here():
        calls[0] += 1
        return calls[0] - 1 == spot.call

    def before(_, args, kwargs):
        return (put(args, []), kwargs) if here() else None

    def after(_, __, output):
        return put(output, []) if here() else None

    if spot.side == "input":
        handle = part.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = part.register_forward_hook(after)
    found = run(module, inputs)
    handle.remove()
    return found


@pytest.mark.parametrize("name", ODD)
def test_every_call_of_odd_modules_is_written_as_by_plain_hooks(name):
    """Each side, call and tensor; the rows in another order and number."""
    module, base, source = made(name)
    plan = outline(module, base, count=3)
    spots = spots_of(plan)
    recording = record(plan, base, spots)
    _, values = see(module, source, spots)
    before = copy.deepcopy((base, module.state_dict()))
    assert set(values) == set(spots)
    changed = 0
    for spot in spots:
        expected = naive(module, base, spot, values[spot])
        found = score(replay(recording, {spot: lambda _, s=spot: values[s][ROWS].clone()}, rows=ROWS))
        torch.testing.assert_close(found, expected[ROWS], rtol=1e-5, atol=1e-5, msg=str(spot))
        whole = score(replay(recording, {spot: lambda _, s=spot: values[s].clone()}, reuse=False))
        torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5, msg=str(spot))
        changed += bool((expected - run(module, base)).abs().max() > 1e-3)
    assert changed
    assert not any("forward" in part.__dict__ for part in module.modules())
    torch.testing.assert_close((base, dict(module.state_dict())), (before[0], dict(before[1])), rtol=0, atol=0)


def chain():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(6))).eval()


def flops(act):
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


def test_what_came_before_is_not_computed():
    """A write at the output of map k leaves 5 − k maps to run."""
    module, x = chain(), torch.randn(3, 8)
    whole = flops(lambda: module(x))
    plan = outline(module, x, count=3)
    spots = [Spot(str(k)) for k in range(6)]
    recording = record(plan, x, spots)
    for k, spot in enumerate(spots):
        spent = flops(lambda spot=spot: replay(recording, {spot: torch.zeros_like}, rows=[0, 1, 2]))
        assert spent == whole * (5 - k) // 6


def test_known_values_are_not_computed_again():
    """Behind the write: a map of something that the write does not touch, and a map of that map."""

    def crossed(m, x):
        side = m.side(x)
        hidden = m.first(x)
        return m.last(hidden) + m.again(m.read(side))

    names = ("side", "first", "last", "read", "again")
    module = Odd(crossed, **{name: nn.Linear(4, 4) for name in names}).eval()
    x = torch.randn(2, 4)
    spot = Spot("first")
    recording = record(outline(module, x, count=2), x, [spot])
    spent = flops(lambda: replay(recording, {spot: torch.zeros_like}, rows=[0, 1]))
    assert spent == flops(lambda: module(x)) // 5  # `last` alone
    expected = naive(module, x, spot, torch.zeros(2, 4))
    torch.testing.assert_close(score(replay(recording, {spot: torch.zeros_like}, rows=[1, 0])), expected[[1, 0]])


def test_a_value_written_to_is_not_known_any_more():
    """The side stream is changed in place after the write: what reads it must run."""

    def changed_later(m, x):
        side = m.side(x)
        side += m.first(x)
        return m.read(side)

    module = Odd(changed_later, side=nn.Linear(4, 4), first=nn.Linear(4, 4), read=nn.Linear(4, 4)).eval()
    x, spot = torch.randn(2, 4), Spot("first")
    recording = record(outline(module, x, count=2), x, [spot])
    found = score(replay(recording, {spot: torch.zeros_like}, rows=[0, 1]))
    torch.testing.assert_close(found, naive(module, x, spot, torch.zeros(2, 4)))


def test_two_writes_in_one_run():
    """The first one says where the run begins; the second is made on what the run has there."""
    module, x = chain(), torch.randn(2, 8)
    spots = [Spot("1"), Spot("4", "input")]
    recording = record(outline(module, x, count=2), x, spots)
    found = replay(recording, {spots[0]: torch.zeros_like, spots[1]: lambda value: value * 2}, rows=[1])
    expected = module[2:4](torch.zeros(1, 8))
    torch.testing.assert_close(found, module[5](module[4](expected * 2)))


def test_several_entries_an_example():
    """Values that keep the entries of all examples on one axis, two each, are taken example by example."""

    def flat(m, x):
        return m.b(m.a(x.flatten(0, 1)) * 2).unflatten(0, (-1, 2)).sum(1)

    module = Odd(flat, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    x, spot = torch.randn(3, 2, 4), Spot("b", "input")
    recording = record(outline(module, x, count=3), x, [spot])
    assert recording.axes["a", 0] == (0,)
    found = replay(recording, {spot: torch.clone}, rows=ROWS)
    torch.testing.assert_close(found, run_whole(module, x)[ROWS])


@torch.no_grad()
def run_whole(module, x):
    return module(x)


def test_a_module_that_keeps_a_state_is_refused():
    def counting(m, x):
        m.count = getattr(m, "count", 0) + 1
        return m.b(m.a(x).relu_()) * m.count

    module = Odd(counting, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    x = torch.randn(2, 4)
    module.b = nn.Sequential(nn.ReLU(inplace=True), module.b)  # kept values are written to, so it is run twice
    plan = outline(module, x, count=2)
    with pytest.raises(NotProved, match="gives something else when called again"):
        record(plan, x, [Spot("b.1", "input")])


def test_other_courses_are_refused():
    """Which submodules are called depends on the numbers."""

    def choosing(m, x):
        return m.b(m.a(x)) if float(x.sum()) > 0 else m.b(x)

    module = Odd(choosing, a=Part(), b=Part()).eval()
    plan = outline(module, torch.ones(2, 4), count=2)
    with pytest.raises(NotProved, match="takes another course"):
        record(plan, -torch.ones(2, 4), [Spot("b")])
    recording = record(plan, torch.ones(2, 4), [Spot("a", "input"), Spot("b")])

    def turned(m, x):
        return m.b(x)

    module.run = turned
    with pytest.raises(NotProved, match="'a' was not reached"):
        replay(recording, {Spot("a", "input"): torch.clone}, rows=[0])


def test_unknown_calls_are_named():
    module, x = chain(), torch.randn(2, 8)
    plan = outline(module, x, count=2)
    with pytest.raises(BadInput, match=r"module '2' is called 1 times in the base run, so it has no call 1"):
        record(plan, x, [Spot("2", call=1)])


def test_an_error_leaves_the_module_as_it_was():
    module, x = chain(), torch.randn(2, 8)
    recording = record(outline(module, x, count=2), x, [Spot("3")])

    def broken(_):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        replay(recording, {Spot("3"): broken}, rows=[0])
    assert not any("forward" in part.__dict__ for part in module.modules())


def test_hooks_of_others_act_as_ever():
    """A user's hook scales an output: it acts in the recorded run and in the others alike."""
    module, x = chain(), torch.randn(2, 8)
    handle = module[1].register_forward_hook(lambda _, __, output: output * 3)
    expected = run_whole(module, x)
    recording = record(outline(module, x, count=2), x, [Spot("3")])
    torch.testing.assert_close(replay(recording, {Spot("3"): torch.clone}, rows=[1, 0]), expected[[1, 0]])
    handle.remove()
