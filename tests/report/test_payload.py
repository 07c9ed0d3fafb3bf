import json
import zlib
from base64 import b64decode

import numpy as np
import pytest

from builders import make_effects
from crosspatch.report import payload


def unpack(text):
    """What the page's script does: inflate, put the four bytes of each number together again."""
    planes = np.frombuffer(zlib.decompress(b64decode(text)), np.uint8).reshape(4, -1)
    return planes.T.copy().view("<f4").ravel()


def build(effects, top=(0, 1)):
    made = payload.build_payload(effects, effects.drawable(), top=list(top))
    facts = json.loads(made.facts)
    names = zlib.decompress(b64decode(made.names)).decode().split("\n")
    assert len(names) == facts["sites"]
    return made, facts | {"sites": names}, unpack(made.numbers)


def test_packing_is_exact():
    values = np.array([[0.0, -1.5, np.nan, np.inf, 1e-30]], np.float32)
    np.testing.assert_array_equal(unpack(payload.pack(values)), values.ravel())


def test_rounding_keeps_fifteen_bits():
    values = np.random.default_rng(0).normal(0, 1, 5000).astype(np.float32)
    found = unpack(payload.pack(values, drop=9))
    np.testing.assert_allclose(found, values, rtol=2**-15)
    assert (found != values).any()
    special = np.array([np.nan, 0.0, -0.0, np.inf], np.float32)
    np.testing.assert_array_equal(unpack(payload.pack(special, drop=9)), special)


def test_the_page_carries_means_intervals_and_pairs_of_every_cell():
    effects = make_effects(layers=4, heads=2, n=6)
    made, facts, floats = build(effects)
    total = len(effects.sites)
    assert facts["sites"] == [str(site) for site in effects.sites]
    columns = {name: floats[i * total : (i + 1) * total] for i, name in enumerate(facts["columns"])}
    np.testing.assert_array_equal(columns["mean"], effects.mean())
    np.testing.assert_array_equal(columns["raw_high"], effects.interval(scale="raw")[1])
    np.testing.assert_allclose(columns["q"], effects.q_values(), rtol=1e-6)
    np.testing.assert_array_equal(floats[8 * total :].reshape(total, 6), effects.raw)
    assert (made.rounded, made.partial, facts["rows"]) == (False, False, None)


def test_each_cell_points_to_its_site():
    effects = make_effects(layers=3, heads=2, n=4)
    _, facts, _ = build(effects)
    for panel, grid in zip(facts["panels"], effects.drawable(), strict=True):
        named = [[facts["sites"][i] for i in row] for row in panel["index"]]
        assert named == [[str(effects.sites[i]) for i in row] for row in grid.index]
        assert panel["columns"] == list(grid.columns)


def test_cells_without_a_site_point_nowhere():
    effects = make_effects(layers=3, n=4).only(range(1, 45))
    _, facts, _ = build(effects)
    assert facts["panels"][0]["index"][0][0] == -1


def test_many_values_are_rounded_and_said_to_be(monkeypatch):
    effects = make_effects(layers=3, n=8)
    exact = len(build(effects)[0].numbers)
    monkeypatch.setattr(payload, "MOST_LETTERS", exact - 1)
    made, _, floats = build(effects)
    assert (made.rounded, made.partial) == (True, False)
    assert len(made.numbers) < exact
    np.testing.assert_allclose(floats[8 * 135 :].reshape(135, 8), effects.raw, rtol=3e-5)


def test_too_many_values_leave_only_those_of_the_strongest(monkeypatch):
    monkeypatch.setattr(payload, "MOST_VALUES", 100)
    effects = make_effects(layers=3, n=8)
    made, facts, floats = build(effects, top=(3, 40))
    assert made.partial
    assert facts["rows"] == [3, 40]
    np.testing.assert_array_equal(floats[8 * 135 :].reshape(2, 8), effects.raw[[3, 40]])


def test_what_else_stands_on_the_page_takes_room_from_single_values():
    """Exact while there is room, then rounded, then of the strongest sites alone, whose values are exact again."""
    effects = make_effects(layers=3, n=8)
    room = payload.MOST_LETTERS
    less = len(build(effects)[0].numbers)
    for told in ((False, False), (True, False), (False, True)):
        made = payload.build_payload(effects, effects.drawable(), top=(3, 40), taken=room - less)
        assert (made.rounded, made.partial) == told
        assert len(made.numbers) <= less
        less = len(made.numbers) - 1


def test_counts_are_never_rounded():
    """Whole numbers of more than fifteen bits, as of pairs, stay what they are; what is no number stays none."""
    values = np.array([40_001, 99_999, -70_001, 0.1, np.nan, np.inf], np.float32)
    rounded = unpack(payload.pack(values, drop=9))
    np.testing.assert_array_equal(rounded[[0, 1, 2, 4, 5]], values[[0, 1, 2, 4, 5]])
    assert rounded[3] == pytest.approx(0.1, rel=3e-5)
    assert rounded[3] != values[3]


def test_a_page_without_any_room_still_has_its_means():
    effects = make_effects(layers=3, n=8)
    made = payload.build_payload(effects, effects.drawable(), top=(3, 40), taken=payload.MOST_LETTERS)
    assert (made.rounded, made.partial) == (True, True)
    assert made.numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_become_null(value):
    assert payload.to_script_json({"a": [value, np.float32(1.5)]}) == '{"a":[null,"1.5"]}'


def test_script_data_holds_no_markup():
    text = payload.to_script_json(["</script><!--", "a & b", "\u2028"])
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == ["</script><!--", "a & b", "\u2028"]
