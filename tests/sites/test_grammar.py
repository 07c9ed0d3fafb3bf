"""The grammar of selections: round trips, a naive twin of the expansion, and marked errors."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.sites import EACH, KINDS, Extent, Pattern, Selection, Site, Span, parse

from .strategies import EXTENT, built, parts_of_selections


@settings(suppress_health_check=[HealthCheck.too_slow])  # how fast texts are drawn is the machine's own matter
@given(parts_of_selections())
def test_a_selection_reads_back_from_its_text(parts):
    selection = built(parts)
    assert parse(str(selection)) == selection


@given(parts_of_selections(), st.data())
def test_spaces_change_nothing(parts, data):
    selection = built(parts)
    spaced = "".join(
        mark + data.draw(st.sampled_from(["", " ", "\n"])) if mark in ",[]@|" else mark for mark in str(selection)
    )
    assert parse(spaced) == selection


def numbers(items, count):
    """Twin: ask of every item what it holds, by Python's own indexing."""
    found = []
    for item in items:
        if item == "all":
            found.append(None)
        elif isinstance(item, Span):
            found += list(range(count))[item.start : item.stop]
        else:
            found.append(list(range(count))[item])  # IndexError when out of range
    return found


def naive_expand(selection, extent, star):
    found = []
    for pattern in selection.patterns:
        kind = KINDS[pattern.kind]
        layers = numbers(pattern.layers, extent.layers) if kind.has_layers else [None]
        units = numbers(pattern.units, extent.units[kind.name]) if kind.unit else [None]
        places = [None] if pattern.positions is None else []
        for item in pattern.positions or ():
            if not isinstance(item, Span):
                places.append(item)
                continue
            chosen = star[item.start : item.stop]
            from_end = (item.start or 0) < 0 and (item.stop is None or item.stop < 0)
            places += [place - len(star) for place in chosen] if from_end else chosen
        assert layers
        assert units
        assert places
        found += [Site(kind.name, layer, unit, place) for layer in layers for unit in units for place in places]
    return [site for index, site in enumerate(found) if site not in found[:index]]


@given(parts_of_selections(EXTENT) | parts_of_selections(), st.integers(1, 12))
def test_expansion_equals_the_naive_twin(parts, length):
    selection = built(parts)
    star = list(range(length))
    try:
        expected = naive_expand(selection, EXTENT, star)
    except (IndexError, AssertionError):
        with pytest.raises((UnknownName, BadInput)):
            selection.expand(EXTENT, star)
    else:
        assert list(selection.expand(EXTENT, star)) == expected


def texts(text, star=(), extent=EXTENT):
    return [str(site) for site in parse(text).expand(extent, star)]


def test_a_kind_alone_is_every_layer_and_every_unit():
    assert texts("resid.pre") == [f"resid.pre[{layer}]" for layer in range(6)]
    assert texts("attn.head") == texts("attn.head[*]") == texts("attn.head[*, *]") == texts("attn.head[:]")
    assert len(texts("attn.head")) == 24
    assert texts("attn.k")[:2] == ["attn.k[0, 0]", "attn.k[1, 0]"]
    assert texts("embed, logits") == ["embed", "logits"]


def test_layers_then_units_then_positions_in_the_written_order():
    assert texts("attn.head[1|0, 3:]@end|S2+1") == [
        "attn.head[1, 3]@end", "attn.head[1, 3]@S2+1", "attn.head[0, 3]@end", "attn.head[0, 3]@S2+1",
    ]  # fmt: skip
    assert texts("mlp.out[0], embed, mlp.out[0|1]") == ["mlp.out[0]", "embed", "mlp.out[1]"]


def test_negative_numbers_count_from_the_end():
    assert texts("resid.pre[-1|-2:]") == ["resid.pre[5]", "resid.pre[4]"]
    assert texts("attn.head[-6, -1]") == ["attn.head[0, 3]"]


def test_all_units_together_is_one_site():
    assert parse("attn.head[2, all]").expand(EXTENT) == (Site("attn.head", 2),)
    assert parse("attn.head[2, all]").expand(Extent(3, {})) == (Site("attn.head", 2),)
    assert texts("attn.head[2, 1|all]") == ["attn.head[2, 1]", "attn.head[2, all]"]


def test_positions_keep_their_names_and_their_sides():
    assert [site.position for site in parse("embed@S2|end-1|3|-1|all").expand(EXTENT)] == ["S2", "end-1", 3, -1, "all"]
    assert [site.position for site in parse("embed@-3:").expand(EXTENT)] == [-3, -2, -1]
    assert [site.position for site in parse("embed@:2").expand(EXTENT)] == [0, 1]
    assert [site.position for site in parse("embed@*").expand(EXTENT, ["BOS", "S2", 2])] == ["BOS", "S2", 2]
    assert [site.position for site in parse("embed@1:").expand(EXTENT, range(3))] == [1, 2]
    assert [site.position for site in parse("embed@:9").expand(EXTENT, range(3))] == [0, 1, 2]
    assert [site.position for site in parse("embed@-2:2").expand(EXTENT, range(3))] == [1]
    assert [site.position for site in parse("embed@1|:2").expand(EXTENT)] == [1, 0]
    assert parse("embed").patterns[0].positions is None
    assert parse("embed").expand(EXTENT)[0].position is None


