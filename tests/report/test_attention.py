"""The attention of heads inside a page: what is kept within its budget, what is said, what comes out again."""

import json
import zlib
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest

from builders import make_effects, make_patterns, small_effects
from crosspatch.core.errors import BadInput
from crosspatch.lenses.head_patterns import rank_heads
from crosspatch.report import attention
from crosspatch.report.page import page_html
from crosspatch.sites import Site

EVIL = "<script>alert(1)</script>"
EFFECTS = make_effects(heads=4)
PATTERNS = make_patterns(EFFECTS)


def rows(effects=EFFECTS, kind="attn.head"):
    return list(effects.top(8, kind=kind))


def unpacked(text):
    return np.frombuffer(zlib.decompress(b64decode(text)), np.uint8)


def test_bytes_come_out_pair_by_pair_head_by_head_run_by_run():
    made = attention.attention_of(EFFECTS, PATTERNS, rows())
    facts = json.loads(made.facts)
    cells = 8 * 72 * 2 * 15 * 15
    found = unpacked(made.numbers)[:cells].reshape(8, 72, 2, 15, 15)
    np.testing.assert_array_equal(found, np.stack([pattern.swapaxes(0, 1) for pattern in PATTERNS.patterns]))
    written = unpacked(made.numbers)[cells:].reshape(8, 72, 2, 15) / 255 * np.array(facts["sizes"])[:, :, None, None]
    np.testing.assert_allclose(written, np.stack([sizes.swapaxes(0, 1) for sizes in PATTERNS.sizes]), atol=0.05)
    assert facts["heads"][46] == [11, 2]
    assert facts["pairs"][0]["names"] == {"2": "IO", "4": "S1", "5": "S1+1", "10": "S2", "14": "end"}
    assert facts["pairs"][0]["tokens"][1][10] == "Lucy"
    assert made.note == "Attention of all 72 heads on the first 8 pairs of 24 is on this page."


def test_attention_without_sizes_is_shown_as_it_is():
    plain = replace(PATTERNS, sizes=())
    made = attention.attention_of(EFFECTS, plain, rows())
    assert json.loads(made.facts)["sizes"] == []
    assert 'id="choose-weighting"' not in page_html(EFFECTS, attention=plain)
    assert 'id="choose-weighting"' in page_html(EFFECTS, attention=PATTERNS)


def test_heads_that_write_nothing_have_no_size():
    silent = replace(PATTERNS, sizes=tuple(np.zeros_like(sizes) for sizes in PATTERNS.sizes))
    assert not unpacked(attention.packed(silent))[8 * 72 * 2 * 15 * 15 :].any()


def test_the_table_needs_no_script():
    """The first line is the head with the strongest effect: from the end it looks at S1, on the clean prompt."""
    line = attention.attention_of(EFFECTS, PATTERNS, rows()).lines[0]
    assert line.site == "attn.head[11, 2]@end"
    assert line.texts[0] == "end “to” → S1 “John” 0.98"
    assert "What a head attends to" in page_html(EFFECTS, attention=PATTERNS)
    assert "end “to” → S1 “John” 0.98" in page_html(EFFECTS, attention=PATTERNS).split("<script")[0]


def test_a_shared_key_is_told_by_the_first_head_that_reads_it():
    effects = small_effects([Site("attn.k", 1, 0, "S1")], np.ones((1, 8)))
    line = attention.attention_of(effects, make_patterns(effects), rows(effects, "attn.k")).lines[0]
    assert line.site == "attn.k[1, 0]@S1, head 0"
    assert "→ S1 “" in line.texts[0]


@pytest.mark.parametrize(
    ("at", "key", "told"),
    [
        (2, False, "2 “c” → 0 “a” 0.59"),
        (1, True, "1 “b” → 1 “b” 0.78"),
        (None, False, "1 “b” → 1 “b” 0.78"),
        (-1, False, "2 “c” → 0 “a” 0.59"),
    ],
)
def test_the_strongest_entry_of_a_query_a_key_or_the_map(at, key, told):
    weights = np.array([[255, 0, 0], [55, 200, 0], [150, 90, 15]], np.uint8)
    example = replace(EFFECTS.examples[0], names={})
    assert attention.entry_text(weights, ("a", " b", "c"), example, at=at, key=key) == told


