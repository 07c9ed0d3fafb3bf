import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from builders import make_effects, make_examples, small_effects, with_holes
from crosspatch.core.errors import BadInput, CorruptFile, MissingExtra
from crosspatch.engine.effects import Effects
from crosspatch.engine.joining import concat
from crosspatch.sites import Site


def same(first, second):
    for name in ("raw", "base", "source"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert getattr(second, name).dtype == np.float32
    plain = (
        "sites",
        "examples",
        "direction",
        "metric",
        "metric_unit",
        "model",
        "task",
        "layers",
        "warnings",
        "provenance",
    )
    assert [getattr(first, name) for name in plain] == [getattr(second, name) for name in plain]


def test_saved_effects_load_as_they_were(tmp_path):
    effects = replace(with_holes(make_effects(layers=3, heads=2, n=5)), warnings=("é",))
    extra = (
        Site("embed", None, None, "S2+1"),
        Site("attn.v", 1, None, "all"),
        Site("logits"),
        Site("resid.mid", 0, None, -1),
    )
    effects = replace(effects, sites=effects.sites + extra, raw=np.concatenate([effects.raw, effects.raw[:4]]))
    folder = effects.save(tmp_path / "run")
    same(effects, Effects.load(folder))
    assert json.loads((folder / "meta.json").read_text())["meta"]["what"] == "effects"


@pytest.mark.parametrize(
    "damage",
    [
        lambda meta: meta.pop("sites"),
        lambda meta: meta.pop("metric"),
        lambda meta: meta.update(what="circuit"),
        lambda meta: meta["sites"]["kind"].pop(),
        lambda meta: meta["sites"]["kind"].__setitem__(0, "no.such.kind"),
        lambda meta: meta["examples"].pop(),
        lambda meta: meta["examples"][0].pop("right"),
        lambda meta: meta.update(unknown=1),
    ],
)
def test_a_folder_of_something_else_is_corrupt(tmp_path, damage):
    folder = make_effects(layers=2, n=3).save(tmp_path)
    head = json.loads((folder / "meta.json").read_text())
    damage(head["meta"])
    (folder / "meta.json").write_text(json.dumps(head))
    with pytest.raises(CorruptFile, match="holds no effects as crosspatch writes them"):
        Effects.load(folder)


def test_two_sweeps_of_a_task_join():
    whole = make_effects(layers=3, n=6)
    first, second = whole.only(range(60)), replace(whole.only(range(50, 135)), warnings=("second",))
    joined = first.merge(second)
    assert joined.sites == whole.sites
    np.testing.assert_array_equal(joined.raw, whole.raw)
    assert joined.warnings == ("second",)
    assert joined.provenance["seed"] == 0
    assert len(joined.provenance["parts"]) == 2


def test_holes_of_one_sweep_are_filled_from_the_other():
    effects = make_effects(layers=2, n=4)
    raw = effects.raw.copy()
    raw[3:9] = np.nan
    np.testing.assert_array_equal(concat([replace(effects, raw=raw), effects]).raw, effects.raw)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "other"}, "different model cannot be joined: 'gemma-3-270m' and 'other'"),
        ({"direction": "noise"}, "different direction"),
        ({"metric": "kl"}, "different metric"),
        ({"examples": tuple(reversed(make_examples(4)))}, "different examples cannot be joined. Sweep"),
        ({"base": np.ones(4, np.float32)}, "the base runs of these effects differ"),
        ({"raw": np.ones((90, 4), np.float32)}, "has different effects in the sweeps to join"),
    ],
)
def test_sweeps_that_do_not_match_are_not_joined(change, words):
    effects = make_effects(layers=2, n=4)
    with pytest.raises(BadInput, match=words):
        effects.merge(replace(effects, **change))


def test_joining_nothing_is_refused():
    with pytest.raises(BadInput, match="give one at least"):
        concat([])


def test_a_frame_has_a_row_a_site():
    effects = make_effects(layers=2, heads=2, n=5)
    frame = effects.to_frame()
    assert len(frame) == len(effects.sites)
    row = frame[frame.site == "attn.head[1, 0]@end"].iloc[0]
    assert (row.kind, row.layer, row.unit, row.position, row.n) == ("attn.head", 1, 0, "end", 5)
    assert frame[frame.kind == "resid.pre"].unit.isna().all()
    np.testing.assert_allclose(frame.effect, effects.mean())


def test_without_pandas_the_frame_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pip install 'crosspatch\[pandas\]'"):
        small_effects().to_frame()
