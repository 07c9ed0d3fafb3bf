"""Sites are data: text and back, order, and errors that say what to write."""

import random
import subprocess
import sys

import pytest
from hypothesis import given

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.sites import KINDS, Site, parse, parse_site

from .strategies import EXTENT, sites


@given(sites())
def test_a_site_reads_back_from_its_text(site):
    assert parse_site(str(site)) == site


@given(sites())
def test_a_site_s_text_selects_exactly_that_site(site):
    if site.layer is not None:
        site = Site(site.kind, site.layer % EXTENT.layers, site.unit, site.position)
    if site.unit is not None:
        site = Site(site.kind, site.layer, site.unit % EXTENT.units[site.kind], site.position)
    assert parse(str(site)).expand(EXTENT) == (site,)


@pytest.mark.parametrize(
    ("site", "text"),
    [
        (Site("embed"), "embed"),
        (Site("logits", position=-1), "logits@-1"),
        (Site("resid.pre", 3, position="S2+1"), "resid.pre[3]@S2+1"),
        (Site("attn.head", 5, 3, "all"), "attn.head[5, 3]@all"),
        (Site("attn.head", 5), "attn.head[5, all]"),
    ],
)
def test_texts_of_sites(site, text):
    assert str(site) == text


def test_sites_sort_in_the_order_of_a_forward_pass():
    ordered = [
        Site("embed"),
        Site("resid.pre", 0),
        Site("resid.pre", 0, position=-1),
        Site("resid.pre", 0, position=2),
        Site("resid.pre", 0, position="S2"),
        Site("attn.head", 0),
        Site("attn.head", 0, 0),
        Site("attn.head", 0, 1),
        Site("mlp.hidden", 0, 5),
        Site("resid.post", 0),
        Site("resid.pre", 1),
        Site("logits"),
    ]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert sorted(shuffled) == ordered
    assert len({*ordered, *shuffled}) == len(ordered)
    with pytest.raises(TypeError):
        assert ordered[0] < "embed"


def test_the_table_of_kinds():
    assert [name for name, kind in KINDS.items() if not kind.has_layers] == ["embed", "logits"]
    assert {name: kind.unit for name, kind in KINDS.items() if kind.unit} == {
        "attn.q": "head",
        "attn.k": "kv_head",
        "attn.v": "kv_head",
        "attn.pattern": "head",
        "attn.head": "head",
        "cross.q": "head",
        "cross.k": "kv_head",
        "cross.v": "kv_head",
        "cross.head": "head",
        "mlp.hidden": "neuron",
    }
    assert all(
        name.startswith(("attn", "cross", "mlp", "resid")[index])
        for name, kind in KINDS.items()
        for index, part in enumerate(("attention", "cross-attention", "mlp", "residual"))
        if kind.part == part
    )


def test_kinds_of_a_stack():
    """A stack's name stands before the kind, in selections and in sites; they sort stack by stack."""
    site = Site("decoder.cross.head", 3, 1, "end")
    assert parse_site(str(site)) == site
    assert str(site) == "decoder.cross.head[3, 1]@end"
    assert [str(each) for each in parse("encoder.resid.post[0|1], vision.embed").expand(EXTENT)] == [
        "encoder.resid.post[0]", "encoder.resid.post[1]", "vision.embed",
    ]  # fmt: skip
    ordered = [Site("resid.post", 4), Site("decoder.resid.pre", 0), Site("decoder.mlp.out", 0), Site("encoder.embed")]
    assert sorted(reversed(ordered)) == ordered
    with pytest.raises(UnknownName, match=r"decoder\.resid"):
        Site("decoder.resid", 0)
    with pytest.raises(BadInput, match=r"encoder\.resid\.post"):
        Site("encoder.resid.post", 0, 1)


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        (("attn.heads", 0), UnknownName, ["attn.heads", "attn.head'", "resid.pre"]),
        (("resid.pre",), BadInput, ["resid.pre", "needs a layer", "resid.pre[0]"]),
        (("embed", 2), BadInput, ["embed", "no layers", "layer 2"]),
        (("resid.pre", 0, 1), BadInput, ["resid.pre", "no units", "attn.head"]),
        (("logits", None, 1), BadInput, ["no units", "write logits."]),
        (("resid.pre", -1), BadInput, ["layer -1", "negative", "from 0"]),
        (("attn.head", 0, -2), BadInput, ["unit -2", "negative"]),
        (("resid.pre", 0, None, "S2 + 1"), BadInput, ["'S2 + 1'", "S2+1"]),
        (("resid.pre", 0, None, "S2+0"), BadInput, ["'S2+0'"]),
        (("resid.pre", 0, None, "all+1"), BadInput, ["'all+1'"]),
        (("resid.pre", 0, None, "*"), BadInput, ["'*'"]),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, error, words):
    with pytest.raises(error) as raised:
        Site(*parts)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("attn.head[5]", ["unit", "open", "attn.head[5, all]"]),
        ("attn.head[5, *]", ["unit", "open"]),
        ("resid.pre", ["layer", "open", "(*)"]),
        ("resid.pre[1|2]", ["layer", "1|2"]),
        ("resid.pre[2:3]", ["layer", "2:3"]),
        ("resid.pre[2]@*", ["position", "open"]),
        ("embed, logits", ["several sites", "parse"]),
        ("resid.pre[-1]", ["negative"]),
    ],
)
def test_text_that_names_no_single_site_is_refused(text, words):
    with pytest.raises(BadInput) as raised:
        parse_site(text)
    assert all(word in str(raised.value) for word in words)


def test_addresses_load_no_torch():
    code = "import sys, crosspatch.sites; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
