"""Verification, recommendation and certificates; what is refused; files and words of an estimate."""

from dataclasses import replace

import numpy as np
import pytest

import crosspatch as xp
import zoo
from crosspatch import Verify, attribute, patch
from crosspatch.attribution import Estimate, Sample, Until, certify, compare_estimate, recommend
from crosspatch.attribution.estimators import NAMES, PRESETS, estimator
from crosspatch.core.errors import BadInput, CorruptFile, UnknownName
from crosspatch.engine import Options
from crosspatch.sites import Group, Site

TASK = zoo.make_task(*(zoo.make_pair(8, (3,), seed=seed) for seed in range(5)))
SITES = "attn.head@*, mlp.out@*"


@pytest.fixture(scope="module")
def guess():
    return attribute(zoo.opened("llama"), TASK, sites=SITES, by="atp", verify=Verify(6, drawn=4, seed=1))


def test_top_sites_are_patched_exactly(guess):
    """The largest by mean absolute estimate, then others at random; their numbers are those of `patch`."""
    top = [guess.sites[i] for i in np.argsort(-np.abs(guess.raw).mean(1), kind="stable")[:6]]
    assert list(guess.exact.sites[:6]) == top
    assert len(guess.exact.sites) == 10
    assert guess.agreement.top.tolist() == [True] * 6 + [False] * 4
    np.testing.assert_array_equal(guess.exact.raw, patch(zoo.opened("llama"), TASK, sites=guess.exact.sites).raw)


