"""The page of an audit: every section says what the audit holds, every text stays text."""

import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from browsing import in_browser
from builders import make_effects
from crosspatch.core.errors import BadInput
from crosspatch.engine import Effects
from crosspatch.referee import Audit, Setting
from crosspatch.referee.grid import GridRun
from crosspatch.report import write_audit
from crosspatch.report.audit import audit_html, share_svg
from crosspatch.sites import Group, Site

EVIL = "</script><img src=x onerror=alert(1)>"
GAUSSIAN = {"by": "gaussian", "at": "S2", "sigma": 3.0, "draws": 10, "seed": 0}


def sweep(setting: Setting, seed: int) -> Effects:
    """Make the sweep of one setting, with one window of layers whose joint effect is far beyond its layers'."""
    effects = make_effects(layers=6, heads=4, kinds=("mlp.out",), n=10, direction=setting.direction, seed=seed)
    members = tuple(Site("mlp.out", layer, None, 10) for layer in (2, 3, 4))
    window = Group("mlp.out[2:5]@10", members, "mlp.out ×3", 3, 10)
    rows = [i for i, site in enumerate(effects.sites) if site in members]
    joint = 3 * effects.raw[rows].sum(0, keepdims=True)
    corruption = GAUSSIAN if setting.corruption == "gaussian" else {"by": setting.corruption}
    return replace(
        effects,
        sites=(*effects.sites, window),
        raw=np.concatenate([effects.raw, joint]),
        metric=setting.metric,
        provenance={"settings": {"corruption": corruption}},
    )


def make_audit(corruptions=("replace", "gaussian"), **changes) -> Audit:
    """Make an audit of corruptions × directions × two metrics; changes go to each sweep."""
    ways = [(c, d, m) for c in corruptions for d in ("denoise", "noise") for m in ("logit_diff", "prob")]
    effects = {Setting(*way): replace(sweep(Setting(*way), seed), **changes) for seed, way in enumerate(ways)}
    about = {"command": "crosspatch audit m --task ioi", "settings": {"task_settings": {"seed": 5}, "seconds": 3.25}}
    return Audit(GridRun(effects, None, 400.0, 320.0, ("corruption mean: too few pairs",)), about)


@pytest.fixture(scope="module")
def made():
    return make_audit()


@pytest.fixture(scope="module")
def html(made):
    return audit_html(made)


def text_of(html: str) -> str:
    """Give what a reader sees."""
    body = re.sub(r"(?s)<(style|script)\b.*?</\1>", "", html)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_verdict_is_the_heading(made, html):
    heading = re.search(r"<h1>(.*?)</h1>", html)[1]
    assert made.verdict().startswith(heading)
    rest = made.verdict()[len(heading) :].strip()
    assert rest
    assert rest in text_of(html)


def test_every_finding_stands_with_its_rule_and_source(made, html):
    text = text_of(html)
    assert "window" in {finding.rule for finding in made.findings}
    for finding in made.findings:
        for words in (finding.rule, finding.text, finding.source):
            assert " ".join(words.split()) in text.replace("&#39;", "'").replace("&amp;", "&")


def test_agreement_lists_sites_with_counts_and_both_directions(made, html):
    first = made.agreement()[0]
    row = re.search(rf'<tr><td class="mono">{re.escape(first.site)}</td>.*?</tr>', html)[0]
    assert f"{first.finders} of {first.settings}" in row
    assert first.sign in row
    effects = made.effects[Setting("replace", "denoise", "logit_diff")]
    mean = dict(zip(map(str, effects.sites), effects.mean(), strict=True))[first.site]
    assert f"{mean:.2f}</td>" in row


def test_correlations_have_a_cell_for_every_two_settings(made, html):
    part = html[html.index('id="correlations"') : html.index('id="maps"')]
    titles = re.findall(r"<title>(.*?)</title>", part)
    assert len(titles) == len(made.telling) ** 2
    first, second = made.telling[:2]
    assert f"{first} and {second}: {made.correlations[0, 1]:.2f}" in titles


