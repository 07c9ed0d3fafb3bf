"""The benchmark's own arithmetic, and one run of it on a tiny model: numbers are checked, timings are not."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crosspatch.engine.measure import Row

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def script(monkeypatch):
    """Give a module of bench/, whose scripts import each other by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.mark.parametrize(("texts", "expected"), [("second", range(1, 15)), ("third", range(10, 15)), ("one", [10])])
def test_prompts_differ_where_they_should(script, texts, expected):
    """Texts of 15 tokens differ from the second on, in the last third, or at position 10."""
    clean, corrupt = script("shapes").prompts(texts, pairs=4, length=15, vocab=9, seed=1)
    for a, b in zip(clean, corrupt, strict=True):
        assert [i for i in range(15) if a[i] != b[i]] == list(expected)
        assert 0 <= min(*a, *b) <= max(*a, *b) < 9
    assert (clean, corrupt) == script("shapes").prompts(texts, pairs=4, length=15, vocab=9, seed=1)


def test_the_same_build_gives_the_same_weights(script):
    """A child process that is told the same build measures the same model."""
    shapes = script("shapes")
    first, again, deeper = (shapes.open_shape(shapes.Build("tiny", layers=n)) for n in (2, 2, 3))
    assert first.fingerprint == again.fingerprint != deeper.fingerprint
    assert (first.anatomy.layers, deeper.anatomy.layers) == (2, 3)


def test_exponent_of_a_power(script):
    """Seconds of 3 n² have exponent 2."""
    assert script("growth").exponent([1, 2, 5, 9], [3 * n**2 for n in (1, 2, 5, 9)]) == pytest.approx(2)


def own_rows(*, plain_ratio=40.0):
    one_pass = Row("one pass", (2.0, 2.2, 1.8), 30, 30, 0.0, 1e-3, 1.0)
    return one_pass, Row("one forward a site", (80.0,) * 3, 4, 30, 1e-6, 1e-3, plain_ratio)


def peer_row(script, *, error=1e-6, plain_error=1e-6):
    return script("peers").PeerRow("peer", (100.0, 120.0, 90.0), 4, error, plain_error, 1.5)


def test_peers_have_a_direct_and_a_chained_ratio(script):
    """Direct is wall clock over wall clock (100 / 2); chained goes through plain hooks in both processes (1.5 × 40)."""
    assert script("peers").ratios(peer_row(script), own_rows()) == (50.0, 60.0)


@pytest.mark.parametrize("errors", [{"error": 0.1}, {"plain_error": 0.1}, {"error": np.nan}, {"plain_error": np.nan}])
def test_peers_with_other_numbers_have_no_ratio(script, errors):
    """A peer that differs, plain hooks that differ beside it, or NaN: no ratio, and the run fails."""
    row = peer_row(script, **errors)
    assert script("peers").ratios(row, own_rows()) == (None, None)
    case = script("sweep").Case("tiny", "resid.pre", 1, "one", 5, 1.0, own_rows(), (row,))
    assert script("sweep").differ(case)
    assert [cells[2:4] for cells in script("tables").peer_rows(case)] == [("differs", "differs")]


def test_a_run_fails_if_plain_hooks_differ(script):
    """The script's exit status says so."""
    case = script("sweep").Case("tiny", "resid.pre", 1, "one", 5, 1.0, own_rows(plain_ratio=None), (peer_row(script),))
    assert script("sweep").differ(case)
    good = script("sweep").Case("tiny", "resid.pre", 1, "one", 5, 1.0, own_rows(), (peer_row(script),))
    assert not script("sweep").differ(good)


def test_a_peers_line_has_its_spread_or_says_that_numbers_differ(script):
    """Ratios with the least and the most of the repetitions; without equal numbers no ratio at all."""
    peers = script("peers")
    good = peers.told(peer_row(script), own_rows(), "1.0")
    assert (good["direct"], good["least"], good["most"], good["chained"]) == (50.0, 45.0, 60.0, 60.0)
    words = "p 1.0, resid: 50× (45–60), chained 60×, difference 1e-06"
    assert peers.line({"peer": "p", "job": "resid", **good}) == words
    bad = peers.told(peer_row(script, error=0.5), own_rows(), "1.0")
    assert bad["direct"] is None
    assert peers.line({"peer": "p", "job": "resid", **bad}) == "p 1.0, resid: other numbers (difference 5.0e-01)"


def test_a_peers_answer_is_extrapolated_and_checked(script):
    """Seconds of 4 sites stand for 45, plain hooks' are taken a site, and one wrong value is found."""
    import crosspatch

    shapes, peers = script("shapes"), script("peers")
    model = shapes.open_shape(shapes.Build("tiny"))
    task = shapes.make_task("second", pairs=2, length=15, vocab=model.vocab_size)
    effects = crosspatch.patch(model, task, sites="resid.pre")
    rows = [20, 31, 9, 40]
    values = (effects.base + effects.raw)[rows]
    case = peers.PeerCase(task, effects, [effects.sites[row] for row in rows])
    answer = {"values": values.tolist(), "plain_values": values[:2].tolist()}
    answer |= {"seconds": [4.0, 8.0], "plain_seconds": [1.0, 2.0]}
    row = peers.peer_row("peer", case, answer)
    assert (row.seconds, row.plain_ratio) == ((45.0, 90.0), 2.0)
    assert max(row.error, row.plain_error) < 1e-6
    answer["values"][3][1] += 1
    assert peers.peer_row("peer", case, answer).error > 0.01