def test_parts_are_kept_as_parsed():
    assert parse("attn.head[2:6, 3]@S2 + 1|*") == Selection(
        (Pattern("attn.head", (Span(2, 6),), (3,), ("S2+1", EACH)),)
    )
    assert str(parse("attn.head[ * , * ] @ 0:,resid.pre[ : ]")) == "attn.head@0:, resid.pre"
    assert str(parse("embed@1|S2|1|S2+0")) == "embed@1|S2"
    assert str(parse("embed@S2+0|S2-01")) == "embed@S2|S2-1"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("attn.head[5, 3@S2", 15, ["expected `]`"]),
        ("attn.head[5 3]", 13, ["expected `]`"]),
        ("attn.head[]", 11, ["expected a layer", "2:6"]),
        ("attn.head[all]", 11, ["expected a layer"]),
        ("attn.head[5, S2]", 14, ["expected a unit", "`all`"]),
        ("attn.head[5,]", 13, ["expected a unit"]),
        ("resid.pre[3]@", 14, ["expected a position", "S2+1"]),
        ("resid.pre[3]@S2|", 17, ["expected a position"]),
        ("resid.pre@all-1", 11, ["takes no offset"]),
        ("resid.pre[3]]", 13, ["expected `,`", "the end"]),
        ("resid.pre,,embed", 11, ["expected a kind"]),
        ("resid.pre,", 11, ["expected a kind"]),
        ("5", 1, ["expected a kind"]),
        ("resid.pre[0:10:2]", 15, ["two ends", "no step"]),
        ("embed[0]", 1, ["embed has no layers", "write embed alone"]),
        ("resid.pre[3, 2]", 13, ["resid.pre has no units", "Kinds with units: attn.q"]),
        ("resid.pre[3, *]", 13, ["no units"]),
        ("resid.pre[1234567890]", 11, ["expected a layer"]),
        ("resid.pre@1234567890", 11, ["expected a position"]),
        ("resid.pre@S2+1234567890", 13, ["expected `,`"]),
    ],
)
def test_errors_mark_the_place(text, place, words):
    with pytest.raises(BadInput) as raised:
        parse(text)
    said, shown, caret, *_ = str(raised.value).split("\n")
    assert f"character {place}:" in said
    assert shown == f"  {text}"
    assert caret.index("^") - 2 == place - 1
    assert all(word in said for word in words)


def test_the_place_is_marked_in_a_long_text_of_several_lines():
    text = ",\n".join(["resid.pre[0]"] * 40 + ["mlp.out[x]"] + ["resid.pre[1]"] * 40)
    with pytest.raises(BadInput) as raised:
        parse(text)
    _, shown, caret, *_ = str(raised.value).split("\n")
    assert shown[caret.index("^")] == "x"
    assert len(shown) < 130


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_text_is_refused(text):
    with pytest.raises(BadInput, match=r"empty.*resid\.pre"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("attn.heads[3]", ["'attn.heads'", "Did you mean 'attn.head'?", "logits"]),
        ("resid", ["'resid'", "resid.pre"]),
        ("resid.*", ["'resid.*'"]),
    ],
)
def test_an_unknown_kind_names_the_closest(text, words):
    with pytest.raises(UnknownName) as raised:
        parse(text)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("attn.head[40]", ["attn.head[40]", "layers 0..5", "-6..-1", "crosspatch sites"]),
        ("attn.head[-7]", ["attn.head[-7]", "layers 0..5"]),
        ("attn.head[0, 4]", ["attn.head[*, 4]", "heads 0..3"]),
        ("attn.k[0, 1]", ["key-value heads 0..0"]),
        ("mlp.hidden[0, 5|99]", ["mlp.hidden[*, 99]", "neurons 0..6"]),
    ],
)
def test_a_layer_or_unit_out_of_range_says_the_range(text, words):
    with pytest.raises(UnknownName) as raised:
        parse(text).expand(EXTENT)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resid.pre[9:12]", ["resid.pre[9:12]", "lists nothing", "layers 0..5"]),
        ("attn.head[0, 4:]", ["lists nothing", "heads 0..3"]),
        ("embed@4:2", ["4:2", "list none"]),
        ("embed@*", ["*", "positions_for_star"]),
        ("embed@2:-1", ["2:-1", "positions_for_star"]),
    ],
)
def test_parts_that_list_nothing_are_refused(text, words):
    with pytest.raises(BadInput) as raised:
        parse(text).expand(EXTENT)
    assert all(word in str(raised.value) for word in words)


def test_units_of_a_model_that_does_not_state_them_are_refused():
    with pytest.raises(BadInput, match=r"mlp\.hidden.*neurons.*not known.*mlp\.hidden\[\*, all\]"):
        parse("mlp.hidden").expand(Extent(3, {}))