def test_agreement_counts_signs_and_misses():
    """Wrong signs count where there is an effect; a drawn site larger than the median verified one was missed."""
    exact = patch(zoo.opened("llama"), TASK, sites="mlp.out@3:7")
    raw = exact.raw.copy()
    raw[0] *= -1
    found = compare_estimate(replace(exact, raw=raw), exact, top=range(len(exact.sites) // 2))
    size = np.abs(exact.mean())
    assert (exact.sites[0] in found.sign_errors) == bool(size[0] >= 0.02)
    bar = max(np.median(size[: len(size) // 2]), 0.02)
    assert set(found.false_negatives) == {s for i, s in enumerate(exact.sites) if i >= len(size) // 2 and size[i] > bar}
    assert compare_estimate(exact, exact).pearson == pytest.approx(1.0)
    assert found.only("mlp.out").pearson == pytest.approx(found.pearson)
    with pytest.raises(BadInput, match="no site in common"):
        compare_estimate(exact, patch(zoo.opened("llama"), TASK, sites="attn.out@3"))
    with pytest.raises(BadInput, match="direction"):
        compare_estimate(exact, patch(zoo.opened("llama"), TASK, sites="mlp.out@3", direction="noise"))


def test_words_say_that_it_is_an_estimate(guess):
    """The finding names the estimator, and what came of the check; magnitudes get no signs and no tests."""
    assert (guess.estimator, guess.title) == ("atp", "AtP")
    assert "None of it" not in guess.finding()
    assert "Patched exactly, 10 sites" in guess.finding()
    assert "Verified exactly: 6 sites" in str(guess.agreement)
    drop = attribute(zoo.opened("llama"), TASK, sites=SITES, by="atp-drop")
    assert "magnitudes without sign" in drop.finding()
    assert "None of it was verified" in drop.finding()
    assert np.isnan(drop.p_values()).all()
    assert (drop.mean() >= 0).all()


def test_saved_and_loaded(guess, tmp_path):
    """An estimate comes back as one, with what was verified; effects come back as effects."""
    again = xp.load(guess.save(tmp_path / "a"))
    assert isinstance(again, Estimate)
    np.testing.assert_array_equal(again.raw, guess.raw)
    np.testing.assert_array_equal(again.exact.raw, guess.exact.raw)
    assert (again.title, again.finding()) == (guess.title, guess.finding())
    bare = attribute(zoo.opened("llama"), TASK, sites=SITES)
    assert xp.load(bare.save(tmp_path / "a")).exact is None  # not what the estimate before it was verified by
    plain = patch(zoo.opened("llama"), TASK, sites="mlp.out@3")
    assert not isinstance(xp.load(plain.save(tmp_path / "b")), Estimate)
    with pytest.raises(CorruptFile, match="no estimate"):
        Estimate.load(tmp_path / "b")


def test_page_shows_both(guess, tmp_path):
    """A scatter and a table with the estimate beside the exact effect."""
    text = guess.report(tmp_path / "page.html").read_text()
    assert "Estimate against truth" in text
    assert str(guess.exact.sites[0]) in text
    assert "not measured" in text
    assert (
        "Estimate against truth"
        not in patch(zoo.opened("llama"), TASK, sites="mlp.out@3").report(tmp_path / "plain.html").read_text()
    )


def test_journal_goes_on(tmp_path, monkeypatch):
    """What was estimated and what was verified before a stop is not run again, and the numbers are the same bits."""
    model, options = zoo.opened("llama"), Options(journal=tmp_path / "j", memory=1)
    whole = attribute(model, TASK, sites=SITES, by="atp*", verify=3, options=replace(options, journal=None))
    first = attribute(model, TASK, sites=SITES, by="atp*", verify=3, options=options)
    monkeypatch.setattr("crosspatch.attribution.sweep.EstimateSweep.opened", None)  # would fail if it were run
    again = attribute(model, TASK, sites=SITES, by="atp*", verify=3, options=options)
    for found in (first, again):
        np.testing.assert_array_equal(found.raw, whole.raw)
        np.testing.assert_array_equal(found.exact.raw, whole.exact.raw)
    with pytest.raises(BadInput, match="another question"):
        attribute(model, TASK, sites=SITES, by="atp", options=options)


def test_interrupted_verification_is_unfinished(tmp_path):
    """Ctrl-C while sites are verified: the estimate stands, the whole counts as unfinished, and goes on from there."""
    from crosspatch.core.progress import SilentProgress

    class Stops(SilentProgress):
        jobs = 0

        def start(self, total, unit):
            self.jobs += 1

        def advance(self, done, note=""):
            if self.jobs == 2:
                raise KeyboardInterrupt

    model = zoo.opened("llama")
    options = Options(journal=tmp_path / "j", tokens=8, progress=Stops())
    found = attribute(model, TASK, sites=SITES, verify=4, options=options)
    assert not np.isnan(found.raw).any()
    assert np.isnan(found.exact.raw).any()
    assert found.provenance["settings"]["complete"] is False
    whole = attribute(model, TASK, sites=SITES, verify=4, options=replace(options, progress=SilentProgress()))
    assert whole.provenance["settings"]["complete"] is True
    assert not np.isnan(whole.exact.raw).any()


def test_other_processes_open_the_same_estimate(tmp_path):
    """The plan in the journal is enough to open the job again: the same units, the same numbers."""
    from crosspatch.attribution.shipping import open_job
    from crosspatch.executors import Crew

    folder = tmp_path / "tiny"
    zoo.fresh("llama").save_pretrained(folder)
    model = xp.open_model(folder)
    options = Options(journal=tmp_path / "j", memory=1, threads=1)
    inline = attribute(model, TASK, sites=SITES, by="relp", preset="ln", options=options)
    job = open_job(tmp_path / "j")
    columns = job.run(1)
    job.close()
    assert job.sweep.estimator.rules == ("ln",)
    place = {site: i for i, site in enumerate(job.sweep.sites)}
    assert len(place) == len(inline.sites)
    np.testing.assert_array_equal(columns["0 logit_diff"], inline.raw[columns["site"], columns["example"]])
    local = attribute(
        model, TASK, sites=SITES, by="relp", preset="ln", options=replace(options, journal=None, crew=Crew("local", 1))
    )
    np.testing.assert_array_equal(local.raw, inline.raw)


def test_recommendation_orders_by_truth():
    """The first has the largest rank correlation with the exact sample; each kind has its own best."""
    found = recommend(zoo.opened("gemma3"), TASK, sites="attn.q@*, attn.head@*, mlp.out@*", sample=Sample(size=20))
    order = [np.abs(c.overall.spearman) for c in found.candidates if c.how.signed]
    assert len(found.candidates) == 9
    assert len(order) == 7
    assert set(found.best) == {"attn.q", "attn.head", "mlp.out"}
    assert found.sample == 20
    assert found.candidates[0].how.title in str(found)
    refused = recommend(zoo.opened("bloom"), TASK, sites="attn.q@*, mlp.out@*", sample=Sample(size=8)).refused
    assert any("its attention is its own code" in why for why in refused.values())
    with pytest.raises(BadInput, match="4 at least"):
        recommend(zoo.opened("llama"), TASK, sample=Sample(size=3))


def test_certificate_holds_or_says_so():
    """With a generous share it stops after a round; with none to spare it spends the budget and says so."""
    model, sites = zoo.opened("llama"), "attn.head@3|7, mlp.out@3|7"
    easy = certify(model, TASK, sites=sites, until=Until(share=5.0, step=4, samples=60))
    assert easy.held
    assert easy.rounds == 1
    hard = certify(model, TASK, sites=sites, until=Until(share=1e-9, step=4, samples=60, budget=60))
    assert not hard.held
    assert hard.bound.level == pytest.approx(1 - 0.05 / 2**hard.rounds)  # all rounds together hold at 95 %
    assert "the budget is spent" in str(hard)
    everything = certify(model, TASK, sites=sites, until=Until(share=1e-9, step=100, samples=60))
    assert everything.bound.theta == 0.0
    exact = patch(model, TASK, sites=sites, direction="noise")
    best = exact.sites[int(np.abs(exact.raw).mean(1).argmax())]
    assert everything.top(1) == (best,)
    with pytest.raises(BadInput, match="above zero"):
        Until(share=0.0)


BAD = {
    "estimator": ({"by": "atpp"}, UnknownName, "did you mean|atp"),
    "preset": ({"by": "relp", "preset": "lrp"}, UnknownName, "preset"),
    "preset of another": ({"by": "atp", "preset": "ln"}, BadInput, "only 'relp' has presets"),
    "steps of another": ({"by": "atp", "steps": 5}, BadInput, "only 'ig'"),
    "no steps": ({"by": "ig", "steps": 0}, BadInput, "positive"),
    "points": ({"by": "ig", "points": "middle"}, UnknownName, "place of the steps"),
    "metric without gradient": ({"metric": "rank"}, BadInput, "no gradient"),
    "group": ({"sites": [Group("g", (Site("mlp.out", 0, None, 3),))]}, BadInput, "group"),
    "pattern": ({"sites": "attn.pattern"}, BadInput, "attention patterns are not estimated"),
    "verify": ({"verify": -1}, BadInput, "from 0"),
    "direction": ({"direction": "both"}, BadInput, "denoise"),
    "kind": ({"sites": "attn.z"}, UnknownName, "attn"),
    "logits": ({"sites": "logits"}, BadInput, "logits"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_questions(case):
    asked, kind, words = BAD[case]
    with pytest.raises(kind, match=words):
        attribute(zoo.opened("llama"), TASK, **asked)


def test_own_attention_has_no_softmax_to_go_through():
    with pytest.raises(BadInput, match="its attention is its own code"):
        attribute(zoo.opened("bloom"), TASK, sites="attn.q", by="atp*")
    assert attribute(zoo.opened("bloom"), TASK, sites="attn.head", by="atp*").raw.shape[0] == 12


def test_verify_more_than_there_is():
    found = attribute(zoo.opened("llama"), TASK, sites="mlp.out@3", verify=50)
    assert len(found.exact.sites) == 3
    assert found.agreement.false_negatives == ()


def test_names_are_documented():
    """Every estimator and preset is found by name, and says its settings as plain data."""
    for name in NAMES:
        how = estimator(name)
        assert type(how).from_json(how.to_json()) == how
        assert how.title
    assert [estimator("relp", preset=name).rules for name in PRESETS] == list(PRESETS.values())
    with pytest.raises(BadInput, match="settings already"):
        estimator(estimator("relp"), preset="ln")
