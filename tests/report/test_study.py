"""The page of a study: findings with their verdicts, every text stays text, and what it embeds can be read back."""

import io
import re
import wave
import zlib
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from html import unescape
from itertools import count

import numpy as np
import pytest

from browsing import in_browser
from builders_pictures import GPT2, make_content
from crosspatch.core.errors import BadInput
from crosspatch.draw import Curve, Panel
from crosspatch.report import circuit_page, study_page, write_study
from crosspatch.studies import Finding, Study
from crosspatch.studies.study import VERDICTS, Heat, Lines, Pattern, Section, Sound, Table

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
RNG = np.random.default_rng(0)
FINDING = Finding("Layer 3 hears.", "Layer 2 hears, 92 %.", "contradicts", 0.94, 0.9, 0.97, "of words", 1096, "clips")


def text_of(html):
    """Give what a reader sees."""
    body = re.sub(r"(?s)<(style|script)\b.*?</\1>", "", html)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def make_heat(rows=3, columns=4, **settings):
    values = RNG.normal(0, 0.3, (rows, columns))
    names = {"rows": tuple(map(str, range(rows))), "columns": tuple(f"w{i}" for i in range(columns))}
    return Heat(Panel("Effect of heads", values, values - 0.1, values + 0.1, **names), "share", **settings)


def make_sound(seconds=2.0, **settings):
    samples = (0.5 * np.sin(np.arange(round(16_000 * seconds)) * 0.05)).astype(np.float32)
    mel = RNG.normal(size=(80, round(100 * seconds)))
    return replace(Sound("Clip 1", samples, mel, "hello there", ((0.5, 0.9, "hello"),)), **settings)


def make_lines():
    x = np.arange(4.0)
    curves = (Curve("probe", x, x / 8, x / 8 - 0.05, x / 8 + 0.05), Curve("chance", x, x * 0 + 0.25, reference=True))
    return Lines("What a probe reads", curves, "layer", "accuracy", "a note")


def make_study(*figures, **settings):
    made = {
        "title": "Where a word is heard",
        "paper": "A paper (2025)",
        "link": "https://example.org/paper",
        "model": "whisper-tiny",
        "findings": (FINDING,),
        "sections": (Section("Frames", ("What was done.",), figures),),
        "warnings": ("3 clips were left out.",),
        "chips": (("clips", "96"),),
        "provenance": {"command": "crosspatch study word", "settings": {"seed": 0}},
    }
    return Study(**{**made, **settings})


def make_pattern(rows=3, frames=50):
    weights = RNG.random((rows, frames)) * 0.5
    return Pattern("Cross-attention", weights, tuple(f" token{i}" for i in range(rows)), 1.0, "a note")


def make_full():
    table = Table(("clip", "heard"), (("1", "a long text " * 20), ("2", "b")), "What was heard")
    return make_study(make_heat(), make_lines(), table, make_sound(), make_pattern(), make_heat(2, 30, limit=0.5))


@pytest.fixture(scope="module")
def html():
    return study_page(make_full())


def embedded(html, kind):
    return [b64decode(text) for text in re.findall(rf'src="data:{kind};base64,([^"]+)"', html)]


def test_the_sections_stand_in_order(html):
    text = text_of(html)
    words = ["A paper (2025)", "https://example.org/paper", "clips 96", "3 clips were", "Findings", "Layer 3 hears."]
    words += ["What was done.", "Effect of heads", "What a probe reads", "What was heard", "Clip 1", "Provenance"]
    places = [text.index(word, text.index("A paper")) for word in words]
    assert places == sorted(places)
    assert "<h1>Where a word is heard</h1>" in html
    assert '<pre id="command">crosspatch study word</pre>' in html
    assert "settings · seed 0" in text


def test_a_finding_stands_with_interval_count_claim_and_verdict(html):
    part = text_of(html[html.index('id="findings"') : html.index('id="part-1"')])
    for words in ("0.94 [0.90, 0.97] of words", "from 1,096 clips", "The paper: Layer 2 hears, 92 %.", "✗ contradicts"):
        assert words in part
    assert "1 contradicts the paper." in part


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_verdict_is_a_word_and_a_colour(verdict):
    page = study_page(make_study(findings=(replace(FINDING, verdict=verdict),)))
    name = verdict.replace(" ", "-")
    assert re.search(rf'<li class="{name}">(?:(?!</li>).)*<span class="pill">.{{0,60}} {verdict}</span>', page, re.S)
    assert f".{name} .pill" in page


def test_verdicts_are_counted():
    names = ("agrees", "agrees", "contradicts", "contradicts", "undecided", "no claim")
    text = text_of(study_page(make_study(findings=tuple(replace(FINDING, verdict=name) for name in names))))
    assert "2 agree with the paper, 2 contradict the paper, 1 is undecided, 1 has no claim beside it." in text


