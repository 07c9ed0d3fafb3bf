"""Random sites, selections and extents for the tests of addresses."""

from hypothesis import strategies as st

from crosspatch.sites import KINDS, Extent, Pattern, Selection, Site, Span

NAMES = st.sampled_from(["S2", "end", "IO", "subject.last", "größe", "_x9"])
OFFSETS = st.sampled_from(["", "+1", "-1", "+12"])
NAMED = st.builds("{}{}".format, NAMES, OFFSETS)
SMALL = st.integers(-9, 9)
SPANS = st.builds(Span, st.none() | SMALL, st.none() | SMALL)
EXTENT = Extent(
    6,
    {"attn.q": 4, "attn.k": 1, "attn.v": 1, "attn.pattern": 4, "attn.head": 4, "mlp.hidden": 7}
    | {"cross.q": 4, "cross.k": 2, "cross.v": 2, "cross.head": 4},
)


@st.composite
def sites(draw):
    kind = KINDS[draw(st.sampled_from(list(KINDS)))]
    natural = st.integers(0, 10**6)
    layer = draw(natural) if kind.has_layers else None
    unit = draw(st.none() | natural) if kind.unit else None
    return Site(kind.name, layer, unit, draw(st.none() | st.integers(-(10**6), 10**6) | NAMED | st.just("all")))


def _items(item):
    return st.lists(item, min_size=1, max_size=4, unique=True).map(tuple)


def _present(count):
    """Draw items of which one at least, and every number, is there among `count`."""
    number = st.integers(-count, count - 1)
    return st.tuples(number, number | SPANS).map(lambda pair: tuple(dict.fromkeys(pair)))


@st.composite
def parts_of_selections(draw, extent=None):
    """Draw the fields of patterns, of a model of that extent if there is one.

    `built` makes the selection outside, because the type checks draw random numbers too.
    """
    patterns = []
    for name in draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=4)):
        layers, units = (), ()
        if KINDS[name].has_layers:
            layers = draw(_present(extent.layers) if extent else _items(SMALL | SPANS))
        if KINDS[name].unit:
            units = draw((_present(extent.units[name]) if extent else _items(SMALL | SPANS)) | st.just(("all",)))
        positions = draw(st.none() | _items(SMALL | SPANS | NAMED | st.just("all")))
        patterns.append((name, layers, units, positions))
    return patterns


def built(parts):
    return Selection(tuple(Pattern(*fields) for fields in parts))
