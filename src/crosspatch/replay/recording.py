"""A recorded run of a module: which submodules were called in which order, and what they gave."""

import copy
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crosspatch.core.errors import BadInput, NotProved
from crosspatch.replay.tags import Tag, Tags, version_of
from crosspatch.replay.values import Axis, activation_number, mapped, rows_of, tensors
from crosspatch.replay.watching import watching

CallId = tuple[str, int]  # a submodule's path, and which of its calls in the run
Known = Axis | Literal["unknown"]


@dataclass(frozen=True)
class Spot:
    """Where a value is seen or written: one side of one call of a submodule, and which of the tensors there.

    At the input, tensor 0 is the activation (the first positional tensor, `hidden_states`, or else the first).
    """

    path: str
    side: Literal["input", "output"] = "output"
    call: int = 0
    tensor: int = 0


@dataclass(frozen=True)
class Call:
    """One call: when it started and ended, counted in starts and ends of calls, and a key for what it was called with.

    The key is None where a value is none that another call gave. `given` is the shape of the activation, `shapes` and
    `tags` are those of the tensors that it gave. Not `pure`: it wrote to what it was called with, so it must be made
    again for its caller to see that.
    """

    path: str
    number: int
    start: int
    end: int
    key: Tag | None
    given: tuple[int, ...]
    tags: tuple[Tag, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    pure: bool = True

    @property
    def id(self) -> CallId:
        """What the call is known by."""
        return self.path, self.number

    @cached_property
    def origins(self) -> frozenset[CallId]:
        """The calls that gave what it was called with; empty too where that is not known."""
        return frozenset() if self.key is None else origins(self.key)

    @property
    def stream(self) -> int:
        """Which of the tensors that it gave has the shape of the activation it was given; the first if none has."""
        return next((number for number, shape in enumerate(self.shapes) if shape == self.given), 0)


@dataclass(frozen=True, eq=False)
class Recording:
    """A run of `module` on `inputs`, which hold `count` examples: its calls in the order of their starts, and `result`.

    `axes` says along which axis the activation that a call was given holds examples, and each tensor that it gave
    (None: it holds none). `outputs` are kept for some calls only, `arguments` for the first calls of some submodules.
    """

    module: nn.Module
    inputs: Any
    count: int
    calls: tuple[Call, ...]
    axes: Mapping[CallId, tuple[Known, tuple[Known, ...]]]
    shared: Collection[str]
    result: Any
    outputs: Mapping[CallId, Any] = field(default_factory=dict)
    arguments: Mapping[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)

    @cached_property
    def by_id(self) -> Mapping[CallId, Call]:
        """The calls by what they are known by."""
        return {call.id: call for call in self.calls}

    @cached_property
    def times(self) -> Mapping[str, int]:
        """How often each submodule is called."""
        return Counter(call.path for call in self.calls)

    def shape(self, spot: Spot) -> tuple[tuple[int, ...], int]:
        """Return the shape of the value at a spot, and its axis of examples.

        Raises:
            BadInput: the submodule is not called, or where that value holds its examples is not known.
        """
        call = self.call(spot)
        given, gave = self.axes[call.id]
        shapes, axes = ((call.given,), (given,)) if spot.side == "input" else (call.shapes, gave)
        place = 0 if spot.side == "input" else spot.tensor
        if place >= len(shapes) or not isinstance(axis := axes[place], int):
            raise BadInput(
                f"the {spot.side} of module {spot.path!r} holds no examples along one axis (or no tensor), so that it "
                "cannot be patched example by example."
            )
        return shapes[place], axis

    def can_repeat(self, call: Call) -> bool:
        """Whether what a call gave can be given again, for any examples."""
        return call.pure and "unknown" not in self.axes[call.id][1]

    def call(self, spot: Spot) -> Call:
        """Return the call of a spot.

        Raises:
            BadInput: the submodule is not called, or not that often.
        """
        if (spot.path, spot.call) in self.by_id:
            return self.by_id[spot.path, spot.call]
        raise BadInput(
            f"module {spot.path!r} is called {self.times[spot.path]} times in the base run, so it has no call "
            f"{spot.call} (0 is the first)."
        )

    def moment(self, spot: Spot) -> int:
        """Return when a spot's value is first there."""
        call = self.call(spot)
        return call.start if spot.side == "input" else call.end

    def within(self, call: Call) -> Sequence[Call]:
        """Return the calls that a call made."""
        first = bisect_left(self.calls, call.start + 1, key=lambda each: each.start)
        return self.calls[first : bisect_left(self.calls, call.end, key=lambda each: each.start)]

    def around(self, call: Call) -> list[Call]:
        """Return the call itself and those that it was made by."""
        return [each for each in self.calls if each.start <= call.start and each.end >= call.end]

    def before(self, moment: int) -> list[Call]:
        """Return the largest calls that have ended by a moment and can be answered from a recording."""
        found: list[Call] = []
        for call in self.calls:
            inside = found and call.start < found[-1].end
            if call.end <= moment and not inside and self.can_repeat(call):
                found.append(call)
        return found

    def taken(self, value: Any, rows: Tensor) -> Any:
        """Return inputs with the examples `rows`, in that order; a copy."""
        if isinstance(value, Mapping):
            return {n: self._taken(each, rows) if n not in self.shared else each for n, each in value.items()}
        return self._taken(value, rows)

    def _taken(self, value: Any, rows: Tensor) -> Any:
        return mapped(value, lambda tensor: rows_of(tensor, self._axis_of(tensor), rows, self.count))

    def _axis_of(self, tensor: Tensor) -> Axis:
        """Return 0 for a tensor that may hold all examples along its first axis."""
        return 0 if tensor.ndim and len(tensor) and len(tensor) % self.count == 0 else None


class Recorder:
    """Answers calls by running them, and writes down their order, and what the wanted ones gave."""

    def __init__(
        self, wanted: Callable[[CallId], bool], copied: Collection[CallId] = (), handed: Collection[str] = ()
    ) -> None:
        self.wanted, self.copied, self.handed, self.tags = wanted, copied, handed, Tags()
        self.arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.calls: list[Call] = []
        self.outputs: dict[CallId, Any] = {}
        self.versions: dict[CallId, list[int | None]] = {}
        self.counts: Counter[str] = Counter()
        self.time = 0

    def note_inputs(self, inputs: Any) -> None:
        """Tag what the module itself is called with."""
        for number, tensor in enumerate(tensors(inputs)):
            self.tags.note(tensor, ("inputs", number))

    def __call__(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[..., Any]) -> Any:
        """Run a call and write it down."""
        name, key, start = (path, self.counts[path]), self.tags.key((args, kwargs)), self._tick()
        self.counts[path] += 1
        given = [(tensor, version_of(tensor)) for tensor in tensors((args, kwargs))]
        shape = tuple(given[activation_number(args, kwargs)][0].shape) if given else ()
        if path in self.handed and path not in self.arguments:
            self.arguments[path] = copy.deepcopy((args, kwargs))  # a cache too, which the call fills
        place = len(self.calls)
        self.calls.append(Call(*name, start, start, key, shape))
        output = run(*args, **kwargs)
        pure = all(version_of(tensor) == version for tensor, version in given)
        leaves = list(tensors(output))
        tags = []
        for number, tensor in enumerate(leaves):
            tags.append(self.tags.of(tensor) or ("output", *name, number))
            self.tags.note(tensor, tags[-1])
        shapes = tuple(tuple(tensor.shape) for tensor in leaves)
        self.calls[place] = Call(*name, start, self._tick(), key, shape, tuple(tags), shapes, pure)
        if self.wanted(name):
            self.outputs[name] = mapped(output, torch.clone) if name in self.copied else output
            self.versions[name] = [version_of(tensor) for tensor in leaves]
        return output

    def spoiled(self) -> set[CallId]:
        """Return the kept calls whose tensors were written to after they had been given."""
        kept = ((name, tensors(output)) for name, output in self.outputs.items() if name not in self.copied)
        return {name for name, leaves in kept if [version_of(tensor) for tensor in leaves] != self.versions[name]}

    def _tick(self) -> int:
        self.time += 1
        return self.time


def outline(
    module: nn.Module, inputs: Any, *, count: int, shared: Collection[str] = (), handed: Collection[str] = ()
) -> Recording:
    """Run a module and note its calls, and where each holds its examples, but not what they gave.

    `inputs` is what the module is called with: a tensor, a tuple of arguments or a mapping of keyword arguments. Their
    first axes run over `count` examples (or several entries an example, side by side), except those named in `shared`.
    What the submodules `handed` are first called with is kept, for one example.
    """
    with torch.no_grad():
        one = Recorder(lambda _: False, handed=handed if count == 1 else ())
        run = Recording(module, inputs, count, (), {}, shared, None)
        run = replace(run, result=_ran(run, inputs, one), calls=tuple(one.calls))
        other = Recorder(lambda _: False, handed=handed if count > 1 else ())
        axes = _axes(run, other)
        return replace(run, axes=axes, arguments={**one.arguments, **other.arguments})


def record(run: Recording, inputs: Any, spots: Collection[Spot]) -> Recording:
    """Run an outlined module on inputs of the same shapes, and keep what later runs need that write at these spots.

    Raises:
        BadInput: a spot whose submodule is not called.
        NotProved: the module takes another course on these inputs, or gives something else when it is called again.
    """
    wanted = {call.id for spot in spots for call in _reusable(run, run.moment(spot))}
    run, first, copied = replace(run, inputs=inputs), None, set[CallId]()
    with torch.no_grad():
        while True:
            kept = Recorder(wanted.__contains__, copied)
            result = _ran(run, inputs, kept)
            if [call.id for call in kept.calls] != [call.id for call in run.calls]:
                raise NotProved(f"{type(run.module).__name__} takes another course on these inputs than on the others.")
            if first is not None and not same(result, first):
                raise NotProved(
                    f"{type(run.module).__name__} gives something else when called again with the same inputs (it "
                    "draws at random, or keeps a state), so that patched runs cannot be compared with it."
                )
            if not (spoiled := kept.spoiled()):
                return replace(run, calls=tuple(kept.calls), outputs=kept.outputs, result=result)
            first, copied = result, copied | spoiled


def called(module: nn.Module, inputs: Any) -> Any:
    """Call a module with a tensor, a tuple of arguments or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def same(one: Any, other: Any) -> bool:
    """Whether two nested values hold the same numbers."""
    pairs = zip_longest(tensors(one), tensors(other))
    return all(a is not None and b is not None and _equal(a, b) for a, b in pairs)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


def _ran(run: Recording, inputs: Any, recorder: Recorder) -> Any:
    """Run the module on a copy of its inputs, which it may write to, in the sight of a recorder."""
    given = mapped(inputs, torch.clone)
    recorder.note_inputs(given)
    with watching(run.module, recorder):
        return called(run.module, given)


def _axes(run: Recording, seen: Recorder) -> dict[CallId, tuple[Known, tuple[Known, ...]]]:
    """Tell where each call holds its examples by running another number of them: the axis that changes."""
    count = 1 if run.count > 1 else 2
    _ran(run, run.taken(run.inputs, torch.zeros(count, dtype=torch.long)), seen)
    others = {call.id: call for call in seen.calls}
    found: dict[CallId, tuple[Known, tuple[Known, ...]]] = {}
    for call in run.calls:
        other = others.get(call.id)
        pairs = zip_longest(call.shapes, other.shapes if other else ())
        axes: tuple[Known, ...] = tuple(_axis(*pair, (run.count, count)) for pair in pairs)
        found[call.id] = _axis(call.given, other.given if other else None, (run.count, count)), axes
    return found


def _axis(shape: Sequence[int] | None, other: Sequence[int] | None, counts: tuple[int, int]) -> Known:
    if shape is None or other is None or len(shape) != len(other):
        return "unknown"
    changed = [axis for axis, (one, two) in enumerate(zip(shape, other, strict=True)) if one != two]
    if not changed:
        return None
    axis = changed[0]
    return axis if len(changed) == 1 and shape[axis] * counts[1] == other[axis] * counts[0] else "unknown"


def _reusable(run: Recording, moment: int) -> Iterator[Call]:
    """Yield the calls that a run need not make that first writes at a moment: earlier ones, those of known values."""
    yield from run.before(moment)
    known: set[CallId] = {call.id for call in run.calls if call.end <= moment}
    last = 0
    for call in run.calls:
        if call.start > moment and call.key is not None and call.origins <= known:
            known.add(call.id)
            if call.start > last and run.can_repeat(call):
                last = call.end
                yield call


def origins(key: Tag) -> frozenset[CallId]:
    """Return the calls that gave the values of a key."""
    if key[0] == "output":
        return frozenset({(str(key[1]), int(key[2]))})  # pyright: ignore[reportArgumentType]
    return frozenset(name for part in key if isinstance(part, tuple) for name in origins(part))