def test_what_is_not_known_is_said():
    page = study_page(make_study(findings=(replace(FINDING, claim="", low=np.nan, high=np.nan),)))
    assert "The paper says nothing of it." in text_of(page)
    assert "0.94 of words" in text_of(page)
    nothing = text_of(study_page(make_study(findings=(), sections=(), warnings=(), provenance={}, chips=())))
    assert "Findings There are none." in nothing
    empty = text_of(study_page(make_study(sections=(Section("Empty", ()), Section("Words", ("only words",))))))
    assert "Empty There is nothing to show." in empty
    assert empty.count("There is nothing to show.") == 1


def evil_figures():
    values = np.array([[0.1, np.nan]])
    x = np.arange(2.0)
    panel = Panel(EVIL, values, values, values, (EVIL,), (EVIL, f"{EVIL} ·{EVIL}"), row_word=EVIL)
    return (
        Heat(panel, EVIL, note=EVIL),
        Lines(EVIL, (Curve(EVIL, x, x),), EVIL, EVIL, EVIL),
        Table((EVIL,), ((EVIL,),), EVIL),
        replace(make_sound(), title=EVIL, heard=EVIL, marks=((0.1, 0.4, EVIL),)),
        Pattern(EVIL, np.ones((1, 4)), (EVIL,), 1.0, EVIL),
    )


def test_hostile_texts_stay_text():
    texts = dict.fromkeys(("title", "paper", "link", "model"), EVIL)
    finding = replace(FINDING, said=EVIL, claim=EVIL, unit=EVIL, of=EVIL)
    more = {"findings": (finding,), "warnings": (EVIL,), "chips": ((EVIL, EVIL),)}
    about = {"command": EVIL, EVIL: EVIL}
    section = Section(EVIL, (EVIL,), evil_figures())
    page = study_page(make_study(**texts, **more, sections=(section,), provenance=about))
    assert page.count("<script") == page.count("</script>") == 1
    assert not re.search(r"<img(?! class=\"raster\" src=\"data:image/png;base64,)", page)
    # An attribute that a text broke out of would be one more `onerror` outside of quotes.
    assert "onerror" not in re.sub(r'"[^"]*"', '""', "".join(re.findall(r"<[a-z][^>]*>", page)))
    assert text_of(page).count(EVIL) > 25


def policy_of(html):
    return unescape(re.search(r'Content-Security-Policy" content="(.*?)"', html)[1])


def test_its_policy_admits_its_own_style_script_images_and_sound_alone(html):
    policy = policy_of(html)
    assert "default-src 'none'" in policy
    assert "media-src data:;" in policy
    for tag in ("style", "script"):
        inner = re.findall(rf"(?s)<{tag}>(.*?)</{tag}>", html)
        assert len(inner) == 1
        assert f"'sha256-{b64encode(sha256(inner[0].encode()).digest()).decode()}'" in policy
    assert not re.search(r"\shref=|\sstyle=|@import|\ssrc=\"(?!data:)", html)
    assert "media-src" not in policy_of(circuit_page(make_content(GPT2, 5, 5)))


def test_a_sound_comes_back_from_the_page():
    sound = make_sound()
    loud = sound.samples.copy()
    loud[:4] = [1.0, -1.0, 1.5, np.nan]
    (file,) = embedded(study_page(make_study(replace(sound, samples=loud))), "audio/wav")
    with wave.open(io.BytesIO(file)) as reader:
        assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (1, 2, 16_000)
        found = np.frombuffer(reader.readframes(reader.getnframes()), "<i2") / 32768
    np.testing.assert_allclose(found, np.clip(np.nan_to_num(loud), -1, 1), atol=1 / 32768, rtol=0)


def indices(file):
    """Read the pixels of an image: 0 is the weakest colour, 63 the strongest, 64 none."""
    columns, rows = (int.from_bytes(file[i : i + 4]) for i in (16, 20))
    start = file.index(b"IDAT") + 4
    size = int.from_bytes(file[start - 8 : start - 4])
    lines = np.frombuffer(zlib.decompress(file[start : start + size]), np.uint8)
    return lines.reshape(rows, columns + 1)[:, 1:]


def test_low_frequencies_are_at_the_bottom_and_frames_end_with_the_sound():
    mel = np.zeros((80, 3000))
    mel[0], mel[1:, 150] = 5.0, 2.0
    (image,) = embedded(study_page(make_study(make_sound(mel=mel))), "image/png")
    pixels = indices(image)
    assert pixels.shape == (80, 200)
    assert (pixels[-1] == 63).all()
    assert np.flatnonzero(pixels[0]).tolist() == [150]
    (short,) = embedded(study_page(make_study(make_sound(mel=mel[:, :50]))), "image/png")
    assert (indices(short)[:, 50:] == 64).all()
    assert (indices(short)[:, :50] < 64).all()


