"""Odd plain modules: whatever a forward can do that makes patching by hooks hard.

`expected` says what an engine owes for the `spots` of a case: "exact", which is what one plain hook and full forwards
give, or "refused", where a hook cannot do what a person means by a patch. `why` is then one of `REASONS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from zoo_any_parts import Case, numbers

REASONS = {
    "never called": "the module never runs in the base run, so that no hook is called",
    "not repeatable": "the same run gives another number when it is run again",
    "not its own": "writing the value that is there already changes the run, since others hold the same tensor",
    "no tensor": "what stands there is no tensor and holds none",
    "other shapes": "the source run's value has another shape",
    "other calls": "the module runs another number of times in the source run",
}
SIZE = 4
OUTPUT = "output"


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Told:
    """An output that is a dataclass."""

    state: Tensor
    note: str = ""


class Part(nn.Module):
    """A linear map behind tanh; `wrap` makes what it gives of the result."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda x: x):
        super().__init__()
        self.linear, self.wrap = nn.Linear(SIZE, SIZE), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(torch.tanh(self.linear(x)))


class Of(nn.Module):
    """A module whose forward is a function of itself and its arguments; it holds parts, and a buffer."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)
        self.register_buffer("shift", torch.arange(float(SIZE)))
        self.told = 0.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def score(output: Any) -> Tensor:
    """Weigh the last axis with fixed numbers."""
    return output @ torch.tensor([1.0, -2.0, 0.5, 3.0])


def odd(
    name: str,
    run: Callable[..., Any],
    parts: Callable[[], Mapping[str, nn.Module]],
    spots: Sequence[tuple[str, str, int | str | None]] = (("a", OUTPUT, None),),
    **given: Any,
) -> Case:
    """Make a case of a function and its parts; inputs are `x`, `[example, 4]`, and `also`, the same for both runs."""

    def build() -> nn.Module:
        torch.manual_seed(3)
        return Of(run, **parts()).eval()

    also = given.pop("also", dict)
    base, source = ({"x": x, **also()} for x in given.pop("inputs", (numbers(1, 3, SIZE), numbers(2, 3, SIZE))))
    return Case(name, build, base, source, given.pop("metric", score), spots=spots, **given)


def two(wrap: Callable[[Tensor], Any] = lambda x: x) -> Callable[[], Mapping[str, nn.Module]]:
    """Make parts a and b, the first of which gives what `wrap` makes."""
    return lambda: {"a": Part(wrap), "b": Part()}


def refused(why: str, **given: Any) -> dict[str, Any]:
    return {"expected": "refused", "why": why, **given}


def tuples(m: Of, x: Tensor) -> Tensor:
    (first, (second, third)), flag = m.a(x)
    return m.b(first * 2 - second + third) if flag else x


def dicts(m: Of, x: Tensor) -> Tensor:
    out = m.a(x)
    return m.b(out["x"] + out["more"][0] * out["more"][1])


def named(m: Of, x: Tensor) -> Tensor:
    out = m.a(x)
    return m.b(out.left - 0.5 * out.right)


def in_place_after(m: Of, x: Tensor) -> Tensor:
    y = m.a(x)
    y += 1
    y.mul_(2)
    return m.b(y).add_(y)


def writes_its_input(m: Of, x: Tensor) -> Tensor:
    x += 1
    return m.b(m.a(x.clamp_(max=0.5)))


def into_the_callers(m: Of, x: Tensor) -> Tensor:
    y = x * 1
    given = m.a(y)  # adds to y, which is read again
    return m.b(given) + y


def looped(m: Of, x: Tensor) -> Tensor:
    for _ in range(3):
        x = x + m.a(x)
    return m.b(x)


def listed(m: Of, x: Tensor) -> Tensor:
    for part in m.parts:
        x = x + part(x)
    return m.heads["left"](x) * m.heads["right"](x)


def branched(m: Of, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y) if float(y.detach()[0, 0]) < 0 else m.c(y)  # the first example decides for all


def appended(m: Of, x: Tensor, seen: list[Tensor]) -> Tensor:
    seen.append(m.a(x))
    seen.append(m.b(seen[0]))
    return seen[1] + 0.1 * len(seen) * seen[0]


def spoken_to(m: Of, x: Tensor, how: str, gain: float, *, act: Callable[[Tensor], Tensor], other: None) -> Tensor:
    y = act(m.a(x, how, gain)) if other is None else x
    return m.b(y)


def told(m: Of, x: Tensor, how: str, gain: float) -> Tensor:
    return m.inner(x) * gain if how == "scaled" else x


def counted(m: Of, x: Tensor) -> Tensor:
    m.told += 0.5
    return m.b(m.a(x)) + m.told


def counted_in_a_buffer(m: Of, x: Tensor) -> Tensor:
    m.shift.add_(0.5)
    return m.b(m.a(x) + m.shift)


def remembered(m: Of, x: Tensor) -> Tensor:
    m.told = m.a(x)
    return m.b(x) + m.told * m.told


def shape_by_value(m: Of, x: Tensor) -> Tensor:
    size = 2 if float(x.detach()[0, 0]) > 0 else 3
    return m.b(x) + m.a(x[:, :size]).sum(-1, keepdim=True)


def calls_by_value(m: Of, x: Tensor) -> Tensor:
    for _ in range(2 if float(x.detach()[0, 0]) > 0 else 1):
        x = m.a(x)
    return m.b(x)


def aliased(m: Of, x: Tensor) -> Tensor:
    y = m.b(x)
    z = m.a(y)
    z += 1  # y has grown as well
    return z * y


def across_time(m: Of, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y + y.roll(1, 0))[-1]


SIGNED = (-torch.ones(2, SIZE), torch.ones(2, SIZE))
IN, ROWS = "input", {"a": Part, "b": Part}
LINEAR = (("a.linear", OUTPUT, None), ("a.linear", IN, None), ("b", IN, None))


def parts() -> Mapping[str, nn.Module]:
    return {name: make() for name, make in ROWS.items()}


def shared() -> Mapping[str, nn.Module]:
    return {**dict.fromkeys(("a", "also_a"), Part()), "b": Part()}


def in_lists() -> Mapping[str, nn.Module]:
    return {"parts": nn.ModuleList([Part(), Part()]), "heads": nn.ModuleDict({"left": Part(), "right": Part()})}


def normed() -> Mapping[str, nn.Module]:
    norm = nn.BatchNorm1d(SIZE)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return {"a": Part(), "b": norm}


ODD = (
    odd("tuples", tuples, two(lambda x: ((x, [x * 2, x + 1]), True)), (*LINEAR, ("a", OUTPUT, None))),
    odd(
        "dict",
        dicts,
        two(lambda x: {"x": x, "more": (x, x - 1), "n": 3}),
        (("a", OUTPUT, None), ("a", OUTPUT, "x")),
    ),
    odd(
        "named tuple",
        named,
        two(lambda x: Pair(x, x * x)),
        (("a", OUTPUT, None), ("a", OUTPUT, 1)),
    ),
    odd("dataclass", lambda m, x: m.b(m.a(x).state), two(lambda x: Told(x, "a note"))),
    odd(
        "model output",
        lambda m, x: BaseModelOutput(m.b(m.a(x).last_hidden_state) + m.a(x).hidden_states[1]),
        two(lambda x: BaseModelOutput(x, hidden_states=(x, x * 2))),
        metric=lambda output: score(output.last_hidden_state),
    ),
    odd(
        "shared by two names",
        lambda m, x: m.b(m.a(x)) + m.also_a(x),
        shared,
        (("a", OUTPUT, None), ("also_a", OUTPUT, None)),
    ),
    odd("looped", looped, parts, (("a", OUTPUT, None), ("a", IN, None), ("b", IN, None))),
    odd(
        "arguments",
        lambda m, x, *rest, **more: m.b(m.a(x, *rest, **more)),
        lambda: {"a": Of(told, inner=Part()), "b": Part()},
        also=lambda: {"how": "scaled", "gain": 2.5},
    ),
    odd("buffers", lambda m, x: m.b(m.a(x) + m.shift), normed),
    odd(
        "in place after it returned", in_place_after, parts, (("a", OUTPUT, None), ("b", OUTPUT, None), ("b", IN, None))
    ),
    odd("in place on the model's input", writes_its_input, parts),
    odd(
        "in place inside",
        lambda m, x: m.b(m.a(x)),
        lambda: {"a": nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(inplace=True)), "b": Part()},
        (("a", OUTPUT, None), ("a.0", OUTPUT, None), ("a.1", OUTPUT, None), ("a.1", IN, None)),
    ),
    odd(
        "in place on what the caller reads",
        into_the_callers,
        lambda: {"a": Of(lambda m, y: m.inner(y.add_(1)), inner=Part()), "b": Part()},
        (("a", OUTPUT, None), ("a.inner", OUTPUT, None)),
    ),
    odd(
        "the caller's tensor swapped",
        into_the_callers,
        lambda: {"a": Of(lambda m, y: m.inner(y.add_(1)), inner=Part()), "b": Part()},
        (("a", IN, None),),
        **refused("not its own"),
    ),
    odd(
        "in lists",
        listed,
        in_lists,
        (("parts.0", OUTPUT, None), ("heads.left", OUTPUT, None), ("heads.right", IN, None)),
    ),
    odd(
        "no tensors as arguments",
        spoken_to,
        lambda: {"a": Of(told, inner=Part()), "b": Part()},
        (("a", IN, None), ("a", OUTPUT, None)),
        also=lambda: {"how": "scaled", "gain": 2.0, "act": torch.relu, "other": None},
    ),
    odd("unused", lambda m, x: m.b(x), parts, **refused("never called")),
    odd("branched, before", branched, lambda: {"a": Part(), "b": Part(), "c": Part()}, together=False),
    odd(
        "branched, not taken",
        branched,
        lambda: {"a": Part(), "b": Part(), "c": Part()},
        (("c", OUTPUT, None),),
        **refused("never called", together=False),
    ),
    odd("counted in an attribute", counted, parts, **refused("not repeatable")),
    odd("counted in a buffer", counted_in_a_buffer, parts, **refused("not repeatable")),
    odd("remembered for this run", remembered, parts, (("a", OUTPUT, None), ("b", OUTPUT, None))),
    odd("appended to a list", appended, parts, (("a", OUTPUT, None), ("b", OUTPUT, None)), also=lambda: {"seen": []}),
    odd("forward called by name", lambda m, x: m.b(x) + m.a.forward(x), parts, **refused("never called")),
    odd("forward called by name, inside", lambda m, x: m.b(x) + m.a.forward(x), parts, (("a.linear", OUTPUT, None),)),
    odd(
        "weights read from outside",
        lambda m, x: m.b(functional.linear(x, m.a.linear.weight)),
        parts,
        (("a.linear", OUTPUT, None),),
        **refused("never called"),
    ),
    odd(
        "a view of its input",
        lambda m, x: m.b(m.a(x).flatten(1) * 2 + x),
        lambda: {"a": Of(lambda m, x: x.view(-1, 2, 2)), "b": Part()},
        (("a", OUTPUT, None), ("a", IN, None)),
    ),
    odd("its input unchanged", lambda m, x: m.b(m.a(x)) + x, lambda: {"a": nn.Identity(), "b": Part()}),
    odd(
        "its input unchanged, then written",
        aliased,
        lambda: {"a": nn.Identity(), "b": Part()},
        **refused("not its own"),
    ),
    odd(
        "integers",
        lambda m, x: m.b(m.e(m.a(x))),
        lambda: {"a": Part(lambda x: x.argsort(-1)[:, 0]), "b": Part(), "e": nn.Embedding(SIZE, SIZE)},
        (("a", OUTPUT, None), ("e", IN, None)),
    ),
    odd("booleans", lambda m, x: m.b(torch.where(m.a(x), x, -x)), two(lambda x: x > 0)),
    odd("text", lambda m, x: m.b(x) * len(m.a(x)), two(lambda x: "text"), **refused("no tensor")),
    odd(
        "shapes by value",
        shape_by_value,
        lambda: {"a": nn.Identity(), "b": Part()},
        inputs=SIGNED,
        **refused("other shapes", together=False),
    ),
    odd("calls by value", calls_by_value, parts, inputs=SIGNED, **refused("other calls", together=False)),
    odd(
        "time before examples",
        across_time,
        parts,
        inputs=(numbers(1, 5, 3, SIZE), numbers(2, 5, 3, SIZE)),
        together=False,
    ),
)
