"""TransformerLens names go both ways, and those that mean something else are explained."""

import pytest

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.sites import KINDS, Site, from_transformer_lens, parse, to_transformer_lens

from .strategies import EXTENT

NAMES = {
    "hook_embed": Site("embed"),
    "blocks.5.hook_resid_pre": Site("resid.pre", 5),
    "blocks.5.hook_resid_mid": Site("resid.mid", 5),
    "blocks.5.hook_resid_post": Site("resid.post", 5),
    "blocks.5.hook_attn_out": Site("attn.out", 5),
    "blocks.5.hook_mlp_out": Site("mlp.out", 5),
    "blocks.0.attn.hook_q": Site("attn.q", 0),
    "blocks.0.attn.hook_k": Site("attn.k", 0),
    "blocks.0.attn.hook_v": Site("attn.v", 0),
    "blocks.5.attn.hook_z": Site("attn.head", 5),
    "blocks.5.attn.hook_pattern": Site("attn.pattern", 5),
    "blocks.5.mlp.hook_post": Site("mlp.hidden", 5),
}


@pytest.mark.parametrize(("name", "site"), NAMES.items())
def test_names_go_both_ways(name, site):
    assert from_transformer_lens(name) == site
    assert to_transformer_lens(site) == name


def test_unit_and_position_are_indices_into_the_named_activation():
    assert to_transformer_lens(Site("attn.head", 5, 3, "S2")) == "blocks.5.attn.hook_z"


def test_every_kind_has_a_name_or_an_error():
    named = {site.kind for site in NAMES.values()}
    for kind in KINDS.values():
        site = Site(kind.name, 0 if kind.has_layers else None)
        if kind.name in named:
            assert from_transformer_lens(to_transformer_lens(site)) == site
        else:
            with pytest.raises(BadInput, match=f"{kind.name} has no name in TransformerLens.*resid.pre"):
                to_transformer_lens(site)


def test_names_in_a_selection_mean_the_kind_with_each_unit():
    selection = parse("blocks.5.attn.hook_z@end, hook_embed, blocks.0.hook_resid_pre")
    assert selection == parse("attn.head[5]@end, embed, resid.pre[0]")
    assert len(selection.expand(EXTENT)) == 6


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("blocks.5.hook_attn_in", BadInput, ["before the norm", "resid.pre", "attn.in"]),
        ("blocks.5.hook_mlp_in", BadInput, ["resid.mid", "mlp.in"]),
        ("blocks.5.ln1.hook_normalized", BadInput, ["normalised", "attn.in"]),
        ("ln_final.hook_normalized", BadInput, ["normalised", "logits"]),
        ("blocks.5.hook_result", BadInput, ["after the output projection", "attn.head"]),
        ("blocks.5.attn.hook_result", BadInput, ["after the output projection", "attn.head"]),
        ("blocks.5.attn.hook_attn_scores", BadInput, ["before the softmax", "attn.pattern"]),
        ("blocks.5.attn.hook_rot_q", BadInput, ["after the rotary", "attn.q"]),
        ("blocks.5.mlp.hook_pre", BadInput, ["before the activation", "mlp.hidden"]),
        ("hook_pos_embed", BadInput, ["position embedding", "embed"]),
        ("blocks.*.attn.hook_z", BadInput, ["must be a number", "write attn.head", "attn.head[2:6]"]),
        ("blocks.-1.attn.hook_z", BadInput, ["must be a number"]),
        ("blocks.5.attn.hook_zz", UnknownName, ["blocks.5.attn.hook_zz", "blocks.0.attn.hook_z'"]),
        ("attn.hook_z", UnknownName, ["blocks.0.attn.hook_z"]),
        ("blocks.5.hook_embed", UnknownName, ["hook_embed"]),
    ],
)
def test_names_without_an_equal_are_explained(name, error, words):
    with pytest.raises(error) as raised:
        from_transformer_lens(name)
    assert name in str(raised.value)
    assert all(word in str(raised.value) for word in words)


def test_the_explanation_reaches_a_selection_too():
    with pytest.raises(BadInput, match="before the softmax"):
        parse("resid.pre, blocks.5.attn.hook_attn_scores")
    with pytest.raises(BadInput, match="must be a number"):
        parse("blocks.*.attn.hook_z")
    with pytest.raises(BadInput, match=r"takes no bracket: write attn\.head\[5, …\]"):
        parse("blocks.5.attn.hook_z[3]")