def test_a_peers_estimates_are_compared_one_by_one(script):
    """Equal tables get ratios of the same repetition; one wrong head, a missing site or NaN gets none."""
    peers, shapes = script("peers"), script("shapes")
    model = shapes.open_shape(shapes.Build("tiny"))
    given = argparse.Namespace(texts="second", pairs=2, length=9)
    case = peers.estimate_case(model, given)
    effects, values = case.case.effects, {}
    for kind in peers.ESTIMATED:
        table = np.zeros((3, 2, 9, model.anatomy.heads if kind == "attn.head" else 1))
        for site, row in zip(effects.sites, effects.raw, strict=True):
            if site.kind == kind:
                table[site.layer, :, site.position, site.unit or 0] = row
        values[kind] = table
    seconds = {"peer": [4.0, 9.0], "frozen": [2.0, 3.0], "own": [2.0, 3.0]}
    bad = {**values, "attn.head": values["attn.head"] * 1.01}
    good, other = peers.estimates_told(case, {"values": {"peer": values, "frozen": bad}, "seconds": seconds}, "1.0")
    assert (good["direct"], good["least"], good["most"]) == (2.5, 2.0, 3.0)
    assert good["difference"] == 0
    assert other["direct"] is None
    assert other["difference"] == pytest.approx(0.01)
    for lost in (values["mlp.out"][:, :, :5], np.full_like(values["mlp.out"], np.nan)):
        lacking = {**values, "mlp.out": lost}
        result = {"values": {"peer": lacking, "frozen": lacking}, "seconds": seconds}
        assert all(row["direct"] is None for row in peers.estimates_told(case, result, "1.0"))


def test_ratios_have_digits_that_noise_leaves(script):
    """One digit behind the point below ten, none above, and no powers of ten."""
    assert [script("peers").digits(ratio) for ratio in (0.94, 9.4, 114.2)] == ["0.9", "9.4", "114"]


