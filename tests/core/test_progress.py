import io
import re
import sys
import types

import pytest
from rich.console import Console

from crosspatch.core import progress
from crosspatch.core.progress import Progress, RichProgress, SilentProgress
from crosspatch.engine import Options, patch
from zoo import make_task, opened, uneven


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when told."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def listener(terminal: bool, width: int = 120):
    out = io.StringIO()
    return RichProgress(Console(file=out, force_terminal=terminal, width=width, color_system=None)), out


@pytest.mark.parametrize("made", [SilentProgress(), RichProgress()])
def test_both_speak_the_protocol(made):
    assert isinstance(made, Progress)


def test_silence(capfd):
    quiet = SilentProgress()
    quiet.start(3, "sites")
    quiet.advance(1, "x")
    quiet.close()
    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_a_line_is_written_every_ten_seconds(clock):
    bar, out = listener(terminal=False)
    bar.start(100, "sites")
    for note in ("31× fewer forwards", "", "", ""):
        clock[0] += 4
        bar.advance(10, note)  # without a new note the last one stays
    bar.close()
    lines = out.getvalue().splitlines()
    assert lines == [
        "30/100 sites · 2.5 sites/s · 0:28 left · 31× fewer forwards",
        "40/100 sites · 2.5 sites/s · 0:24 left · 31× fewer forwards",
    ]


class Notebook:
    """Stands in for IPython's displays: what each shows now, and how often it was written."""

    def __init__(self):
        self.shown, self.written = [], 0

    def display(self, bundle, *, raw, display_id):
        assert raw
        assert display_id
        place = len(self.shown)
        self.shown.append(None)

        def update(bundle, *, raw):
            assert raw
            self.shown[place] = bundle
            self.written += 1

        update(bundle, raw=raw)
        return types.SimpleNamespace(update=update)


@pytest.fixture
def notebook(monkeypatch):
    book = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=book.display))
    return book


def test_a_notebook_has_one_line_a_job_that_is_written_over(clock, notebook, capfd):
    """However many steps there are: one display, changed once a second at most, and nothing on the streams."""
    bar = RichProgress(Console(force_jupyter=True))
    bar.start(1000, "sites")
    for _ in range(1000):
        clock[0] += 0.05
        bar.advance(1, "<b>note</b>")
    bar.close()
    assert notebook.shown == [{"text/plain": "1000/1000 sites · 20 sites/s · in 0:50 · <b>note</b>"}]
    assert 45 <= notebook.written <= 51
    bar.start(5, "sites")
    bar.advance(5)
    bar.close()
    assert len(notebook.shown) == 1  # a short job says nothing
    assert capfd.readouterr() == ("", "")


def test_a_long_job_that_ends_says_so(clock):
    bar, out = listener(terminal=False)
    bar.start(7200, "sites")
    clock[0] += 3700
    bar.advance(7200)
    bar.close()
    assert out.getvalue().splitlines()[-1] == "7200/7200 sites · 1.95 sites/s · in 1:01:40"


def test_nothing_done_yet_has_no_rate(clock):
    bar, out = listener(terminal=False)
    bar.start(5, "sites")
    clock[0] += 11
    bar.advance(0)
    assert "? left" in out.getvalue()


def test_a_short_job_without_a_terminal_is_silent(clock):
    bar, out = listener(terminal=False)
    bar.start(5, "sites")
    bar.advance(5)
    bar.close()
    bar.close()
    assert out.getvalue() == ""


def test_on_a_terminal_a_bar_shows_done_total_rate_and_note(clock):
    bar, out = listener(terminal=True)
    bar.start(8, "sites")
    clock[0] += 2
    bar.advance(4, "[saved] 12 forwards")
    bar._bar.refresh()
    shown = out.getvalue()
    bar.close()
    for part in ("sites", "4/8", "2/s", "[saved] 12 forwards"):
        assert part in shown


def test_a_listener_can_be_used_again(clock):
    bar, out = listener(terminal=True)
    bar.start(2, "sites")
    bar.start(3, "forwards")
    bar.advance(3)
    bar._bar.refresh()
    bar.close()
    assert "3/3" in out.getvalue()


def test_the_default_writes_to_standard_error(capsys, clock):
    bar = RichProgress()
    bar.start(2, "sites")
    clock[0] += 20
    bar.advance(1)
    bar.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1/2 sites" in captured.err


def test_a_bar_of_large_numbers_fits_eighty_columns(clock):
    bar, out = listener(terminal=True, width=80)
    bar.start(163_200, "patches")
    clock[0] += 2
    bar.advance(13_000, "128k saved")
    bar._bar.refresh()
    bar.close()
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()))
    assert any("13000/163200" in line and "6,500/s" in line and line.rstrip().endswith("128k saved") for line in lines)


def test_library_calls_are_silent(capfd):
    """Unless a listener is given, a sweep writes nothing to either stream."""
    assert isinstance(Options().progress, SilentProgress)
    patch(opened("llama"), make_task(*uneven()), sites="resid.pre, attn.head")
    assert capfd.readouterr() == ("", "")
    heard = RichProgress(Console(file=sys.stderr, force_terminal=True, color_system=None))
    patch(opened("llama"), make_task(*uneven()), sites="resid.pre", options=Options(progress=heard))
    assert "patches" in capfd.readouterr().err
