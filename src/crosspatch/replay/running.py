"""Run a recorded module again with values written over; what the writes cannot change is not computed."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crosspatch.core.errors import NotProved
from crosspatch.replay.recording import Call, CallId, Recording, Spot, called
from crosspatch.replay.tags import Tag, Tags
from crosspatch.replay.values import activation_number, mapped, rows_of, tensors, with_tensor
from crosspatch.replay.watching import watching

# Gets a spot's value in the run and returns what stands there instead; it must not write to what it gets.
Write = Callable[[Tensor], Tensor]


def replay(
    recording: Recording, writes: Mapping[Spot, Write], *, rows: Sequence[int] | None = None, reuse: bool = True
) -> Any:
    """Run the module on the examples `rows` (all of them, once, for None), writing at spots; return what it gives.

    Calls that ended before the first write, and calls with values that no write has changed, are answered from the
    recording. Without `reuse` everything is run.

    Raises:
        BadInput: a spot whose submodule is not called in the base run.
        NotProved: a spot was not reached, since the run took another course than the recorded one.
    """
    player = _Player(recording, writes, rows, reuse)
    with torch.no_grad():
        inputs = recording.inputs
        given = mapped(inputs, torch.clone) if player.rows is None else recording.taken(inputs, player.rows)
        for number, tensor in enumerate(tensors(given)):
            player.tags.note(tensor, ("inputs", number))
        with watching(recording.module, player):
            result = called(recording.module, given)
    if missed := [spot for spot in writes if spot not in player.reached]:
        raise NotProved(
            f"{missed[0].path!r} was not reached: {type(recording.module).__name__} took another course than in the "
            "base run, so nothing can be written there."
        )
    return result


def see(module: nn.Module, inputs: Any, spots: Sequence[Spot]) -> tuple[Any, dict[Spot, Tensor]]:
    """Run a module once; return what it gives, and a copy of the values at the spots that were reached."""
    found: dict[Spot, Tensor] = {}
    counts: Counter[str] = Counter()

    def keep(spot: Spot, value: Tensor) -> Tensor:
        found[spot] = value.clone()
        return value

    def look(path: str, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[..., Any]) -> Any:
        number = counts[path]
        counts[path] += 1
        seen = {spot: partial(keep, spot) for spot in spots if (spot.path, spot.call) == (path, number)}
        for spot, act in seen.items():
            if spot.side == "input":
                _with_input(args, kwargs, spot.tensor, act)
        output = run(*args, **kwargs)
        for spot, act in seen.items():
            if spot.side == "output":
                with_tensor(output, spot.tensor, act)
        return output

    with torch.no_grad(), watching(module, look):
        return called(module, mapped(inputs, torch.clone)), found


@contextmanager
def writing(recording: Recording, writes: Mapping[Spot, Write]) -> Iterator[set[Spot]]:
    """Write at spots of an outlined module while the block runs it, or a part of it, in any way; nothing is reused.

    Calls are counted from the start of the block. Yields the set of spots reached so far.
    """
    player = _Player(recording, writes, None, reuse=False)
    with torch.no_grad(), watching(recording.module, player):
        yield player.reached


class _Player:
    """Answers calls from a recording where it may, runs the others, and writes."""

    def __init__(
        self, recording: Recording, writes: Mapping[Spot, Write], rows: Sequence[int] | None, reuse: bool
    ) -> None:
        self.recording, self.writes = recording, writes
        self.rows = None if rows is None else torch.tensor(rows, dtype=torch.long)
        self.since = min((recording.moment(spot) for spot in writes), default=0) if reuse else -1
        touched = [recording.call(spot) for spot in writes] if reuse else []
        self.touched = {each.id for call in touched for each in recording.around(call)}
        self.tags = Tags()
        self.counts: Counter[str] = Counter()
        self.reached: set[Spot] = set()

    def __call__(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[..., Any]) -> Any:
        name = (path, self.counts[path])
        self.counts[path] += 1
        known = self._known(name, args, kwargs)
        if known is not None:
            output = self._again(known)
        else:
            for spot, write in self._at(name, "input"):
                args, kwargs = _with_input(args, kwargs, spot.tensor, write)
            output = run(*args, **kwargs)
        for spot, write in self._at(name, "output"):
            output = with_tensor(output, spot.tensor, write)
        return output

    def _at(self, name: CallId, side: str) -> list[tuple[Spot, Write]]:
        found = [(s, w) for s, w in self.writes.items() if (s.path, s.call) == name and s.side == side]
        self.reached.update(spot for spot, _ in found)
        return found

    def _known(self, name: CallId, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Return the recorded call that this one must repeat, if it is known and kept."""
        call = self.recording.by_id.get(name)
        if self.since < 0 or call is None or name not in self.recording.outputs:
            return None
        if call.end <= self.since:
            return call
        unchanged = name not in self.touched and call.key is not None and call.key == self.tags.key((args, kwargs))
        return call if unchanged else None

    def _again(self, call: Call) -> Any:
        """Return what a recorded call gave, for the examples of this run."""
        for each in self.recording.within(call):
            self.counts[each.path] += 1
        known = zip(self.recording.axes[call.id][1], call.tags, strict=True)
        return mapped(self.recording.outputs[call.id], partial(self._copy, known))

    def _copy(self, known: Iterator[tuple[Any, Tag]], tensor: Tensor) -> Tensor:
        axis, tag = next(known)
        copy = tensor.clone() if self.rows is None else rows_of(tensor, axis, self.rows, self.recording.count)
        self.tags.note(copy, tag)
        return copy


def _with_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], number: int, act: Write
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Change a tensor among arguments; 0 is the activation."""
    return with_tensor((args, kwargs), number or activation_number(args, kwargs), act)