def run(*options):
    command = [sys.executable, str(BENCH / "sweep.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_routes_are_timed_and_checked(script, tmp_path, capsys):
    """Top-down, with each kind of pruning, against the full graph, whose importances are the same."""
    out, timed = tmp_path / "routes.json", script("routes")
    timed.main(["--shape", "tiny", "--lengths", "7", "--prompts", "2", "--repeat", "1", "--out", str(out)])
    told = json.loads(out.read_text())
    assert [row["way"] for row in told["rows"]] == [timed.FORWARD, *timed.PRUNED, timed.PUBLISHED, timed.FULL]
    parts = {row["way"]: row["parts"] for row in told["rows"]}
    assert parts[timed.FULL] == 2 * 3 * 4 * 7 * 8 // 2
    assert parts[timed.FULL] > parts["routes, no pruning"] >= parts[timed.ROUTES]
    assert max(told["errors"].values()) < 1e-4
    assert "× routes" in capsys.readouterr().out


def test_any_model_is_timed_and_checked(script, tmp_path, capsys):
    """Whole forwards with hooks, those that are handed the encoder's outputs, and `patch_any`: the same numbers."""
    out, timed = tmp_path / "any.json", script("any_model")
    sizes = ["--tokens", "5", "--frames", "2", "--rows", "3", "--batches", "2", "--repeat", "2"]
    timed.main(["--shape", "tiny", *sizes, "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    decoder = [(kind.name, way) for kind in timed.KINDS[:3] for way in (timed.WHOLE, timed.HANDED, timed.OURS)]
    encoder = [("encoder.resid.post", way) for way in (timed.WHOLE, timed.OURS)]
    assert [(row["kind"], row["way"]) for row in rows] == decoder + encoder
    assert [row["sites"] for row in rows if row["way"] == timed.OURS] == [2 * 5, 2 * 4, 2 * 5, 2 * 2]
    assert [row["timed"] for row in rows if row["way"] == timed.HANDED] == [6, 6, 6]
    assert all(row["error"] < 1e-4 and row["ratio"] and row["cpu_ratio"] and len(row["cpu"]) == 2 for row in rows)
    assert "runs/s" in capsys.readouterr().out


def test_hooks_that_write_elsewhere_get_no_ratio(script, monkeypatch, tmp_path):
    """The script's exit status says so."""
    timed = script("any_model")
    moved = timed.Kind("decoder.mlp.out", "model.decoder.layers.{}.encoder_attn")
    monkeypatch.setattr(timed, "KINDS", (moved,))
    out = tmp_path / "any.json"
    with pytest.raises(SystemExit, match="3"):
        timed.main(["--shape", "tiny", "--tokens", "5", "--repeat", "1", "--out", str(out)])
    rows = {row["way"]: row["ratio"] for row in json.loads(out.read_text())["rows"]}
    assert rows == {timed.WHOLE: None, timed.HANDED: None, timed.OURS: 1.0}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_a_quick_run_measures_everything(tmp_path):
    """One run on a tiny model: equal numbers in each case, memory, growth, the machine, tables and JSON."""
    out = tmp_path / "sweep.json"
    sites = ("--sites", "resid.pre", "attn.head")
    done = run("--quick", "--no-peers", "--shape", "tiny", *sites, "--threads", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in ("one batch a layer", "chained", "peak memory", "growth", "written:"))
    found = json.loads(out.read_text())
    assert [(case["sites"], case["texts"]) for case in found["cases"]] == [
        (sites, texts) for sites in ("resid.pre", "attn.head") for texts in ("second", "one")
    ]
    for case in found["cases"]:
        assert [row["way"] for row in case["rows"]] == ["one pass", "one forward a site", "one batch a layer"]
        assert all(row["error"] <= 1e-3 and row["ratio"] and len(row["seconds"]) == 2 for row in case["rows"])
        assert case["rows"][0]["limit_share"] > 0
    assert [curve["axis"] for curve in found["growth"]] == ["pairs", "length", "layers"]
    # Work grows in proportion to pairs, faster than prompts and layers.
    assert found["growth"][0]["work_exponent"] == pytest.approx(1)
    assert min(curve["work_exponent"] for curve in found["growth"][1:]) > 1.2
    assert all(each["peak"] >= each["loaded"] > 1e8 for each in found["memory"]["tiny"])
    assert found["machine"]["threads"] == 1
    assert found["provenance"]["versions"]["torch"]
    assert found["settings"]["cells"] == 4


def test_peers_are_for_the_processor_in_single_precision():
    """Elsewhere the script says what to add."""
    done = run("--device", "cuda")
    assert done.returncode == 2
    assert "add --no-peers" in done.stderr


def test_path_patching_is_timed_and_checked(script, tmp_path, capsys):
    """Three ways give equal numbers on a tiny model, at the last token and at all; the result is written."""
    for at in ("end", "all"):
        out = tmp_path / f"{at}.json"
        script("paths").main(
            ["--shape", "tiny", "--at", at, "--pairs", "2", "--length", "9", "--repeat", "1", "--out", str(out)]
        )
        rows = json.loads(out.read_text())["rows"]
        assert {row["way"] for row in rows} == {"single tokens", "whole rows", "plain hooks"}
        assert all(row["ratio"] is not None and row["error"] < 1e-4 for row in rows)
    assert "plain hooks" in capsys.readouterr().out


def test_estimates_are_timed_and_checked(script, tmp_path, capsys):
    """Every estimator and exact patching in units of a plain forward and backward; AtP equals its gradients."""
    out, estimates = tmp_path / "estimates.json", script("estimates")
    sizes = ["--shape", "tiny", "--pairs", "2", "--length", "9", "--repeat", "1", "--no-memory"]
    estimates.main([*sizes, "--out", str(out)])
    told = json.loads(out.read_text())
    ways = [estimates.UNIT, estimates.WEIGHTS, *estimates.WAYS, estimates.EXACT]
    assert [(row["task"], row["way"]) for row in told["rows"]] == [(t, way) for t in ("one", "second") for way in ways]
    assert all(row["units"] == 1.0 for row in told["rows"] if row["way"] == estimates.UNIT)
    assert all(row["units"] > 0 and len(row["seconds"]) == 1 for row in told["rows"])
    assert max(told["errors"].values()) < 1e-3
    assert "AtP*" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_a_peak_is_what_a_call_holds_at_once(script):
    """64 MiB that are written and given back count."""
    assert 60 << 20 < script("estimates").peak_of(lambda: np.ones(8 << 20), "cpu") < 80 << 20


def test_a_unit_leaves_the_weights_as_they_were(script):
    """Gradients of weights are taken if asked, and none stay; those at the embeddings are the same either way."""
    estimates, shapes = script("estimates"), script("shapes")
    model = shapes.open_shape(shapes.Build("tiny"))
    task = shapes.make_task("one", pairs=2, length=9, vocab=model.vocab_size)
    first = next(model.module.parameters()).requires_grad_(False)
    asked = [weight.requires_grad for weight in model.module.parameters()]
    frozen, whole = (estimates.plain(model, task, weights=weights) for weights in (False, True))
    assert all((a - b).abs().max() <= 1e-5 * a.abs().max() for a, b in zip(frozen, whole, strict=True))
    assert [weight.requires_grad for weight in model.module.parameters()] == asked
    assert not first.requires_grad
    assert all(weight.grad is None for weight in model.module.parameters())