def test_a_pattern_has_its_first_token_at_the_top():
    pattern = make_pattern(3, 50)
    weights = np.zeros((3, 50))
    weights[0, 7] = 0.5
    weights[2, 1] = np.nan
    page = study_page(make_study(replace(pattern, weights=weights)))
    pixels = indices(embedded(page, "image/png")[0])
    assert pixels.shape == (3, 50)
    assert np.argwhere(pixels).tolist() == [[0, 7], [2, 1]]
    assert (pixels[0, 7], pixels[2, 1]) == (63, 64)
    assert "Strongest: 0.50, token0 at 0.15 s." in re.sub(r"\s+", " ", page)
    with pytest.raises(BadInput, match="3 rows and 2 names"):
        study_page(make_study(replace(pattern, rows=("a", "b"))))


def test_marks_stand_where_they_are_and_their_names_do_not_meet():
    marks = ((0.5, 1.0, "first"), (0.55, 1.05, "second"), (1.5, 9.0, "third"))
    page = study_page(make_study(make_sound(marks=marks)))
    bands = re.findall(r'class="mark" x="([\d.]+)" y="\d+" width="([\d.]+)"', page)
    expected = [(52 + 215.0, 215.0), (52 + 236.5, 215.0), (52 + 645.0, 215.0)]
    np.testing.assert_allclose([tuple(map(float, band)) for band in bands], expected)
    heights = [re.search(rf'y="([\d.]+)"[^>]*>{name}<', page)[1] for name in ("first", "second", "third")]
    assert heights[0] == heights[2] != heights[1]


def test_the_wave_keeps_its_peaks():
    samples = np.zeros(32_000, dtype=np.float32)
    samples[[100, 20_000]] = 0.25, -0.5
    page = study_page(make_study(make_sound(samples=samples)))
    path = re.search(r'class="wave" d="M(.*?)z"', page)[1]
    points = np.array([tuple(map(float, pair.split())) for pair in path.split("L")])
    assert len(points) == 1600
    silence, top, bottom = np.median(points[:, 1]), points[:, 1].min(), points[:, 1].max()
    assert bottom - silence == pytest.approx(2 * (silence - top), abs=0.2)
    assert points[:, 1].argmax() == 1599 - 20_000 * 800 // 32_000
    assert ">±0.50<" in page


def test_a_map_has_its_numbers_in_the_order_of_the_drawing():
    values = np.array([[0.1, np.nan], [0.3, -0.4]])
    panel = Panel("Map", values, values - 0.05, values + 0.05, ("0", "1"), ("a", "b ·c"))
    page = study_page(make_study(Heat(panel, "share", note="why")))
    part = page[page.index("<details>") : page.index("</details>")]
    cells = [unescape(text) for text in re.findall(r"<t[hd](?: [^>]*)?>([^<]*)<", part)]
    first = ["layer", "a", "b c", "1", "0.300 [0.250, 0.350]", "-0.400 [-0.450, -0.350]"]
    assert cells == [*first, "0", "0.100 [0.050, 0.150]", "–"]
    assert "not run" in page
    assert "NaN" not in re.sub(r"(?s)<script>.*?</script>", "", page)


def test_maps_share_a_scale_if_they_are_told_to():
    pages = [study_page(make_study(make_heat(limit=limit))) for limit in (0.5, 5.0)]
    assert [re.search(r'class="tick-high">([\d.]+)<', page)[1] for page in pages] == ["0.50", "5.00"]


def test_curves_stand_over_layers_from_zero_with_their_numbers():
    page = study_page(make_study(make_lines()))
    assert len(re.findall('class="curve"', page)) == 2
    assert len(re.findall('class="band"', page)) == 1
    text = text_of(page)
    assert "probe 0 0.000 [-0.050, 0.050]" in text
    assert "chance 3 0.250" in text
    assert "There are no curves." in text_of(study_page(make_study(replace(make_lines(), curves=()))))


@pytest.mark.parametrize(
    "figure",
    [
        lambda: make_heat(2, 2, limit=0.0),
        lambda: Heat(Panel("none", *[np.full((2, 2), np.nan)] * 3, ("0", "1"), ("a", "b")), "share"),
        lambda: Heat(Panel("none", *[np.zeros((0, 0))] * 3, (), ()), "share"),
        lambda: make_sound(samples=np.zeros(0, np.float32)),
        lambda: make_sound(samples=np.zeros(0, np.float32), mel=np.zeros((80, 0)), marks=()),
        lambda: make_sound(mel=np.zeros((0, 0))),
        lambda: make_sound(mel=np.full((80, 200), np.nan)),
        lambda: make_sound(0.001),
        lambda: replace(make_pattern(), weights=np.full((3, 50), np.nan)),
        lambda: replace(make_pattern(300, 1500), seconds=30.0),
        lambda: replace(make_pattern(), seconds=0.0),
        lambda: Table((), ()),
    ],
)
def test_odd_figures_are_drawn(figure):
    page = study_page(make_study(figure()))
    assert not re.search(r"\bnan\b", re.sub(r"(?s)<(script|style)>.*?</\1>", "", page))


