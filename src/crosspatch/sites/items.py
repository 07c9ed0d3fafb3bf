"""Items: what a selection may list (numbers, spans, names, `all`) and the numbers they stand for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.sites.site import TOGETHER, split_name


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open slice `start:stop` as in Python; without ends it is `*`, each one by itself."""

    start: int | None = None
    stop: int | None = None

    def __str__(self) -> str:
        if self == EACH:
            return "*"
        return f"{'' if self.start is None else self.start}:{'' if self.stop is None else self.stop}"

    def of(self, length: int) -> range:
        """Return the numbers below `length` that the span covers, clipped as Python clips a slice."""
        return range(length)[self.start : self.stop]

    @property
    def is_anchored(self) -> bool:
        """Tell whether the span lists the same numbers whatever the length: both ends are on one side."""
        start, stop = self.start, self.stop
        if start is not None and start < 0:
            return stop is None or stop < 0
        return stop is not None and stop >= 0


EACH = Span()

Item = int | str | Span
Items = tuple[Item, ...]


def join_items(items: Items) -> str:
    """Write items as the grammar does: `9|10`, `2:6`, `*`."""
    return "|".join(str(item) for item in items)


def count_range(length: int) -> str:
    """Say which numbers are allowed: `0..17 (or -18..-1, from the end)`."""
    return f"0..{length - 1} (or {-length}..-1, from the end)" if length else "none"


def resolve_index(index: int, length: int) -> int | None:
    """Return the index counted from 0, or None when it is out of range."""
    return index % length if -length <= index < length else None


def resolve_position(position: int | str, names: Mapping[str, int], length: int) -> int:
    """Resolve one site's position for one example of `length` real tokens to an index from 0.

    A name that `names` holds as it stands (`S1+1`) comes before a name with an offset. Raises UnknownName for a
    name that is not there or an index out of range, BadInput for `all`, which is no single index.
    """
    if position == TOGETHER:
        raise BadInput(f"position {TOGETHER!r} stands for every position together: it has no single index.")
    if isinstance(position, int):
        index = resolve_index(position, length)
    else:
        start, offset = _start_of(position, names)
        first = resolve_index(start, length)
        index = None if first is None else first + offset
        index = index if index is not None and 0 <= index < length else None
    if index is None:
        raise UnknownName(
            f"position {position} is outside this prompt: it has {length} positions, {count_range(length)}."
        )
    return index


def _start_of(position: str, names: Mapping[str, int]) -> tuple[int, int]:
    if position in names:
        return names[position], 0
    name, offset = split_name(position) or (position, 0)
    if name not in names:
        raise UnknownName.of("position", position, names, hint="An index such as 3 or -1 is always possible.")
    return names[name], offset


def expand_positions(positions: Items, names: Mapping[str, int], length: int) -> tuple[int | Literal["all"], ...]:
    """List the indices that parsed positions mean for one example of `length` real tokens, duplicates removed.

    Spans are clipped to the prompt, `*` is each position, `all` stays `all`. Raises as `resolve_position` does.
    """
    found: dict[int | Literal["all"], None] = {}
    for item in positions:
        if isinstance(item, Span):
            found.update(dict.fromkeys(item.of(length)))
        elif item == TOGETHER:
            found["all"] = None
        else:
            found[resolve_position(item, names, length)] = None
    return tuple(found)


def keep_positions(positions: Items, each: Sequence[int | str]) -> Iterable[int | str]:
    """Yield positions that hold for prompts of any length: names and negative indices stay as they are.

    `each` is what `*` stands for, and what spans are clipped to; it is only needed for `*` and for spans such as
    `3:` or `2:-1`, whose end depends on the length. Raises BadInput when it is needed and empty.
    """
    for item in positions:
        if not isinstance(item, Span):
            yield item
        elif item.is_anchored:
            yield from _anchored(item, each)
        elif not each:
            raise BadInput(
                f"positions {item} depend on the length of the prompt: give `positions_for_star`, for example "
                "range(15), or list the positions."
            )
        else:
            yield from each[item.start : item.stop]


def _anchored(span: Span, each: Sequence[int | str]) -> range:
    """List a span whose ends are both counted from the same side, clipped where the longest prompt ends."""
    start, stop = span.start or 0, span.stop or 0
    length = len(each) or max(abs(start), abs(stop))
    return range(max(start, -length), stop) if start < 0 else range(start, min(stop, length))
