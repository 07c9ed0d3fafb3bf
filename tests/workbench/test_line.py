"""The line before the model: one thread, tabs in turn, quick questions first, no work lost or mixed up."""

import threading
import time

import pytest

from crosspatch.core.errors import Interrupted
from crosspatch.workbench.line import Line, TooBusy


class Steps:
    """Work of so many steps, which notes each in a common log."""

    def __init__(self, name, log, count=5, gate=None, seconds=0.0):
        self.name, self.log, self.left, self.gate, self.seconds = name, log, count, gate, seconds
        self.paused, self.problem, self.begun, self.ended = 0, None, threading.Event(), threading.Event()

    def step(self):
        self.begun.set()
        if self.gate:
            self.gate.wait(5)
        time.sleep(self.seconds)
        self.log.append(self.name)
        self.left -= 1
        if self.left == 0:
            self.ended.set()
        return self.left == 0

    def pause(self):
        self.paused += 1

    def fail(self, problem):
        self.problem = problem
        self.ended.set()


@pytest.fixture
def line():
    made = Line(most=4)
    yield made
    made.close()


def test_answers_go_to_who_asked(line):
    """Each question has its own answer, whoever asks at the same time."""
    found = {}

    def ask(number):
        found[number] = line.ask(f"tab {number}", lambda: number**2).result(5)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number**2 for number in range(20)}


def test_all_work_is_on_one_thread(line):
    """The model is never used by two threads."""
    names = {line.ask("a", threading.get_ident).result(5) for _ in range(5)}
    assert len(names) == 1
    assert names != {threading.get_ident()}


def test_a_quick_question_does_not_wait_for_a_sweep_to_end(line):
    """It runs between two steps, and the sweep lets go of the model first."""
    log, gate = [], threading.Event()
    sweep = Steps("sweep", log, count=6, gate=gate)
    line.put("a", sweep)
    assert sweep.begun.wait(5)
    asked = line.ask("b", lambda: log.append("question"))
    gate.set()
    asked.result(5)
    assert sweep.ended.wait(5)
    assert log.index("question") < 3
    assert log.count("sweep") == 6
    assert sweep.paused >= 1


def test_sweeps_of_two_tabs_take_turns(line, monkeypatch):
    """The second does not wait for the first to end."""
    monkeypatch.setattr("crosspatch.workbench.line.TURN", 0.02)
    log, gate = [], threading.Event()
    first, second = (Steps(name, log, count=8, gate=gate, seconds=0.01) for name in ("first", "second"))
    line.put("a", first)
    line.put("b", second)
    gate.set()
    assert first.ended.wait(5)
    assert second.ended.wait(5)
    assert log.index("second") < 6
    assert [log.count(name) for name in ("first", "second")] == [8, 8]


def test_many_quick_questions_do_not_starve_a_sweep(line):
    """After some of them, the sweep has a step."""
    log, gate = [], threading.Event()
    hold = line.ask("hold", lambda: gate.wait(5))
    sweep = Steps("sweep", log, count=2)
    line.put("a", sweep)
    asked = [line.ask(f"tab {i}", lambda: log.append("question")) for i in range(14)]
    gate.set()
    for each in (hold, *asked):
        each.result(5)
    assert sweep.ended.wait(5)
    assert log.index("sweep") <= 8


def test_a_failure_is_its_own_work_s_only(line):
    """What one raises goes to it; the next runs."""

    def broken():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        line.ask("a", broken).result(5)
    work = Steps("x", [], count=1)
    work.step = broken
    line.put("a", work)
    assert work.ended.wait(5)
    assert isinstance(work.problem, RuntimeError)
    assert line.ask("a", lambda: 3).result(5) == 3


def test_work_that_cannot_even_fail_ends_alone(line, capsys):
    """What goes wrong in telling it is written down, and the next question is answered."""

    tried = threading.Event()

    def broken(*_):
        tried.set()
        raise RuntimeError("even this")

    work = Steps("x", [], count=1)
    work.step = work.fail = broken
    line.put("a", work)
    assert tried.wait(5)
    assert line.ask("a", lambda: 3).result(5) == 3
    assert "even this" in capsys.readouterr().err


def test_a_question_that_runs_dry_is_an_error(line):
    """StopIteration cannot be carried by a future of asyncio: who asked would wait for ever."""
    with pytest.raises(RuntimeError, match="StopIteration"):
        line.ask("a", lambda: next(iter(()))).result(5)


def test_too_much_is_refused_and_nothing_waiting_is_lost(line):
    """One tab may have four things waiting here."""
    gate = threading.Event()
    running = line.ask("other", lambda: gate.wait(5))
    asked = [line.ask("a", lambda i=i: i) for i in range(4)]
    with pytest.raises(TooBusy, match="try again"):
        line.ask("a", lambda: 9)
    gate.set()
    assert running.result(5)
    assert [each.result(5) for each in asked] == [0, 1, 2, 3]


def test_who_went_away_is_not_waited_for(line):
    """A cancelled question is left out; those after it are answered, and closing does not stumble over it."""
    gate = threading.Event()
    running = line.ask("a", lambda: gate.wait(5))
    gone, next_ = line.ask("b", lambda: 1), line.ask("c", lambda: 2)
    assert gone.cancel()
    gate.set()
    assert running.result(5)
    assert next_.result(5) == 2


def test_closing_fails_what_waits():
    """Nobody waits for an answer that will not come."""
    line, gate = Line(), threading.Event()
    running = line.ask("a", lambda: gate.wait(5))
    waiting, gone = line.ask("a", lambda: 1), line.ask("b", lambda: 2)
    gone.cancel()
    threading.Timer(0.05, gate.set).start()
    line.close()
    assert running.done()
    with pytest.raises(Interrupted):
        waiting.result(1)
    with pytest.raises(Interrupted):
        line.ask("a", lambda: 1)