def test_the_page_stays_small():
    figures = [*(make_sound(5.0) for _ in range(3)), *(make_heat(12, 12) for _ in range(10))]
    assert len(study_page(make_study(*figures)).encode()) < 1_500_000
    assert len(study_page(make_study()).encode()) < 30_000


def test_it_is_written_as_one_file(tmp_path):
    study = make_study()
    assert write_study(study, tmp_path / "study.html").read_text(encoding="utf-8") == study_page(study)
    with pytest.raises(BadInput):
        write_study(study, tmp_path)


@pytest.fixture
def visit(visit, tmp_path):
    """Open the page of a study."""
    names = (tmp_path / f"{number}.html" for number in count())
    return lambda study, **settings: visit(write_study(study, next(names)), **settings)


@in_browser
def test_sound_and_images_load_without_a_network(visit):
    page = visit(make_full())
    loaded = "document.querySelector('audio').readyState >= 1"
    page.wait_for_function(loaded, timeout=10_000)
    assert page.evaluate("document.querySelector('audio').duration") == pytest.approx(2.0, abs=0.01)
    sizes = page.eval_on_selector_all("img", "all => all.map((each) => [each.naturalWidth, each.naturalHeight])")
    assert sizes == [[200, 80], [50, 3], [64, 1]]


@in_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window_or_cut(visit, width):
    page = visit(make_full(), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.eval_on_selector_all(
        "svg text",
        """all => all.filter((text) => {
            const box = text.getBoundingClientRect(), svg = text.closest("svg").getBoundingClientRect();
            return box.width && (box.left < svg.left - 1 || box.right > svg.right + 1 || box.bottom > svg.bottom + 1);
        }).map((text) => text.textContent)""",
    )
    assert cut == []


@in_browser
def test_images_stand_on_their_axes(visit):
    page = visit(make_full())
    for kind in ("sound", "pattern"):
        image, axis = page.evaluate(
            """(kind) => {
                const plot = document.querySelector(`.plot.${kind}`);
                const line = [...plot.querySelectorAll("path")].find((each) => /h860$/.test(each.getAttribute("d")));
                return [plot.querySelector("img"), line].map((each) => {
                    const box = each.getBoundingClientRect();
                    return [box.left, box.right, box.bottom];
                });
            }""",
            kind,
        )
        np.testing.assert_allclose(image, axis, atol=1)


@in_browser
def test_cells_are_named_under_the_pointer_and_by_keys(visit):
    study = make_full()
    panel = study.sections[0].figures[0].panel
    page = visit(study)
    page.locator("svg.map").first.scroll_into_view_if_needed()
    left, top, width, height, _, rows = map(int, page.locator("svg.map").first.get_attribute("data-grid").split())
    box = page.locator("svg.map").first.bounding_box()
    page.mouse.move(box["x"] + left + 1.5 * width, box["y"] + top + (rows - 0.5) * height)
    told = page.locator("#tip").inner_text()
    assert "layer 0 · w1" in told
    assert f"{panel.values[0, 1]:.3f}" in told
    page.mouse.move(2, 2)
    assert page.locator("#tip").is_hidden()
    page.focus("summary")
    page.keyboard.press("Shift+Tab")
    assert "layer 2 · w0" in page.locator("#live").text_content()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert "layer 1 · w1" in page.locator("#live").text_content()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


@in_browser
def test_dark_mode_keeps_verdicts_and_figures_apart_from_the_page(visit):
    page = visit(make_full(), scheme="dark")
    brightness = """(pair) => getComputedStyle(document.querySelector(pair[0]))[pair[1]]
        .match(/[0-9]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)"""
    back, pill, word, wave_ = (
        page.evaluate(brightness, list(pair))
        for pair in (
            ("body", "backgroundColor"),
            (".contradicts .pill", "backgroundColor"),
            (".contradicts .pill", "color"),
            (".wave", "fill"),
        )
    )
    assert back < 150
    assert min(pill, wave_) > back + 250
    assert word < pill - 250
    assert "invert" in page.evaluate("getComputedStyle(document.querySelector('.raster')).filter")


@in_browser
def test_hostile_texts_do_nothing(visit):
    page = visit(make_study(*evil_figures(), title=EVIL, findings=(replace(FINDING, said=EVIL),)))
    page.locator("svg.map").first.hover()
    assert page.locator("img:not(.raster)").count() == 0
    assert page.locator("h1").inner_text() == EVIL
