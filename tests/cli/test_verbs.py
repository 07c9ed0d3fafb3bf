"""`sites`, `tasks`, `doctor` and `bench` on a tiny model: what they print and what their exit codes say."""

import json
from dataclasses import replace

import pytest
import torch

from crosspatch.cli.sites import carrier, rows, tree
from crosspatch.models import Check, open_model
from crosspatch.tasks import TASKS


@pytest.fixture(scope="module")
def model(tiny):
    """Open the tiny model once."""
    return open_model(tiny)


def test_sites_name_shapes_and_modules(document, tiny):
    """Each kind has its selection, its shape in axis names, its module and its TransformerLens name."""
    told = document("sites", tiny)
    by_kind = {row["kind"]: row for row in told["sites"]}
    head = by_kind["attn.head"]
    assert head["selection"] == "attn.head[0..2, 0..3]"
    assert head["shape"] == "[batch, pos, d_head=8]"
    assert (head["side"], head["module"]) == ("input", "model.layers.L.self_attn.o_proj")
    assert head["transformer_lens"] == "blocks.L.attn.hook_z"
    assert by_kind["attn.k"]["units"] == 2
    assert by_kind["mlp.hidden"]["selection"] == "mlp.hidden[0..2, 0..47]"
    assert by_kind["embed"]["transformer_lens"] == "hook_embed"
    assert by_kind["attn.in"]["transformer_lens"] is None
    assert (told["layers"], told["d_model"], told["refused"]) == (3, 32, [])


def test_sites_list_all_that_the_model_offers(model):
    """No kind is left out, and each shape is the one that a captured activation has."""
    listed = {row["kind"]: row for row in rows(model.anatomy)}
    assert set(listed) == set(model.anatomy.kinds())
    for kind, row in listed.items():
        axes = [axis.partition("=") for axis in row["shape"].strip("[]").split(", ")]
        assert [name for name, _, _ in axes[:2]] == ["batch", "pos"]
        if kind not in ("logits", "attn.pattern"):
            assert captured_width(model, kind) == (int(axes[2][2]) if len(axes) > 2 else 1)


def captured_width(model, kind):
    """Give the width of one site of a kind, as a forward of the model has it."""
    from crosspatch.engine import capture

    unit = ", 0" if kind in model.anatomy.units() else ""
    site = kind if kind == "embed" else f"{kind}[0{unit}]"
    with capture(model, site) as seen:
        model.module(torch.tensor([[1, 5, 6, 7]]))
    return int(seen[site].shape[-1])


def test_sites_are_two_lines_each_in_a_tree(call, tiny):
    """In a narrow pipe, the tree keeps within 80 columns and ends with the logits."""
    result = call("sites", tiny)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("tiny-llama · llama · 3 layers")
    assert "│   ├── attn.head[0..2, 0..3]" in result.stdout
    assert "input of self_attn.o_proj  =  blocks.L.attn.hook_z" in result.stdout
    assert max(map(len, lines)) <= 80
    assert lines[-1].strip().startswith("output of lm_head")


def test_sites_give_the_reason_of_a_refusal(model):
    """A kind that the model cannot offer stands at the end of the tree, with the reason."""
    refused = replace(model.anatomy, refused={"attn.head": "the heads are hidden"})
    last = tree(replace(model, anatomy=refused)).children[-1]
    assert str(last.label) == "attn.head: refused, the heads are hidden"
    assert "attn.head" not in {row["kind"] for row in rows(refused)}


def test_carrier_of_a_block_is_the_block(model):
    """The residual stream is the block's own input and output."""
    assert carrier(model.anatomy, "resid.pre") == ("input", "")
    assert carrier(model.anatomy, "resid.post") == ("output", "")


def test_tasks_are_listed_with_their_options(call, document):
    """Without a model, each task has its summary and its options with their values."""
    told = {one["task"]: one for one in document("tasks")["tasks"]}
    assert list(told) == list(TASKS)
    assert len(told) > 10
    assert told["ioi"]["options"][0]["values"] == ["S2", "S1+IO", "ABC"]
    text = call("tasks", "capitals").stdout
    assert "known_only=false|true" in text
    assert "ioi" not in text.split("check one")[0]


def test_task_check_previews_and_counts(call, tiny):
    """With a model, a named task shows aligned pairs, its accuracy and its mean logit differences."""
    result = call("tasks", "ioi", "--check", tiny, "--n", 4)
    assert "position" in result.stdout
    assert "^" in result.stdout
    assert "of 4 clean prompts right" in result.stdout.splitlines()[-1]
    assert "position" not in call("tasks", "ioi", "--model", tiny, "--n", 4, "--no-preview").stdout


