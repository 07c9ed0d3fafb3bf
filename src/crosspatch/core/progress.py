"""How far a long job is: the protocol the engine speaks, a silent listener and one for the terminal."""

import math
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBar

LINE_EVERY = 10.0  # seconds between lines where standard error is no terminal
WRITE_EVERY = 1.0  # seconds between changes of a notebook's one line


@runtime_checkable
class Progress(Protocol):
    """What a long job tells: its size once, then each step done, then its end."""

    def start(self, total: int, unit: str) -> None:
        """Begin a job of `total` units, named in the plural (`sites`, `forwards`)."""

    def advance(self, done: int, note: str = "") -> None:
        """Report `done` further units; a note (forwards saved, best site) replaces the last one."""

    def close(self) -> None:
        """End the job, finished or not; may be called twice."""


class SilentProgress:
    """Says nothing: the default of library calls."""

    def start(self, total: int, unit: str) -> None:
        """Ignore the start."""

    def advance(self, done: int, note: str = "") -> None:
        """Ignore the step."""

    def close(self) -> None:
        """Ignore the end."""


class RichProgress:
    """Draws a bar on standard error; where that is no terminal, writes a line every ten seconds.

    In a notebook it is one line, which is written over.
    """

    def __init__(self, console: "Console | None" = None) -> None:
        self._console = console
        self._bar: RichBar | None = None
        self._cell: _Cell | None = None
        self._total = self._done = 0
        self._unit = self._note = ""
        self._began = self._spoke = 0.0

    def start(self, total: int, unit: str) -> None:
        """Begin a job of `total` units; a job still open is closed first."""
        self.close()
        console = self._console = self._console or _stderr()
        self._total, self._done, self._unit, self._note = total, 0, unit, ""
        self._began = self._spoke = time.monotonic()
        if console.is_jupyter:
            self._cell = _Cell()
        elif console.is_terminal:
            self._bar = _bar(console)
            self._bar.start()
            self._bar.add_task(unit, total=total, note="", rate="")

    def advance(self, done: int, note: str = "") -> None:
        """Report `done` further units and, if given, a new note."""
        self._done += done
        self._note = note or self._note
        now = time.monotonic()
        if self._bar is not None:
            rate = _rate(self._done, now - self._began)
            self._bar.update(self._bar.task_ids[0], completed=self._done, note=self._note, rate=rate)
        elif self._console is not None and now - self._spoke >= (WRITE_EVERY if self._cell else LINE_EVERY):
            self._spoke = now
            self._say(self._console, self._line(now))

    def close(self) -> None:
        """Take the bar down; a job without a bar that ran long enough to speak says its last line."""
        if self._bar is not None:
            self._bar.stop()
        elif self._console is not None and self._spoke > self._began:
            self._say(self._console, self._line(time.monotonic()))
        self._bar, self._cell, self._spoke, self._began = None, None, 0.0, 0.0

    def _say(self, console: "Console", line: str) -> None:
        if self._cell is not None:
            self._cell.write(line)
        else:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self, now: float) -> str:
        spent = now - self._began
        left = spent / self._done * (self._total - self._done) if self._done else float("nan")
        parts = [f"{self._done}/{self._total} {self._unit}", _rate(self._done, spent, unit=self._unit)]
        parts += [f"{_clock(left)} left"] if self._done < self._total else [f"in {_clock(spent)}"]
        return " · ".join([*parts, self._note] if self._note else parts)


class _Cell:
    """One line in a notebook's output, plain text, written over by the next."""

    def __init__(self) -> None:
        self._handle: Any = None

    def write(self, line: str) -> None:
        bundle = {"text/plain": line}
        if self._handle is None:
            # Only where a notebook runs, and so IPython is there: it is none of our dependencies.
            self._handle = import_module("IPython.display").display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _stderr() -> "Console":
    from rich.console import Console

    return Console(file=sys.stderr)


def _bar(console: "Console") -> "RichBar":
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichBar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", style="dim", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    return RichBar(*columns, console=console, transient=True)


def _rate(done: int, seconds: float, *, unit: str = "") -> str:
    if not done or seconds <= 0:
        return ""
    rate = done / seconds
    return (f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}") + (f" {unit}/s" if unit else "/s")


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