def test_maps_stand_by_corruption_and_direction_on_one_scale(html):
    part = html[html.index('id="maps"') : html.index('id="windows"')]
    assert len(re.findall(r'class="bar"', part)) == 1
    assert len(re.findall(r'class="map"', part)) == 2 * 2 * 2  # corruptions × directions × kinds
    text = text_of(part)
    assert "Gaussian noise of 3 standard deviations on the clean prompt's embeddings at S2, 10 draws" in text.replace(
        "&#39;", "'"
    )
    assert "hurts / strengthens" in text
    assert "restores / removes" in text


def test_windows_are_compared_with_their_sums(html):
    part = html[html.index('id="windows"') : html.index('id="cost"')]
    assert part.count("mlp.out[2:5]@10") == 2
    assert part.count(">3.00<") == 2
    assert part.count("inflated") == 2


def test_cost_and_what_was_left_out(made, html):
    text = text_of(html)
    assert made.cost() in text
    assert "corruption mean: too few pairs" in text
    assert "seed 5" in text
    assert '<pre id="command">crosspatch audit m --task ioi</pre>' in html


def test_policy_admits_this_style_and_script_alone(html):
    style, script = (re.search(rf"(?s)<{tag}>(.*?)</{tag}>", html)[1] for tag in ("style", "script"))
    style_hash, script_hash = (b64encode(sha256(part.encode()).digest()).decode() for part in (style, script))
    assert f"script-src 'sha256-{script_hash}'; style-src 'sha256-{style_hash}'" in html.replace("&#39;", "'")
    rest = html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|\ssrc=|\shref=|\sstyle=|@import", rest)


def test_evil_texts_stay_texts():
    made = make_audit(("replace", EVIL), model=EVIL, task=EVIL)
    made = replace(made, run=replace(made.run, left_out=(EVIL,)), provenance={"command": EVIL, EVIL: EVIL})
    html = audit_html(made)
    assert "<img" not in html
    assert html.count("</script>") == 1
    assert html.count("&lt;img") > 6


def test_a_corruption_that_breaks_nothing_is_said_so():
    made = make_audit()
    weak = {
        s: replace(e, base=e.base * 0, source=e.base * 0 + 0.001) if s.corruption == "gaussian" else e
        for s, e in made.effects.items()
    }
    made = replace(made, run=replace(made.run, effects=weak))
    assert audit_html(made).count("Does not break the behaviour") == 2


def test_few_sites_have_no_correlation_and_still_a_page():
    """With four sites nothing can be ranked: cells say so, and windows or findings may be absent."""
    made = make_audit()
    few = {
        s: e.only([i for i, site in enumerate(e.sites) if site.kind == "attn.head"][:3])
        for s, e in made.effects.items()
    }
    html = audit_html(replace(made, run=replace(made.run, effects=few, left_out=())))
    assert "too few sites to rank" in html
    assert 'id="windows"' not in html
    assert "Nothing was left out." in html


def test_share_is_told_in_words():
    assert 'aria-label="25% of the settings: helps; 50%: hurts"' in share_svg(0.25, 0.5)


def test_audit_is_written_whole(made, tmp_path):
    path = made.report(tmp_path / "new" / "audit.html")
    assert path.read_text(encoding="utf-8") == audit_html(made)
    with pytest.raises(BadInput, match="cannot write"):
        write_audit(made, tmp_path)


@in_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (420, "light")])
def test_page_stands_in_a_browser(made, visit, tmp_path, width, scheme):
    """Nothing is refused by the policy, nothing is wider than the window, and the command can be copied."""
    page = visit(made.report(tmp_path / "a.html"), width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 150) == (scheme == "dark")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("button[data-copy]")
    page.get_by_text("copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "crosspatch audit m --task ioi"
