"""The line before the model: one thread runs what all tabs ask for, a little of each in turn."""

import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from crosspatch.core.errors import CrosspatchError, Interrupted

TURN = 0.4  # seconds that a sweep may go on while other sweeps wait: each change of turn costs two forwards
SHORT_IN_A_ROW = 8  # quick questions that go before a waiting sweep


class TooBusy(CrosspatchError):
    """More is waiting than a line may hold; nothing was lost, ask again."""


@runtime_checkable
class Work(Protocol):
    """Long work, done in steps between which the model is free for others."""

    def step(self) -> bool:
        """Do a little; return whether all is done. What it raises ends the work through `fail`."""
        ...

    def pause(self) -> None:
        """Let go of the model and of what is held of it, until the next step."""
        ...

    def fail(self, problem: BaseException) -> None:
        """Learn that it has ended with an error."""
        ...


@dataclass
class _Call:
    """A quick question: one step."""

    function: Callable[[], Any]
    future: Future

    def step(self) -> bool:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(self.function())
        return True

    def pause(self) -> None:
        return None

    def fail(self, problem: BaseException) -> None:
        if isinstance(problem, StopIteration):  # which no future of asyncio can hold
            problem = RuntimeError(f"StopIteration: {problem}")
        if not self.future.done():  # who asked may be gone
            self.future.set_exception(problem)


@dataclass
class _Tab:
    short: deque[_Call] = field(default_factory=deque)
    long: deque[Work] = field(default_factory=deque)


class Line:
    """Runs work for many tabs on one thread: tabs take turns, quick questions go before sweeps.

    `most` things may wait for one tab, and eight times as many in all.
    """

    def __init__(self, most: int = 64) -> None:
        self.most = most
        self._tabs: OrderedDict[str, _Tab] = OrderedDict()
        self._wake = threading.Condition()
        self._closed = False
        self._in_a_row = 0
        self._thread = threading.Thread(target=self._serve, name="crosspatch-line", daemon=True)
        self._thread.start()

    def ask(self, tab: str, function: Callable[[], Any]) -> Future:
        """Put a quick question in the line. Raises TooBusy."""
        call = _Call(function, Future())
        self._put(tab, call, short=True)
        return call.future

    def put(self, tab: str, work: Work) -> None:
        """Put long work in the line. Raises TooBusy."""
        self._put(tab, work, short=False)

    def ahead(self, work: Work) -> int:
        """Count the sweeps that wait before this one."""
        with self._wake:
            waiting = [each for tab in self._tabs.values() for each in tab.long]
        return waiting.index(work) if work in waiting else 0

    @property
    def closed(self) -> bool:
        """Whether nothing more is begun."""
        return self._closed

    def stop(self) -> None:
        """Begin nothing after the step that runs now; what waits fails with Interrupted."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def close(self) -> None:
        """Stop, and wait for the step that runs now."""
        self.stop()
        self._thread.join()

    def _put(self, name: str, work: Any, *, short: bool) -> None:
        with self._wake:
            if self._closed:
                raise Interrupted("the workbench is closing.")
            tab = self._tabs.setdefault(name, _Tab())
            waiting = sum(len(each.short) + len(each.long) for each in self._tabs.values())
            if len(tab.short) + len(tab.long) >= self.most or waiting >= 8 * self.most:
                raise TooBusy(f"{waiting} questions wait for the model already: try again in a moment.")
            (tab.short if short else tab.long).append(work)
            self._wake.notify_all()

    def _serve(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._anyone())
                if self._closed:
                    break
                name, work, short = self._take()
            self._in_a_row = self._in_a_row + 1 if short else 0
            if not self._turn(work):
                with self._wake:
                    self._tabs.setdefault(name, _Tab()).long.appendleft(work)
        for tab in self._tabs.values():
            for work in (*tab.short, *tab.long):
                _fail(work, Interrupted("the workbench was closed."))

    def _anyone(self, *, short: bool = False) -> bool:
        return any(tab.short or (tab.long and not short) for tab in self._tabs.values())

    def _take(self) -> tuple[str, Any, bool]:
        """Take the next work out: of the tab that has waited longest, which goes to the end of the line."""
        sweeps = any(tab.long for tab in self._tabs.values())
        short = self._anyone(short=True) and not (sweeps and self._in_a_row >= SHORT_IN_A_ROW)
        name = next(name for name, tab in self._tabs.items() if (tab.short if short else tab.long))
        tab = self._tabs.pop(name)
        work = (tab.short if short else tab.long).popleft()
        if tab.short or tab.long:
            self._tabs[name] = tab
        return name, work, short

    def _turn(self, work: Any) -> bool:
        """Run work until it is done or others should run; return whether it has ended."""
        until = time.monotonic() + TURN
        try:
            while not work.step():
                with self._wake:
                    others = self._closed or self._anyone(short=True) or (self._anyone() and time.monotonic() > until)
                if others:
                    work.pause()
                    return False
        except BaseException as problem:  # whatever it is, it belongs to who asked, and the line goes on
            _fail(work, problem)
        return True


def _fail(work: Any, problem: BaseException) -> None:
    """Tell work that it has failed; what goes wrong in that goes to standard error, and the line goes on."""
    try:
        work.fail(problem)
    except Exception:
        traceback.print_exc()
