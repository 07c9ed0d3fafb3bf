"""A sweep as a job of fixed units: the two runs of a chunk of pairs, and packs of patches, in any order."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from crosspatch.core.errors import MemoryShortage
from crosspatch.core.journal import Columns
from crosspatch.engine.attempt import Attempt
from crosspatch.engine.cells import Cell
from crosspatch.engine.local import Pass

if TYPE_CHECKING:
    from crosspatch.engine.sweep import Sweep

BASE, SOURCE = -1, -2  # in the place of a site's number: a run that nothing is patched in


@dataclass(frozen=True)
class Cuts:
    """How a sweep is cut into units: pairs held at once, tokens of a pack, and the threads that units run with.

    Another cut gives the same numbers but for their last bits, so those who share a journal share its cuts.
    """

    chunks: tuple[tuple[int, ...], ...]
    tokens: int
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Write the cuts as plain data."""
        return {"chunks": [list(chunk) for chunk in self.chunks], "tokens": self.tokens, "threads": self.threads}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Cuts":
        """Read what `to_json` wrote. Raises KeyError or TypeError for anything else."""
        return cls(tuple(tuple(chunk) for chunk in entry["chunks"]), int(entry["tokens"]), int(entry["threads"]))


class Unit(NamedTuple):
    """One unit: a chunk, the number of its pack (None: its two runs), rows, work in token-blocks, bytes."""

    chunk: int
    pack: int | None
    rows: int
    work: int
    memory: int


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use so many threads of the processor while the block lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class SweepJob:
    """The units of a sweep, and this process's part in running them. Of the chunks one is open at a time."""

    sweep: "Sweep"
    halvings: int = 0
    packs: int = 0
    _split: dict[int, list[list[int]]] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)
    _open: tuple[int, ...] = ()
    _this: Pass | None = None

    @property
    def groups(self) -> Sequence[Sequence[int]]:
        """The units of each chunk, its two runs first."""
        return self.sweep.units_by_chunk

    def rows(self, unit: int) -> int:
        """Return the patches of a unit."""
        return self.sweep.units[unit].rows

    def work(self, unit: int) -> float:
        """Return the token-blocks of a unit."""
        return float(self.sweep.units[unit].work)

    def run(self, unit: int) -> Columns:
        """Run a unit; halves it when memory is short.

        Raises:
            NotFinite: the metric of a base, source or patched run is not a number.
            MemoryShortage: a single row, or the runs of a single pair, do not fit.
        """
        chunk, number, *_ = self.sweep.units[unit]
        pack = None if number is None else self.sweep.packs_in(chunk)[number]
        with threads(self.sweep.cuts.threads):
            parts = [self._part(pack, numbers, chunk) for numbers in self._passes(chunk)]
        self.packs += pack is not None
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run_in_step(self, unit: int | None, units: Sequence[int]) -> Columns:
        """Run one of several packs of a chunk that other processes run at the same time; None runs idle blocks alone.

        Each block from the first that any of them enters is called exactly once.
        """
        chunk, sweep = self.sweep.units[units[0]].chunk, self.sweep
        packs = {each: sweep.packs_in(chunk)[sweep.units[each].pack or 0] for each in units}
        sweep.first = min(cell.layer for pack in packs.values() for cell in pack)
        try:
            with threads(sweep.cuts.threads):
                (numbers,) = self._passes(chunk)
                return self._part(packs[unit] if unit is not None else [], numbers, chunk)
        finally:
            sweep.first = None
            self.packs += unit is not None

    def close(self) -> None:
        """Take the open chunk down."""
        self._stack.close()
        self._open, self._this = (), None

    def _passes(self, chunk: int) -> Iterator[list[int]]:
        """Yield the pairs of a chunk that fit in memory together, opened: all of them unless memory is short.

        The part that is open already comes first.
        """
        waiting = self._split.get(chunk, [list(self.sweep.cuts.chunks[chunk])])
        waiting, fitting = sorted(waiting, key=lambda numbers: tuple(numbers) != self._open), []
        while waiting:
            numbers = waiting.pop(0)
            if self._enter(numbers):
                fitting.append(numbers)
                yield numbers
            else:
                waiting[:0] = self._halves(numbers, "the runs of one pair")
        self._split[chunk] = fitting

    def _enter(self, numbers: Sequence[int]) -> bool:
        """Open the runs of these pairs, unless they are; False if they do not fit."""
        if tuple(numbers) == self._open:
            return True
        self.close()
        with Attempt() as attempt:
            self._this = self._stack.enter_context(self.sweep.opened(numbers))
            self._open = tuple(numbers)
        if attempt.short:
            self.close()
        return not attempt.short

    def _part(self, pack: Sequence[Cell] | None, numbers: Sequence[int], chunk: int) -> Columns:
        """Run what a unit has to do on the open pairs."""
        this, sweep = self._this, self.sweep
        if this is None:
            raise RuntimeError("no runs are open")
        if pack is None:
            both = np.concatenate([this.before.cpu().numpy(), this.after.cpu().numpy()], axis=1)
            sites = np.repeat([BASE, SOURCE], len(numbers))
            return sweep.columns(sites, np.array([*numbers, *numbers]), both.T)
        whole = sweep.cuts.chunks[chunk]
        if len(numbers) < len(whole):
            place = {number: index for index, number in enumerate(numbers)}
            pack = [replace(cell, pair=place[whole[cell.pair]]) for cell in pack if whole[cell.pair] in place]
        found = self._run_pack(pack, this)
        sites = np.array([cell.site for cell, _ in found], int)
        examples = np.array([numbers[cell.pair] for cell, _ in found], int)
        return sweep.columns(sites, examples, np.array([effect for _, effect in found]))

    def _run_pack(self, pack: Sequence[Cell], this: Pass) -> list[tuple[Cell, list[float]]]:
        """Walk one pack; halves it when memory is short."""
        if not pack and self.sweep.first is None:
            return []
        found: list[tuple[Cell, list[float]]] = []
        with Attempt() as attempt, self.sweep.timed("patches"):
            found = list(self.sweep.measured(pack, this))
        if not attempt.short:
            return found
        return [each for half in self._halves(pack, "one row") for each in self._run_pack(half, this)]

    def _halves(self, items: Sequence, smallest: str) -> list[list]:
        if self.sweep.model.together:
            raise MemoryShortage(
                "out of memory on one of the processes that hold the model together: they cannot make their packs "
                "smaller one by one. Set a smaller budget for all, options=Options(memory=…) or Options(tokens=…)."
            )
        if len(items) <= 1:
            raise MemoryShortage(
                f"out of memory even for {smallest}: use shorter prompts, a smaller dtype (bfloat16), or a device with "
                "more memory."
            )
        self.halvings += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(items) // 2
        return [list(items[:middle]), list(items[middle:])]
