import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser

import numpy as np
import pytest

from builders import make_effects, make_examples, small_effects, with_holes
from crosspatch.core.errors import BadInput
from crosspatch.engine.effects import ExampleView
from crosspatch.report import write_page
from crosspatch.report.page import page_html
from crosspatch.sites import Site

EVIL = "</script><img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """What a browser would find: elements with attributes, visible text, the content of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words, self.raw = [], [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            kind = dict(self.elements[-1][1])
            self.raw[kind.get("id") or self.open[-1]] = data
        else:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html():
    return page_html(make_effects(heads=4))


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_sections_stand_in_order(page):
    text = page.text
    places = [text.index(word) for word in ("Restoring resid.pre", "Set-up", "Where", "Which heads", "Strongest sites")]
    assert places == sorted(places)
    assert text.index("Provenance") > places[-1]
    assert page.open == []


def test_the_finding_is_the_heading_and_holds_its_interval(html):
    assert re.search(r"<h1>Restoring .*\d\.\d\d \[\d\.\d\d, \d\.\d\d\].*</h1>", html)


def test_chips_say_what_was_run(page):
    for words in ("model gemma-3-270m", "pairs 24", "sites 882", "denoise (clean into corrupted)", "metric logit_diff",
                  "seed 0", "time 9.16 s", "forwards saved 19,433"):  # fmt: skip
        assert words in page.text


def test_chips_find_what_was_recorded_among_the_settings():
    about = {
        "seed": None,
        "settings": {"seed": 7, "timings": {"runs": 1.0, "sweep": 2.5}, "plan": {"forwards_saved": 5}},
    }
    text = Page(page_html(small_effects(provenance=about))).text
    for words in ("seed 7", "time 3.5 s", "forwards saved 5"):
        assert words in text


def test_a_task_without_wrong_answers_shows_none():
    view = replace(make_examples(1)[0], wrong="")
    html = page_html(small_effects(examples=(view,) * 8, metric="prob"))
    assert "∅" not in html
    assert "· wrong" not in Page(html).text


def test_the_baselines_tell_clean_from_corrupted_in_both_directions():
    """In the noise direction the base run is the clean one."""
    ends = {"base": np.full(8, 2.0, np.float32), "source": np.full(8, -1.0, np.float32)}
    text = Page(page_html(small_effects(direction="noise", **ends))).text
    assert "clean run2.00 [2.00, 2.00]" in text
    assert "corrupted run-1.00 [-1.00, -1.00]" in text
    assert "gap3.00" in text


def test_the_set_up_aligns_tokens_and_marks_differences(html, page):
    found = re.search(r'<li class="differs"><span>10 <b>S2</b></span><bdi>\w+</bdi>', html)
    assert found
    assert page.text.count("corrupted") > 3
    assert "5 more of 24 pairs" in page.text
    assert "divided by the average gap (clean run − corrupted run)" in page.text
    assert "favours the right answer in 24 of 24 clean and 0 of 24 corrupted" in page.text


def test_every_kind_is_a_map_with_its_cells(html, page):
    maps = re.findall(r'<svg[^>]* class="map".*?</svg>', html)
    assert [len(re.findall(r'<path class="[pnx]\d*"', one)) for one in maps] == [270, 270, 270, 72]
    assert len([1 for attributes in page.all("figure") if attributes.get("tabindex") == "0"]) == 4
    assert all(attributes["aria-label"] for attributes in page.all("svg"))


def test_one_shared_scale_with_words(page):
    bars = [attributes for attributes in page.all("svg") if attributes.get("class") == "bar"]
    assert [bar["aria-label"] for bar in bars] == ["Colour scale: -1.20 hurts, 0 white, 1.20 restores"]


def test_the_top_table_has_intervals_and_q_values(html):
    table = html[html.index("Strongest sites") :]
    rows = re.findall(r"<tr><td class=\"number soft\">.*?</tr>", table)
    assert len(rows) == 20
    assert re.search(r"resid\.pre\[17\]@14</span> <bdi class=\"soft\">end</bdi>.*\[.*\].*&lt; 0\.001", rows[0])


def test_provenance_is_complete(page):
    for words in ("crosspatch patch gemma-3-270m --task ioi", "torch", "2.13.0", "sha256:5b1f0c7e9a3d", "sweep", "6.83",
                  "settings · direction"):  # fmt: skip
        assert words in page.text


# ---- safety -------------------------------------------------------------------------------------------------------


def test_the_policy_admits_this_style_and_this_script_and_nothing_else(page):
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    hashes = {name: b64encode(sha256(page.raw[name].encode()).digest()).decode() for name in ("style", "script")}
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    first = [tag for tag, _ in page.elements[:4]]
    assert first == ["html", "head", "meta", "meta"]  # before anything that it must govern


def test_no_attribute_carries_style_script_or_an_address(page):
    for tag, attributes in page.elements:
        assert not {"style", "src", "href", "action", "srcset", "onload"} & attributes.keys(), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert not {"link", "img", "iframe", "object", "base", "form", "a"} & {tag for tag, _ in page.elements}


def test_nothing_refers_to_the_network(html):
    rest = html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//[\w-]+\.[\w-]+|@import|url\((?!#)", rest)


def evil_effects():
    view = ExampleView((EVIL, " a"), ("b", EVIL), EVIL, EVIL, {EVIL: 1})
    provenance = {"command": EVIL, EVIL: {EVIL: EVIL}, "seed": EVIL, "list": [EVIL, {EVIL: EVIL}]}
    sites = [Site("resid.pre", layer, None, place) for layer in range(2) for place in (0, 1)]
    texts = {"model": EVIL, "task": EVIL, "metric": EVIL, "metric_unit": EVIL, "warnings": (EVIL,)}
    return small_effects(
        sites, np.random.default_rng(0).normal(1, 0.2, (4, 8)), examples=(view,) * 8, provenance=provenance, **texts
    )


def test_evil_texts_stay_texts_everywhere():
    """A token that closes the script and opens an image: in the body it is escaped, in the data it is not even `<`."""
    html = page_html(evil_effects())
    page = Page(html)
    assert "<img" not in html
    assert page.text.count(EVIL) >= 12
    assert "<" not in page.raw["facts"]
    assert "\\u003c/script\\u003e" in page.raw["facts"]
    assert len(page.all("script")) == 4
    assert page.open == []


@pytest.mark.parametrize("token", ["\u2028", "\x00", "\ud800", "<!--", "]]>", "{{ 7 * 7 }}", "&amp;", "'\"`"])
def test_awkward_tokens_do_no_harm(token, tmp_path):
    view = ExampleView((token, "a"), ("b", "a"), token, token, {"x": 0})
    effects = small_effects([Site("resid.pre", 0, None, 0)], examples=(view,) * 8, task=token.replace("\ud800", "?"))
    text = write_page(effects, tmp_path / "p.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "\x00" not in text
    assert "49" not in page.text
    assert token not in ("<!--", "&amp;", "{{ 7 * 7 }}") or token in page.text


# ---- other sizes and shapes -----------------------------------------------------------------------------------------


def test_the_page_is_small():
    """18 × 15 × 3 sites and 72 heads × 64 pairs, no two numbers alike: at most 300 KB."""
    effects = make_effects(heads=4, n=64)
    raw = np.random.default_rng(0).normal(0, 1, effects.raw.shape).astype(np.float32)
    noise = page_html(replace(effects, raw=raw))
    assert len(noise.encode()) <= 300 * 1024
    assert "Values of single pairs are on this page for the strongest sites only." in Page(noise).text
    assert len(page_html(effects).encode()) <= 300 * 1024


def test_one_pair():
    page = Page(page_html(make_effects(n=1, kinds=("resid.pre",))))
    assert "no interval" in page.text
    assert "Only 1 pair" in page.text
    assert "more of" not in page.text


def test_cells_that_were_not_run_are_hatched_and_told():
    html = page_html(with_holes(make_effects(layers=6, n=10), share=0.2))
    hatched = len(re.findall(r'<path class="x" fill="url\(#h\w+\)"', html))
    assert f"{hatched} of 270 sites were not run." in html
    assert "not run</text>" in html
    assert "not run</text>" not in page_html(make_effects(layers=3, n=8))


def test_nothing_run_at_all():
    page = Page(page_html(small_effects(raw=np.full((2, 8), np.nan))))
    assert "No site was run" in page.text
    assert page.open == []


def test_thirty_thousand_neurons_are_a_table_and_a_note():
    """No heat map of 36,864 cells; the strongest ones stand in the table, with their pairs."""
    sites = [Site("mlp.hidden", layer, unit, "end") for layer in range(18) for unit in range(2048)]
    raw = np.random.default_rng(0).normal(0, 0.02, (len(sites), 8))
    raw[20_000] += 1.0
    html = page_html(small_effects(sites, raw, layers=18))
    page = Page(html)
    assert "mlp.hidden: 36,864 sites are more than a heat map can show" in page.text
    assert "mlp.hidden[9, 1568]@end" in page.text
    assert 'class="map"' not in html
    assert len(html) < 150_000


def test_neurons_in_reach_have_their_own_heading():
    sites = [Site("mlp.hidden", 0, unit, "end") for unit in range(30)]
    page = Page(page_html(small_effects([*sites, Site("resid.pre", 0, None, 10)], np.ones((31, 8)))))
    assert "Which neurons" in page.text
    assert "Which heads" not in page.text


def test_only_heads():
    page = Page(page_html(make_effects(kinds=(), heads=4)))
    assert "Which heads" in page.text
    assert " Where " not in page.text


def test_long_prompts_are_shown_around_what_matters():
    """Of 200 tokens only those near differences and names are shown; the rest is counted."""
    clean = tuple(f"w{i}" for i in range(200))
    corrupt = (*clean[:90], "X", *clean[91:])
    view = ExampleView(clean, corrupt, "a", "b", {"end": 199})
    page = Page(page_html(small_effects([Site("resid.pre", 0, None, 90)], np.ones((1, 8)), examples=(view,) * 8)))
    assert "… 85 equal …" in page.text
    assert "… 100 equal …" in page.text
    assert "w90" in page.text
    assert "w100 " not in page.text


def test_prompts_of_unequal_length_keep_their_rows():
    view = ExampleView(("a", "b"), ("a", "c", "d"), "x", "y", {})
    page = Page(page_html(small_effects([Site("resid.pre", 0, None, 1)], np.ones((1, 8)), examples=(view,) * 8)))
    assert page.open == []


def test_in_the_noise_direction_the_words_change():
    page = Page(page_html(make_effects(direction="noise", n=8)))
    for words in (
        "Corrupting",
        "removes",
        "strengthens",
        "noise (corrupted into clean)",
        "0 is the clean run, 1 is the corrupted run",
    ):
        assert words in page.text


def test_raw_effects_when_there_is_no_gap():
    html = page_html(small_effects(source=np.full(8, -1.0, np.float32)))
    assert 'data-view="normalised" aria-pressed="false" disabled' in html
    assert "effects cannot be normalised" in html


def test_the_page_is_written_whole_and_its_path_is_given(tmp_path):
    path = make_effects(n=4).report(tmp_path / "new" / "ioi.html")
    assert path == tmp_path / "new" / "ioi.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(BadInput, match="cannot write"):
        make_effects(n=4).report(tmp_path)


def test_the_same_effects_give_the_same_page():
    assert page_html(make_effects(n=5)) == page_html(make_effects(n=5))


def test_values_beyond_the_scale_are_explained():
    raw = np.full((2, 8), 1.0)
    raw[0] = 9.0
    assert "A white corner: beyond the scale." in page_html(small_effects(raw=raw))
    assert "A white corner" not in page_html(small_effects())


def test_examples_of_the_builder_are_aligned():
    assert all(len(e.clean_tokens) == len(e.corrupt_tokens) == 15 for e in make_examples(30))


def test_positions_that_are_no_tokens_are_not_shown_as_tokens():
    blank = tuple(ExampleView(("",) * 12, ("",) * 12, "", "", {}) for _ in range(8))
    html = page_html(small_effects(examples=blank))
    assert "token by token" not in html
    assert "∅" not in html.split("<script")[0]
    assert "token by token" in page_html(small_effects())
