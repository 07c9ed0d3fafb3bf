"""`runs` and `report`: saved runs listed, shown, removed, and written in other forms."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from builders import make_effects
from crosspatch.engine.effects import Effects


@pytest.fixture
def saved(here):
    """Save the effects of a sweep as a Python user would, without a summary or a page."""
    effects = make_effects(layers=6, heads=2, n=8)
    effects.save(here / "runs" / "mine")
    return effects


def test_no_runs_is_said(call, document):
    """In an empty folder, `runs` says what makes runs, and lists none."""
    result = call("runs")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "crosspatch patch" in result.stderr
    assert document("runs") == {"runs": []}


def test_runs_are_listed_latest_first(call, document, tiny, saved):
    """Each run has its folder, model, task, direction, metric, state and finding; damaged ones are listed too."""
    call("patch", tiny, "--task", "ioi", "--n", 2, "--require-accuracy", 0)
    listed = document("runs")["runs"]
    assert [run["model"] for run in listed] == ["tiny-llama", "gemma-3-270m"]
    assert listed[1]["folder"] == "runs/mine"
    assert listed[1]["finding"] == saved.finding()
    assert (listed[1]["n"], listed[1]["direction"], listed[1]["complete"]) == (8, "denoise", True)
    assert document("runs", "list") == {"runs": listed}
    text = call("runs").stdout
    assert text.index("runs/ioi-tiny-llama-") < text.index("runs/mine")
    assert saved.finding() in text


def test_interrupted_runs_are_marked(call, here):
    """A run that lacks patches is listed as interrupted, and shown with how to complete it."""
    effects = make_effects(layers=6, n=8)
    settings = {"complete": False}
    replace(effects, provenance={**effects.provenance, "settings": settings}).save(here / "runs" / "part")
    assert "(interrupted" in call("runs").stdout
    assert "and --resume" in call("runs", "show", "runs/part").stderr


def test_a_damaged_run_does_not_hide_the_others(call, document, here, saved):
    """A run that cannot be read is listed with the reason."""
    (here / "runs" / "bad").mkdir()
    (here / "runs" / "bad" / "meta.json").write_text("{")
    (here / "runs" / "notes").mkdir()
    listed = {run["folder"]: run for run in document("runs")["runs"]}
    assert set(listed) == {"runs/bad", "runs/mine"}
    assert "not JSON" in listed["runs/bad"]["damaged"]
    assert "damaged" in call("runs").stdout


def test_show_prints_what_patch_printed(call, document, tiny):
    """A saved run is shown in the same words and with the same last lines."""
    printed = call("patch", tiny, "--task", "ioi", "--n", 3, "--require-accuracy", 0).stdout
    folder = document("runs")["runs"][0]["folder"]
    assert call("runs", "show", folder).stdout == printed
    told = document("runs", "show", folder, "--top", 2)
    assert len(told["top"]) == 2
    assert told["report"] == f"{folder}/report.html"


def test_remove_asks_first(call, here, saved):
    """Without a yes nothing is removed and the exit code is 2; with one, the folder is gone."""
    folder = here / "runs" / "mine"
    for answer in ("n\n", ""):
        result = call("runs", "remove", "runs/mine", input=answer)
        assert result.exit_code == 2
        assert "not removed" in result.stderr
        assert folder.is_dir()
    result = call("runs", "remove", "runs/mine", input="y\n")
    assert result.exit_code == 0
    assert result.stdout.endswith("removed runs/mine\n")
    assert not folder.exists()


def test_remove_leaves_what_is_not_ours(document, here, saved):
    """Files that crosspatch did not write stay, and so does their folder."""
    (here / "runs" / "mine" / "notes.txt").write_text("mine")
    assert document("runs", "remove", "runs/mine", "--yes") == {"removed": "runs/mine", "left": ["notes.txt"]}
    assert [path.name for path in (here / "runs" / "mine").iterdir()] == ["notes.txt"]


def test_report_writes_the_page(call, here, saved):
    """The default is the page, in the run folder; the last lines are the finding and its path."""
    result = call("report", "runs/mine")
    assert result.stdout.splitlines()[-2:] == [saved.finding(), "report → runs/mine/report.html"]
    assert (here / "runs" / "mine" / "report.html").read_text().startswith("<!doctype html")


def test_report_as_parquet_has_each_patch(call, saved, here):
    """One row a site and pair, with the numbers of the run; what was not run is null."""
    import pyarrow.parquet as pq

    assert call("report", "runs/mine", "--format", "parquet").exit_code == 0
    table = pq.read_table(here / "runs" / "mine" / "effects.parquet")
    assert table.num_rows == saved.raw.size
    np.testing.assert_array_equal(table["raw"].to_numpy().reshape(saved.raw.shape), saved.raw)
    np.testing.assert_array_equal(table["base"].to_numpy()[: saved.n], saved.base)
    names = table["site"].to_pylist()[:: saved.n]
    assert names == [str(site) for site in saved.sites]
    assert table["position"].to_pylist()[0] == str(saved.sites[0].position)
    assert table.schema.metadata[b"metric"].decode() == saved.metric


def test_report_as_csv_has_each_site(call, saved):
    """The table has one row a site, whose numbers are those of the effects."""
    result = call("report", "runs/mine", "--format", "csv", "--out", "-")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["site"] for row in rows] == list(map(str, saved.sites))
    np.testing.assert_allclose([float(row["effect"]) for row in rows], saved.mean(), rtol=1e-6)
    assert rows[0]["kind"] == "resid.pre"


def test_report_as_json_has_everything(call, here, saved):
    """All raw numbers, both runs, the prompts and the provenance come back from the document."""
    assert call("report", "runs/mine", "--format", "json").exit_code == 0
    told = json.loads((here / "runs" / "mine" / "effects.json").read_text())
    raw = np.array([row["each"] for row in told["effects"]], dtype=np.float32)
    np.testing.assert_array_equal(raw, saved.raw)
    np.testing.assert_array_equal(np.array(told["base_each"], dtype=np.float32), saved.base)
    assert told["examples"][0]["clean_tokens"] == list(saved.examples[0].clean_tokens)
    assert told["provenance"] == dict(saved.provenance)


def test_report_as_markdown_can_be_pasted(call, saved):
    """The summary has the finding, a table of twenty sites and the cautions."""
    lines = call("report", "runs/mine", "--format", "md", "--out", "-").stdout.splitlines()
    assert lines[0] == f"**{saved.finding()}**"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 22
    assert all(line.count("|") == table[0].count("|") for line in table)


@pytest.mark.parametrize(
    ("form", "ending", "start"),
    [("latex", "tex", b"% needs"), ("svg", "svg", b"<?xml"), ("png", "png", b"\x89PNG"), ("pdf", "pdf", b"%PDF")],
)
@pytest.mark.usefixtures("saved")
def test_report_for_papers(call, here, form, ending, start):
    """A table or a figure is written beside the run."""
    assert call("report", "runs/mine", "--format", form).exit_code == 0
    assert (here / "runs" / "mine" / f"effects.{ending}").read_bytes().startswith(start)


def test_report_has_one_use_of_standard_output(call, saved):
    """--json and --out - cannot both have it."""
    result = call("report", "runs/mine", "--format", "md", "--out", "-", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "leave one of them out" in result.stderr


def test_report_document_names_the_file(document, here, saved):
    """--json tells where the report is."""
    told = document("report", "runs/mine", "--format", "md", "--out", "here.md")
    assert told["path"] == "here.md"
    assert (here / "here.md").read_text().startswith("**")


def test_report_needs_no_torch_installed(here, saved):
    """Listing, showing and reporting saved runs load no torch: they start at once."""
    import subprocess
    import sys

    code = (
        "import sys\nfrom crosspatch.cli.app import app\n"
        "for words in (['runs'], ['runs', 'show', 'runs/mine'], ['report', 'runs/mine']):\n"
        "    try:\n        app(words)\n    except SystemExit as end:\n        assert not end.code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_run_with_no_summary_is_still_a_run(document, here, saved):
    """A summary that is damaged or missing is made again from the effects."""
    (here / "runs" / "mine" / "summary.json").write_text("{")
    assert document("runs")["runs"][0]["finding"] == Effects.load(here / "runs" / "mine").finding()
