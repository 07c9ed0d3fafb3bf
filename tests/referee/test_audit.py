"""Audit: planted truths are named, results are kept on disk, and everything can be read."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from rich.console import Console

import crosspatch as xp
from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.referee import Audit, Setting
from crosspatch.referee.compare import FEWEST
from crosspatch.referee.grid import GridRun
from planted import backup, gates, negative
from referee.made import NEGATIVE, A, B, C, audit_of, grid, heads

BUILDERS = {
    "AND": gates.build_and,
    "OR": gates.build_or,
    "ADDER": gates.build_adder,
    "backup": backup.build,
    "negative": negative.build,
}
INPUTS = {"attn.head[0, 0]@all", "attn.head[0, 1]@all"}
FIRST, BACKUP = "attn.head[0, 0]@all", "attn.head[1, 0]@all"


@cache
def audited(name):
    planted = BUILDERS[name]()
    return xp.audit(xp.open_model(planted.module), planted.task(), plan=xp.AuditPlan(draws=2))


def rules(found):
    return {finding.rule: finding for finding in found.findings}


@pytest.mark.parametrize("name", ["AND", "OR", "ADDER"])
def test_gates_are_named(name):
    """The right gate at the two heads that read its inputs, and no other gate."""
    found = rules(audited(name))
    assert {rule for rule in found if rule.startswith("gate")} == {f"gate.{name}"}
    assert set(found[f"gate.{name}"].sites) == INPUTS


def test_backup_is_named():
    """The first head writes all and its loss costs a quarter; the backup itself is no finding of the rule."""
    found = rules(audited("backup"))
    assert found["backup"].sites == (FIRST,)
    assert f"{FIRST} (direct 1.00, total 0.25)" in found["backup"].text
    assert FIRST in found["gate.OR"].sites
    assert all("backup" not in rules(audited(name)) for name in BUILDERS if name != "backup")


def test_saturation_names_the_negative_head():
    found = rules(audited("negative"))
    assert found["saturation"].sites == ("attn.head[0, 1]@all",)
    assert "0.0" in found["saturation"].text
    assert all("saturation" not in rules(audited(name)) for name in BUILDERS if name != "negative")


def test_the_corrupt_embeddings_of_planted_tokens_ask_the_same_question():
    """A planted token's zero embedding is its bit at 0: the corruption breaks the behaviour as replacing does."""
    found = audited("AND")
    assert {s.corruption for s in found.telling} >= {"replace", "zero"}


# what is counted


def test_void_settings_count_nowhere():
    run = grid(corruptions=("replace", "zero"))
    void = {s: heads({NEGATIVE: -0.9}, gap=0.02, direction=s.direction) for s in run.effects if s.corruption == "zero"}
    found = audit_of(replace(run, effects={**run.effects, **void}))
    assert len(found.settings) == 8
    assert len(found.telling) == 4
    assert set(found.found) == set(found.telling)
    assert found.correlations.shape == (4, 4)
    assert NEGATIVE not in {row.site for row in found.agreement()}
    assert {row.settings for row in found.agreement()} == {4}


def test_steps_and_other_questions_are_not_counted_against_a_site():
    """Accuracy that does not move is no evidence that a site does not matter."""
    metrics = ("logit_diff", "prob", "accuracy")
    found = audit_of(grid(lambda s: {C: 0.9} if s.metric == "accuracy" else {A: 0.9, B: 0.8}, metrics=metrics))
    assert len(found.telling) == 12
    assert len(found.alike) == 8
    assert {row.site: row.finders for row in found.agreement()} == {A: 8, B: 8}
    assert "2 sites are found by nine in ten of 8 settings" in found.verdict()
    only = audit_of(grid({A: 0.9}, metrics=("accuracy",)))
    assert len(only.alike) == 4  # with nothing else to count, they are counted


def test_agreement_counts_finders_and_signs():
    def strong(s):
        sign = -1 if s.metric == "prob" and s.direction == "noise" else 1
        return {A: 0.9, B: 0.9 * sign, **({C: -0.9} if s.corruption == "gaussian" else {})}

    rows = {row.site: row for row in audit_of(grid(strong)).agreement()}
    assert [(rows[s].finders, rows[s].helping, rows[s].sign) for s in (A, B, C)] == [
        (8, 8, "helps"),
        (8, 6, "mixed"),
        (4, 0, "hurts"),
    ]
    assert rows[C].share == 0.5
    assert [row.site for row in audit_of(grid(strong)).agreement()] == [A, B, C]


