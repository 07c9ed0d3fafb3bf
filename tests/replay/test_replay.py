"""Replay: what is reused gives the bits of a whole run, on odd modules too; and it is not computed."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crosspatch.core.errors import BadInput, NotProved
from crosspatch.replay import Spot, outline, record, replay, see
from crosspatch.replay.values import tensors
from modules.test_by_path import Odd, Part, score
from naive.modules import naive_module_patch, seen
from zoo_odd import ODD

ROWS = [1, 0, 1, 1]
EXACT = [case for case in ODD if case.expected == "exact" and case.together]


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_odd_modules_are_written_as_by_plain_hooks(case):
    """The zoo's odd modules: each call of each spot, the rows in another order and number."""
    module, base, source = case.build(), dict(case.base), dict(case.source)
    plan = outline(module, base, count=len(base["x"]))
    for path, side, item in case.spots:
        for call in range(plan.times[path]):
            spots = spots_of(seen(module, base, path, side)[call], path, side, call, item)
            recording = record(plan, base, spots)
            values = see(module, source, spots)[1]
            expected = naive_module_patch(module, base, source, case.metric, path, side, call=call, item=item)
            taken = {spot: lambda _, v=values[spot]: v[ROWS].clone() for spot in spots}
            found = case.metric(replay(recording, taken, rows=ROWS))
            torch.testing.assert_close(found, expected[ROWS], rtol=1e-5, atol=1e-5, msg=f"{path} {side} {call}")
            whole = {spot: lambda _, v=values[spot]: v.clone() for spot in spots}
            found = case.metric(replay(recording, whole, reuse=False))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=f"{path} {side} {call}")
    assert not any("forward" in part.__dict__ for part in module.modules())


def spots_of(value, path, side, call, item):
    """Return the spots of an item of what stands there, all of its tensors if it is the whole."""
    if side == "input":
        return [Spot(path, side, call)]
    items = [] if item is None else [*value.items()] if isinstance(value, dict) else [*enumerate(value)]
    first = len(list(tensors([each for _, each in items[: [name for name, _ in items].index(item)]]))) if items else 0
    count = 1 if items else len(list(tensors(value)))
    return [Spot(path, side, call, first + number) for number in range(count)]


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


def zeroed(module, x):
    """Give the first map's place zeros, by a plain hook."""
    handle = module.first.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    found = score(run_whole(module, x))
    handle.remove()
    return found


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
    expected = zeroed(module, x)
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
    torch.testing.assert_close(found, zeroed(module, x))


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
    assert recording.axes["a", 0] == (0, (0,))
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
