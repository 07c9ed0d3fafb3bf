import io
import re

import pytest
from rich.console import Console

from crosspatch.core import progress
from crosspatch.core.progress import Progress, RichProgress, SilentProgress


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
