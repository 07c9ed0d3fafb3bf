"""`audit`: what it prints, what it writes, how it ends."""

import numpy as np
import pytest

from crosspatch.referee import Audit

WORDS = ("--task", "ioi", "--n", 4, "--sites", "attn.head, mlp.out@S2|end", "--windows", "2", "--metrics")
SMALL = (*WORDS, "logit_diff,prob", "--corruptions", "replace,gaussian", "--draws", 2)


def test_audit_ends_with_verdict_and_page(call, tiny, here):
    """Between title and verdict stand the agreement, the findings with their sources, and the cost."""
    result = call("audit", tiny, *SMALL, "--out", "mine")
    assert result.exit_code == 0, result.output
    found = Audit.load(here / "mine")
    lines = result.stdout.splitlines()
    assert lines[0] == "tiny-llama · ioi · 4 pairs: audit of 8 settings"
    assert lines[-2:] == [found.verdict(), "report → mine/report.html"]
    assert [line for line in lines if line.startswith("! [")] == [
        f"! [{each.rule}] {each.text} ({each.source})" for each in found.findings
    ]
    assert f"{found.cost()}." in lines
    assert (here / "mine" / "report.html").read_text().startswith("<!doctype html")


def test_audit_is_that_of_the_library(document, tiny, here):
    """The document has settings, agreement, findings and cost, as `audit` gives them."""
    import crosspatch as xp

    told = document("audit", tiny, *SMALL)
    model = xp.open_model(tiny)
    plan = xp.AuditPlan(
        "attn.head, mlp.out@S2|end", ("replace", "gaussian"), ("logit_diff", "prob"), windows=(2,), draws=2
    )
    found = xp.audit(model, xp.tasks.get_task("ioi", model, n=4), plan=plan)
    assert told["verdict"] == found.verdict()
    assert [tuple(one.values()) for one in told["settings"]] == [
        (s.corruption, s.direction, s.metric) for s in found.settings
    ]
    assert [one["site"] for one in told["agreement"]] == [row.site for row in found.agreement()]
    assert {"rule", "text", "source", "sites"} == set(told["findings"][0])
    assert told["cost"]["forwards"] == pytest.approx(found.run.forwards)
    assert told["folder"].startswith("runs/audit-ioi-tiny-llama-")
    np.testing.assert_array_equal(
        Audit.load(here / told["folder"]).effects[found.main].raw, found.effects[found.main].raw
    )


def test_page_of_a_saved_audit_is_written_again(call, tiny, here):
    """`report` takes an audit's folder, for its page and for nothing else; --report says where the page goes."""
    told = call("audit", tiny, *SMALL, "--out", "mine", "--report", "page.html", "--quiet")
    assert told.stdout.splitlines()[-1] == "report → page.html"
    assert told.stderr == ""
    assert call("report", "mine").stdout.splitlines()[-1] == "report → mine/report.html"
    assert (here / "mine" / "report.html").read_text() == (here / "page.html").read_text()
    assert "only its page" in call("report", "mine", "--format", "csv").stderr


def test_a_folder_of_other_files_is_refused(call, tiny, here):
    """An audit replaces an audit, and nothing else."""
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("mine")
    result = call("audit", tiny, *SMALL, "--out", "mine")
    assert (result.exit_code, "holds other files" in result.stderr) == (2, True)


@pytest.mark.parametrize("sweep", [1, 4])
def test_interruption_ends_the_audit(call, tiny, here, monkeypatch, sweep):
    """Ctrl-C in any sweep, the last one too, ends the audit: halves of sweeps are not compared."""
    from crosspatch.cli.audit import WholeSweeps

    start, advance, begun = WholeSweeps.start, WholeSweeps.advance, []

    def note(self, total, unit):
        start(self, total, unit)
        begun.append(total)

    def stop(self, done, note=""):
        if len(begun) == sweep:
            raise KeyboardInterrupt
        advance(self, done, note)

    monkeypatch.setattr(WholeSweeps, "start", note)
    monkeypatch.setattr(WholeSweeps, "advance", stop)
    result = call("audit", tiny, *SMALL, "--out", "mine")
    assert result.exit_code == 130
    assert len(begun) == sweep
    assert "the same command goes on from there" in result.stderr
    assert [path.name for path in (here / "mine").iterdir()] == ["journal"]
    monkeypatch.setattr(WholeSweeps, "advance", advance)
    again = call("audit", tiny, *SMALL, "--out", "mine")
    assert again.exit_code == 0
    assert "the rest is run now" in again.stderr
    assert not (here / "mine" / "journal").exists()


def test_dry_run_counts_and_runs_nothing(call, document, tiny, here):
    """Settings, sweeps and work are those of the audit; no folder is made."""
    told = document("audit", tiny, *SMALL, "--dry-run")
    assert list(here.iterdir()) == []
    assert told["estimate"]["usual"] > 0
    ran = document("audit", tiny, *SMALL, "--out", "mine")
    assert told["settings"] == len(ran["settings"])
    assert told["forwards"] <= ran["cost"]["forwards"] <= 1.5 * told["forwards"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--windows", "3,x"), "whole numbers"),
        (("--corruptions", "replace,replace"), "each once"),
        (("--metrics", "logit_diff,nosuch"), "nosuch"),
        (("--corruptions", "nosuch"), "nosuch"),
    ],
)
def test_bad_input_exits_with_2(call, tiny, here, words, told):
    """What cannot be read or does not exist is named, and nothing is written."""
    result = call("audit", tiny, "--task", "ioi", "--n", 3, *words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert list(here.iterdir()) == []