def test_verdict():
    agreed = audit_of(grid({A: 0.9})).verdict()
    assert f"1 site is found by nine in ten of 8 settings: {A}; no other by any." in agreed
    assert "Too few sites" in agreed
    many = {str(s): 0.1 * (i + 1) for i, s in enumerate(heads({}).sites[:: 40 // (FEWEST + 1)])}
    assert "median 1.00, lowest 1.00" in audit_of(grid(many)).verdict()
    split = audit_of(grid(lambda s: {A: 0.9} if s.corruption == "replace" else {B: 0.9})).verdict()
    assert "No site is found by nine in ten of 8 settings; 2 others depend on how you patch" in split
    mixed = audit_of(grid(lambda s: {A: 0.9 if s.metric == "prob" else -0.9})).verdict()
    assert "1 other depends" in mixed


def test_nothing_breaks():
    run = grid({A: 0.5}, gap=0.0)
    found = audit_of(run)
    assert "No corruption breaks the behaviour" in found.verdict()
    assert rules(found)["breaks"]
    assert found.agreement() == ()
    assert found.table() == []
    assert "Audit of 8 settings" in repr(found)


def test_an_audit_needs_effects():
    with pytest.raises(BadInput, match="one setting"):
        Audit(GridRun({}, None, 0.0, 0.0))


def test_cost():
    text = audit_of(grid()).cost()
    assert "8 settings" in text
    assert "4 sweeps" in text
    assert "30 forwards, 2.00 times" in text


# files


def same_effects(one, two):
    assert one.sites == two.sites
    np.testing.assert_array_equal(one.raw, two.raw)
    assert (one.direction, one.metric) == (two.direction, two.metric)


def test_what_is_saved_is_loaded(tmp_path):
    first = audited("backup")
    folder = first.save(tmp_path / "audit")
    again = Audit.load(folder)
    assert again.settings == first.settings
    for setting in first.settings:
        same_effects(again.effects[setting], first.effects[setting])
    same_effects(again.run.direct, first.run.direct)
    assert (again.run.forwards, again.run.single) == (first.run.forwards, first.run.single)
    assert again.run.left_out == first.run.left_out
    assert again.findings == first.findings
    assert again.verdict() == first.verdict()
    assert again.provenance["settings"]["task"] == first.provenance["settings"]["task"] == "backup"
    index = json.loads((folder / "audit.json").read_text())
    assert [f["rule"] for f in index["findings"]] == [f.rule for f in first.findings]


def test_a_corruption_of_any_name_can_be_saved(tmp_path):
    run = grid(corruptions=("replace", "../S1+IO: a/b"))
    folder = audit_of(run).save(tmp_path / "deep" / "audit")
    assert Audit.load(folder).settings == tuple(run.effects)
    assert {path.name for path in tmp_path.iterdir()} == {"deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"audit"}


def test_an_audit_without_direct_effects_can_be_saved(tmp_path):
    assert Audit.load(audit_of(grid()).save(tmp_path)).run.direct is None


def damage_json(change):
    def apply(folder):
        index = json.loads((folder / "audit.json").read_text())
        change(index)
        (folder / "audit.json").write_text(json.dumps(index))

    return apply


def lose_part(folder):
    part = next(path for path in folder.iterdir() if path.is_dir())
    for file in part.iterdir():
        file.unlink()
    part.rmdir()


def cut_tensors(folder):
    file = next(folder.glob("*/*.safetensors"))
    file.write_bytes(file.read_bytes()[:40])


DAMAGES = {
    "no json": lambda folder: (folder / "audit.json").write_text("{"),
    "no text": lambda folder: (folder / "audit.json").write_bytes(b"\xff\xfe"),
    "a list": lambda folder: (folder / "audit.json").write_text("[]"),
    "another thing": damage_json(lambda index: index.update(what="effects")),
    "no provenance": damage_json(lambda index: index.pop("provenance")),
    "no settings": damage_json(lambda index: index.update(settings=[], folders=[])),
    "a setting too many": damage_json(lambda index: index["settings"].append(index["settings"][0])),
    "an odd setting": damage_json(lambda index: index["settings"][0].update(colour="red")),
    "cost in words": damage_json(lambda index: index.update(forwards="many")),
    "a folder elsewhere": damage_json(lambda index: index["folders"].__setitem__(0, "../other")),
    "direct effects that are not there": damage_json(lambda index: index.update(direct=True)),
    "a lost part": lose_part,
    "cut tensors": cut_tensors,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told(tmp_path, damage):
    folder = audit_of(grid()).save(tmp_path / "audit")
    Audit.load(folder)
    DAMAGES[damage](folder)
    with pytest.raises(CorruptFile):
        Audit.load(folder)


def test_no_audit(tmp_path):
    with pytest.raises(BadInput, match="no audit"):
        Audit.load(tmp_path)


# views


def test_repr_names_every_finding():
    found = audited("AND")
    text = repr(found)
    assert text.startswith(f"Audit of {len(found.settings)} settings\n")
    assert found.verdict() in text
    assert text.count("\n! ") == len(found.findings)


def test_rich_view():
    found = audited("backup")
    console = Console(width=200, record=True)
    with console.capture() as captured:
        console.print(found)
    text = " ".join(captured.get().split())
    assert "[gate.OR]" in text
    assert "[backup]" in text
    assert FIRST in text
    assert all(left.split(":")[0] in text for left in found.run.left_out)


def test_html_view_is_escaped():
    run = grid(corruptions=("replace", "<b>other"), n=3)
    void = {s: heads({}, gap=0.001, n=3) for s in run.effects if s.corruption != "replace"}
    html = audit_of(replace(run, effects={**run.effects, **void}))._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;other" in html
    assert "breaks" in html
    assert A in html
    assert "No rule of the referee fired" in audit_of(grid())._repr_html_()


def test_table_shows_the_main_effect():
    found = audit_of(grid({A: 0.9, B: -0.4}))
    assert found.table() == [(A, "8 of 8", "helps", "0.90"), (B, "8 of 8", "hurts", "-0.40")]
    assert len(found.table(1)) == 1
    assert found.main == Setting("replace", "denoise", "logit_diff")


def test_windows_are_kept_with_the_effects():
    """A planted model of one layer has no window of three: that is named, not hidden."""
    assert any("windows of 3 layers" in left for left in audited("AND").run.left_out)