def test_pairs_are_left_out_before_heads():
    most = len(attention.packed(PATTERNS.part(3, range(72))))
    part, text = attention.fit(PATTERNS, (), most)
    assert (len(part.patterns), len(part.chosen), len(text)) == (3, 72, most)
    assert "the first 3 pairs of 24" in attention.note_of(part, PATTERNS)


def test_the_strongest_heads_stay_where_one_pair_is_too_much():
    ranked = rank_heads(EFFECTS)
    most = len(attention.packed(PATTERNS.part(1, range(72)))) // 6
    part, text = attention.fit(PATTERNS, ranked, most)
    assert len(text) <= most
    assert 8 < len(part.chosen) < 20
    assert set(part.chosen) == set(ranked[: len(part.chosen)])
    told = f"the {len(part.chosen)} heads with the strongest effects, of 72, on the first pair of 24"
    assert told in attention.note_of(part, PATTERNS)
    assert len(attention.fit(PATTERNS, ranked, 1)[0].chosen) == 1


def test_no_more_than_a_megabyte():
    """Long prompts of 18 × 4 heads, with nothing that packs well: 8 pairs do not fit, what is kept does."""
    effects = make_effects(heads=4, kinds=())
    long = tuple(f"w{i}" for i in range(150))
    effects = replace(
        effects, examples=tuple(replace(e, clean_tokens=long, corrupt_tokens=long) for e in effects.examples)
    )
    noise = np.random.default_rng(0).integers(0, 256, (2, 72, 150, 150), dtype=np.uint8)
    sizes = np.random.default_rng(1).gamma(4.0, 1.0, (2, 72, 150)).astype(np.float32)
    patterns = replace(PATTERNS, patterns=(noise,) * 2, sizes=(sizes,) * 2, tokens=((long, long),) * 2)
    made = attention.attention_of(effects, patterns, rows(effects))
    assert len(made.numbers) <= attention.MOST_LETTERS
    assert "heads with the strongest effects, of 72, on the first pair" in made.note
    assert len(page_html(effects, attention=patterns).encode()) - len(page_html(effects).encode()) <= 1024 * 1024


def test_a_real_shape_stays_in_its_budget():
    """18 × 15 × 3 sites × 64 pairs and 18 × 4 heads: 300 KB without attention, a megabyte more at most with it."""
    effects = make_effects(heads=4, n=64)
    plain = len(page_html(effects).encode())
    whole = len(page_html(effects, attention=make_patterns(effects)).encode())
    assert plain <= 300 * 1024
    assert whole - plain <= 1024 * 1024


def test_attention_of_other_prompts_is_refused():
    for changes in ({"model": "other"}, {"layers": 19}, {"examples": EFFECTS.examples[1:] + EFFECTS.examples[:1]}):
        with pytest.raises(BadInput, match="read it from the same model and task"):
            page_html(replace(EFFECTS, **changes), attention=PATTERNS)


def test_without_heads_or_attention_the_page_says_nothing_of_it():
    assert page_html(make_effects(layers=18), attention=PATTERNS) == page_html(make_effects(layers=18))
    assert 'id="attention"' not in page_html(EFFECTS)


def test_noise_on_embeddings_shows_the_clean_run_alone():
    made = attention.attention_of(EFFECTS, make_patterns(EFFECTS, runs=("clean",)), rows())
    assert made.runs == ("clean run",)
    assert "its attention was not read" in made.note


def test_evil_tokens_stay_text():
    evil = (EVIL,) * 15
    examples = tuple(replace(e, clean_tokens=evil, corrupt_tokens=evil, names={EVIL: 14}) for e in EFFECTS.examples)
    effects = replace(EFFECTS, examples=examples)
    html = page_html(effects, attention=make_patterns(effects))
    assert EVIL not in html
    assert "&lt;script&gt;alert(1)" in html.split('id="attention"')[1].split("</section>")[0]
    assert "\\u003cscript\\u003e" in html.split('id="attention-facts"')[1]