def test_task_check_is_that_of_the_library(call, model, tiny):
    """The document gives task, n, accuracy and logit_diff as `crosspatch.tasks.check` does; below a half, exit 3."""
    from crosspatch.tasks import check, get_task

    for seed in range(4):
        expected = check(model, get_task("ioi", model, n=5, seed=seed))
        result = call("tasks", "ioi", "--check", tiny, "--n", 5, "--seed", seed, "--json")
        (told,) = json.loads(result.stdout)["tasks"]
        assert (told["task"], told["n"]) == ("ioi", 5)
        assert told["accuracy"] == pytest.approx(expected.accuracy)
        assert told["logit_diff"] == pytest.approx(expected.logit_diff, rel=1e-5)
        assert result.exit_code == (0 if expected.accuracy >= 0.5 else 3)


@pytest.mark.parametrize("case", [(4, True, 0), (2, True, 0), (1, True, 3), (4, False, 3)])
def test_task_check_exit_code(call, tiny, monkeypatch, case):
    """A check fails below half of the clean prompts, or where the pairs are not aligned."""
    from crosspatch.tasks import TaskCheck

    right, aligned, code = case
    found = TaskCheck("ioi", 4, aligned, right / 4, 1.0, -1.0, tuple(range(4 - right)))
    monkeypatch.setattr("crosspatch.tasks.check", lambda model, task: found)
    result = call("tasks", "ioi", "--check", tiny, "--n", 4)
    assert result.exit_code == code
    assert ("✓" if code == 0 else "✗") in result.stdout
    assert ("check failed" in result.stderr) == (code == 3)


def test_all_tasks_are_checked_without_a_name(call, tiny):
    """Without a name, every task is checked, without previews."""
    result = call("tasks", "--check", tiny, "--n", 3, "--json")
    assert result.exit_code in (0, 3)
    told = {one["task"]: one for one in json.loads(result.stdout)["tasks"]}
    assert list(told) == list(TASKS)
    assert (told["ioi"]["n"], told["ioi"]["problem"]) == (3, None)
    lines = call("tasks", "--check", tiny, "--n", 3).stdout.splitlines()
    assert lines[0].split()[:3] == ["task", "n", "accuracy"]
    for name, one in told.items():
        row = next(line for line in lines if line.split()[:1] == [name])
        assert row.endswith(one["verdict"])
        assert (f"{name}: {one['problem']}" in lines) == (one["problem"] is not None)


def test_doctor_checks_the_installation(call, document):
    """Without a model: versions, device, threads, cache and extras; all that is needed is there."""
    told = document("doctor")
    assert {"torch", "transformers", "crosspatch", "python"} <= set(told["versions"])
    assert told["threads"] >= 1
    assert all(check["ok"] for check in told["checks"])
    assert {"torch", "pandas", "gemma-3-270m", "cache writable"} <= {check["name"] for check in told["checks"]}
    assert call("doctor").stdout.count("✓") == len(told["checks"])


def test_doctor_examines_a_model(call, document, tiny):
    """With a model: the identities of exact patching, each with its detail."""
    told = document("doctor", tiny)
    names = [check["name"] for check in told["checks"]]
    assert {"patch all = source run", "sweep = one forward a patch", "model untouched"} <= set(names)
    assert all(set(check) == {"name", "ok", "detail"} for check in told["checks"])
    assert told["versions"]["torch"]
    assert "✓ model untouched" in call("doctor", tiny).stdout


def test_doctor_exits_with_3_when_a_check_fails(call, document, tiny, monkeypatch):
    """A check that fails is marked, named on standard error, and exits with 3."""
    found = (Check("causal", True, "yes"), Check("patch all = source run", False, "largest relative error 0.5"))
    monkeypatch.setattr("crosspatch.engine.doctor.examine", lambda model: found)
    result = call("doctor", tiny)
    assert result.exit_code == 3
    assert "✗ patch all = source run: largest relative error 0.5" in result.stdout
    assert "check failed: patch all = source run" in result.stderr
    assert [check["ok"] for check in document("doctor", tiny, code=3)["checks"]] == [True, False]


def test_bench_compares_three_ways(call, document, tiny):
    """The sweep and the two usual ways are timed, and their numbers are equal."""
    told = document("bench", tiny, "--n", 2, "--sites", "resid.pre@end")
    assert [row["way"] for row in told["rows"]] == ["one pass", "one forward a site", "one batch a layer"]
    assert all(row["equal"] for row in told["rows"])
    assert told["rows"][0]["limit_share"] > 0
    text = call("bench", tiny, "--n", 2, "--sites", "resid.pre@end").stdout
    assert "one forward a site" in text
    assert "of the speed of bare matrix products" in text


def test_bench_exits_with_3_when_numbers_differ(call, tiny, monkeypatch):
    """A way with other numbers than the sweep's has no ratio, is marked, and exits with 3."""
    from crosspatch.engine.measure import Row

    same = Row("one pass", (1.0,), 9, 9, 0.0, 1e-3, 1.0, flops=10, limit=20.0)
    rows = [same, Row("one forward a site", (9.0,), 9, 9, 0.7, 1e-3, None)]
    monkeypatch.setattr("crosspatch.engine.measure.compare", lambda model, task, *, sites: rows)
    result = call("bench", tiny, "--n", 2)
    assert result.exit_code == 3
    assert "DIFFERS" in result.stdout
    assert "check failed: one forward a site" in result.stderr
