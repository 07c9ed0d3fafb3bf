"""The parts of the speech study: what they count and how they judge, on numbers made by hand; no model is run."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from crosspatch.core.errors import BadInput, MissingExtra
from crosspatch.lenses import Probing
from crosspatch.lenses.probe_data import read_question
from crosspatch.lenses.probe_split import split_examples
from crosspatch.studies import Finding, Sizes, study_speech
from crosspatch.studies.speech import context, corpus, decoder, hearing, maps, probes, repetition
from crosspatch.studies.speech.ear import thirds
from crosspatch.studies.speech.part import Part, kept, refuse_loss
from crosspatch.studies.study import verdict

END = 9


def test_circles_are_told_by_no_end_or_too_many_turns():
    often = int(1.5 * repetition.TIMES)
    assert repetition.runs_in_circles([1, 2, 3], END)
    assert not repetition.runs_in_circles([1, 2, 3, END, -1], END)
    assert not repetition.runs_in_circles([7] * often + [END], END)
    assert repetition.runs_in_circles([7] * (often + 1) + [END], END)
    assert repetition.runs_in_circles([1, *[7, 8] * (often + 1), END], END)


def test_words_of_a_loop_are_counted_whatever_they_begin_with():
    assert repetition._looped("Well, no, no, no, no, n") == ["no"]
    assert repetition._count(["no", "no", "yes", "no"], ["no"]) == 3
    assert repetition._count(["see", "you", "see", "you", "see"], ["you", "see"]) == 2
    assert repetition._count([], ["no"]) == 0
    assert repetition._count(["no"], []) == 0


def test_a_part_is_kept_and_measured_again_only_where_it_is_damaged(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return Part({"x": np.arange(3.0)}, {"told": "yes"})

    first = kept(tmp_path, "maps", {"seed": 0}, make)
    again = kept(tmp_path, "maps", {"seed": 0}, make)
    assert len(calls) == 1
    np.testing.assert_array_equal(first["x"], again["x"])
    assert again.facts == {"told": "yes", "settings": {"seed": 0}}
    (tmp_path / "maps" / "arrays.safetensors").write_bytes(b"cut short")
    kept(tmp_path, "maps", {"seed": 0}, make)
    assert len(calls) == 2
    kept(None, "maps", {"seed": 0}, make)
    assert len(calls) == 3


def test_a_part_of_another_question_is_not_replaced_and_one_of_an_older_version_is(tmp_path):
    part = Part({"x": np.arange(3.0)}, {})
    kept(tmp_path, "maps", {"seed": 0, "count": 6, "version": 1}, lambda: part)
    refuse_loss(tmp_path / "maps", {"seed": 0, "count": 6, "version": 2})
    refuse_loss(tmp_path / "nothing", {"seed": 0})
    with pytest.raises(BadInput, match=r"count 6, now 2.*another folder"):
        refuse_loss(tmp_path / "maps", {"seed": 0, "count": 2, "version": 1})
    newer = Part({"x": np.arange(4.0)}, {})
    assert len(kept(tmp_path, "maps", {"seed": 0, "count": 6, "version": 2}, lambda: newer)["x"]) == 4


def test_thirds_of_the_blocks():
    assert thirds(4) == ([1], [4])
    assert thirds(6) == ([1, 2], [5, 6])
    assert thirds(32) == (list(range(1, 12)), list(range(22, 33)))


def test_a_concept_is_scored_on_what_was_held_out_and_layers_are_compared_row_by_row():
    told = np.array([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [2, 1, 1, 1], [2, 1, 1, 2]], float)
    concept = probes.Concept(told, np.zeros_like(told), np.array([2, 1, 1, 2.0]), np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(concept.accuracy[0], told.sum(axis=1) / 6)
    value, low, high = concept.late_over_early()
    assert value == pytest.approx((told[4] - told[1]).sum() / 6)
    assert low <= value <= high


def judged(shift):
    """Judge word pairs whose states at the word move the choice by `shift`, give or take a little."""
    spread = np.linspace(-0.5, 0.5, 8)
    swaps = np.stack([np.stack([0 * spread, -shift + spread]), np.stack([0 * spread, shift + spread])])
    congruent = np.stack([2 + spread, -2 + spread])
    facts = {"words": [["a", "b"]] * 8, "contexts": [["c", "d"]] * 8, "heard": ["x", "y"], "depths": [0, 4]}
    arrays = {"acoustic": congruent, "congruent": congruent, "swaps": swaps}
    arrays |= {"mel": np.zeros((2, 80, 40)), "clips": np.zeros((2, 6400))}
    findings, section = context.tell(Part(arrays, facts))
    assert findings[0].value == pytest.approx(shift)
    assert findings[1].value == pytest.approx(4)
    assert len(section.figures) == 4
    return findings[0].verdict


def test_a_lean_of_the_states_at_the_word_decides_the_claim():
    assert judged(2.0) == "agrees"
    assert judged(-2.0) == "contradicts"
    assert judged(0.0) == "undecided"


def loops(left, kept_words):
    """Make a part of two layers and two heads whose outcomes are given by site."""
    sites = [f"decoder.{kind}.out[{layer}]@all" for kind in ("cross", "attn", "mlp") for layer in (0, 1)]
    heads = [f"decoder.cross.head[{layer}, {head}]@all" for layer in (0, 1) for head in (0, 1)]
    every = [*sites, *heads]
    one = {"base": ["no no"] * 8, "source": ["You"] * 8, "texts": [["no"] * 8] * len(every)}
    facts = {"tried": 24, "running": 9, "said": [["no", "slt"]] * 8, "texts": ["no"] * 8, "layers": 2, "heads": 2}
    facts |= {"noise": {"sites": every, **one}, "fewer": {"sites": sites, **one}}
    outcomes = np.array([[hit < left.get(site, 0) for hit in range(8)] for site in every])
    still = np.array([[hit < kept_words.get(site, 0) for hit in range(8)] for site in every])
    arrays = {"noise/left": outcomes, "noise/kept": still, "fewer/left": outcomes[:6], "fewer/kept": still[:6]}
    return Part({**arrays, "mel": np.zeros((80, 40)), "clip": np.zeros(6400)}, facts)


def test_the_best_parts_are_named_and_the_papers_shares_are_judged():
    part = loops(
        {"decoder.cross.out[1]@all": 8, "decoder.cross.head[0, 1]@all": 0, "decoder.mlp.out[0]@all": 3},
        {"decoder.mlp.out[0]@all": 2},
    )
    findings, section = repetition.tell(part)
    assert [each.verdict for each in findings] == ["agrees", "contradicts", *["no claim"] * 3]
    assert "decoder.cross.out[1]" in findings[0].said
    assert "decoder.mlp.out[0]" in findings[2].said
    assert [findings[i].value for i in (0, 2, 3, 4)] == [1.0, 3 / 8, 0.0, 2 / 8]
    layers = section.figures[1].panel
    assert layers.values[1].tolist() == [1.0, 0.0, 0.0]
    assert section.figures[4].panel.values.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_few_examples_decide_nothing():
    assert verdict(5, agrees=True, contradicts=False) == "undecided"
    assert verdict(6, agrees=True, contradicts=False) == "agrees"
    assert verdict(6, agrees=False, contradicts=True) == "contradicts"
    assert verdict(60, agrees=False, contradicts=False) == "undecided"


def test_no_loop_at_all_is_said():
    facts = {"tried": 24, "running": 0, "said": [], "layers": 2, "heads": 2, "texts": []}
    findings, section = repetition.tell(Part({"mel": np.zeros((1, 1)), "clip": np.zeros(1)}, facts))
    assert not findings
    assert "None of 24 clips" in section.text[0]


def test_the_layer_from_which_on_words_are_heard():
    texts = [["x"] * 5] * 5
    late = np.array([[1.0] * 5] * 4 + [[0.0] * 5])
    early = np.array([[1.0] * 5] * 2 + [[0.1] * 5] * 3)
    back = np.array([[0.1] * 5, [0.1] * 5, [0.1] * 5, [0.9] * 5, [0.1] * 5])  # heard, lost, and heard again
    none = np.zeros((5, 5), bool)
    for errors, layer in ((late, 4.0), (early, 2.0), (back, 4.0)):
        part = Part({"errors": errors, "circles": none}, {"texts": texts, "said": ["x"] * 5})
        findings, _ = hearing.tell(part)
        assert findings[0].value == layer
    circles = none.copy()
    circles[2, :3] = True
    findings, _ = hearing.tell(Part({"errors": late, "circles": circles}, {"texts": texts, "said": ["x"] * 5}))
    assert "layer 2" in findings[1].said
    assert findings[1].value == pytest.approx(0.6)


def test_where_the_decoder_settles_leaves_the_prompt_out():
    facts = {"next": [["a", "the", "b", "c"]] * 4, "begin": 1, "texts": ["t"] * 4, "words": [["w"] * 3] * 5}
    settled = np.array([[-1, 1, 3, 3]] * 4)
    chance = np.full((4, 5), 0.5)
    part = Part({"settled": settled, "chance": chance, "agrees": chance, "first": np.full((5, 3), 0.5)}, facts)
    findings, section = decoder.tell(part)
    assert findings[0].value == pytest.approx(7 / 3)
    assert findings[1].value == pytest.approx(-2.0)  # "the" against the others
    assert section.figures[0].panel.columns == ("0 ·the", "1 ·b", "2 ·c")


@pytest.mark.parametrize(
    ("late", "verdict"), [(0.9, "agrees"), (0.5, "contradicts"), (0.2, "contradicts"), (None, "undecided")]
)
def test_probes_judge_whether_late_layers_tell_more(late, verdict):
    rng = np.random.default_rng(0)
    groups, times = np.repeat(np.arange(10), 4), np.ones(40)
    told = np.zeros((5, 40))
    told[1] = np.arange(40) % 2  # half are told early
    told[4] = told[1] if late == 0.5 else np.arange(40) < 40 * (late or 0)
    if late is None:
        told[1], told[4] = rng.random(40) < 0.5, np.arange(40) % 8 < 4
    arrays = {"gender/told": told, "gender/control": 0 * told, "gender/times": times, "gender/groups": groups}
    about = {"classes": 2, "rows": 40, "groups": 10, "chosen": [4], "majority": 0.5, "held_out": "voice"}
    findings, _ = probes.tell(Part(arrays, {"concepts": {"gender": about}, "layers": 4}))
    assert findings[0].verdict == verdict


def test_maps_name_the_best_head():
    heads = np.zeros((4, 3), np.float32)
    heads[2] = [0.4, 0.5, 0.6]
    facts = {"words": ["a", "b"], "positions": 20, "clips": 3, "heads": 2}
    arrays = {"frames": np.zeros((3, 2)), "tokens": np.zeros((2, 2)), "heads": heads}
    arrays |= {"pattern": np.zeros((2, 20)), "mel": np.zeros((80, 40)), "clip": np.zeros(6400)}
    findings, _ = maps.tell(Part(arrays, facts))
    assert "(1.0)" in findings[0].said
    assert findings[0].value == pytest.approx(0.5)


def test_refusals():
    with pytest.raises(BadInput, match="probes=1"):
        Sizes(probes=1)
    with pytest.raises(BadInput, match="context=15"):
        Sizes(context=15)
    with pytest.raises(BadInput, match="verdict"):
        Finding("a", "b", "maybe", 0.0, 0.0, 0.0, "", 1, "clips")


@pytest.mark.parametrize("each", [2, 5, 10])
def test_every_question_can_be_split_whatever_the_seed(each):
    plain, pitched, spoken = corpus.by_voices(each), corpus.by_pitch(), corpus.by_language()
    said = [*plain, *(replace(one, noise=0.0) for one in plain), *pitched, *spoken]
    questions = probes._questions(said, len(plain), len(pitched))
    assert ("speaker" in questions) == (each >= 5)
    for asked in questions.values():
        examples = read_question(list(asked.labels), list(asked.groups), None).examples
        for seed in range(10):
            kept, _ = split_examples(examples, Probing().held_out, seed=seed)
            split_examples(examples.take(kept), Probing().validation, seed=seed)


def test_what_is_not_installed_is_told_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(corpus, "voices", lambda: {"slt": "a woman"})
    with pytest.raises(MissingExtra, match="apt-get install espeak-ng"):
        study_speech("whisper-tiny.en")
    monkeypatch.setattr(corpus, "voices", lambda: {"slt": "a woman", "en-us": "a machine"})
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtra, match=r"crosspatch\[probes\]"):
        study_speech("no such model", parts=["probes"])
