"""From a selection's text to sites: customary positions, stars, and everything that a model or task does not have."""

from dataclasses import replace

import pytest

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.engine.patching import patch
from crosspatch.engine.select import one_layout, select_sites, selection_text, star_positions
from crosspatch.sites import Site
from crosspatch.tasks import Task
from zoo import make_pair, make_task, opened, uneven

SAME = make_task(make_pair(5, (2,)), make_pair(5, (2,), seed=1))
UNEVEN = make_task(*uneven())
NAMELESS = make_task(*(replace(pair, names={}) for pair in uneven()))


def chosen(sites: str | list[Site], task: Task = SAME, name: str = "llama") -> list[str]:
    return [str(site) for site in select_sites(opened(name), task, sites)]


def test_customary_positions() -> None:
    """Each position for layer-wide kinds, all together for heads and neurons."""
    assert chosen("resid.pre[1]") == [f"resid.pre[1]@{i}" for i in range(5)]
    assert chosen("embed") == [f"embed@{i}" for i in range(5)]
    assert chosen("attn.head[1]") == [f"attn.head[1, {h}]@all" for h in range(4)]
    assert chosen("attn.v[1, all]") == ["attn.v[1, all]@all"]
    assert chosen("mlp.hidden[0, 5:7]") == ["mlp.hidden[0, 5]@all", "mlp.hidden[0, 6]@all"]


def test_sites_without_a_position_get_the_customary_ones() -> None:
    """Sites given one by one are treated as text is."""
    assert chosen([Site("mlp.out", 2), Site("attn.q", 0, 3), Site("mlp.out", 1, None, "mid")]) == [
        *(f"mlp.out[2]@{i}" for i in range(5)),
        "attn.q[0, 3]@all",
        "mlp.out[1]@mid",
    ]


def test_a_star_is_indices_where_prompts_share_a_layout_and_names_where_not() -> None:
    """Names come in the order of the prompt; without names, indices of the longest prompt."""
    assert star_positions(SAME) == (0, 1, 2, 3, 4)
    assert star_positions(UNEVEN) == ("mid", "end")
    assert star_positions(NAMELESS) == tuple(range(9))
    moved = make_task(make_pair(5, (2,)), make_pair(5, (3,), seed=1))
    assert star_positions(moved) == ("mid", "end")
    some = make_task(make_pair(5, (2,)), make_pair(6, (2,), names={"end": 5, "other": 1}))
    assert star_positions(some) == ("end",)
    assert [one_layout(task) for task in (SAME, UNEVEN, NAMELESS, moved)] == [True, False, False, False]
    for text in ("resid.pre[0]", "resid.pre[0]@*"):
        assert chosen(text, UNEVEN) == ["resid.pre[0]@mid", "resid.pre[0]@end"]


def test_numbers_are_indices_whatever_a_star_is() -> None:
    """Slices count tokens of the longest prompt, also where a star stands for names."""
    assert chosen("resid.pre[0]@1:4", UNEVEN) == [f"resid.pre[0]@{i}" for i in (1, 2, 3)]
    assert chosen("resid.pre[0]@7:", UNEVEN) == ["resid.pre[0]@7", "resid.pre[0]@8"]
    assert chosen("resid.pre[0]@-2:", UNEVEN) == ["resid.pre[0]@-2", "resid.pre[0]@-1"]
    assert chosen("resid.pre[0]@2:99", UNEVEN) == [f"resid.pre[0]@{i}" for i in range(2, 9)]


def test_duplicates_are_swept_once() -> None:
    """The order is that of the text."""
    assert chosen("mlp.out[2]@1|0, mlp.out@1, blocks.1.hook_mlp_out@1") == [
        f"mlp.out[{layer}]@{at}" for layer, at in ((2, 1), (2, 0), (0, 1), (1, 1))
    ]


@pytest.mark.parametrize(
    ("sites", "error", "words"),
    [
        ("resid.middle", UnknownName, r"resid\.middle.*resid\.mid"),
        ("resid.pre[3]", UnknownName, r"layers 0\.\.2"),
        ("attn.head[0, 4]", UnknownName, r"heads 0\.\.3"),
        ("attn.v[0, 2]", UnknownName, r"key-value heads 0\.\.1"),
        ("resid.pre@S2", UnknownName, r"'S2'.*mid, end"),
        ("resid.pre@mid+4", UnknownName, r"mid\+4 is outside this prompt: it has 5 positions"),
        ("resid.pre@5", BadInput, r"the longest prompt has 5 tokens, positions 0\.\.4"),
        ("resid.pre@-6", BadInput, "the longest prompt has 5 tokens"),
        ("logits@-1", BadInput, r"logits are what the metric reads; patch a site before them, such as resid\.post"),
        ([Site("resid.pre", 9)], UnknownName, r"resid\.pre\[9\].*layers 0\.\.2"),
        ([Site("attn.head", 0, 7, -1)], UnknownName, r"attn\.head\[0, 7\]@-1.*units 0\.\.3 of attn\.head"),
    ],
)
def test_what_is_not_there_is_said(sites: str | list[Site], error: type[Exception], words: str) -> None:
    """Each message names what was given and what there is."""
    with pytest.raises(error, match=words):
        select_sites(opened("llama"), SAME, sites)


@pytest.mark.parametrize(
    ("name", "sites", "words"),
    [
        ("gpt_neox", "resid.mid", "attention and MLP read the same stream"),
        ("mixtral", "mlp.hidden", "mixture of experts"),
        ("gptj", "attn.pattern", "attention is its own code"),
        ("bloom", [Site("attn.pattern", 0, 0, -1)], "attention is its own code"),
    ],
)
def test_refused_kinds_give_the_reason(name: str, sites: str | list[Site], words: str) -> None:
    """A kind that exists elsewhere is refused on this model with its reason and what is offered instead."""
    with pytest.raises(BadInput, match=words) as error:
        select_sites(opened(name), SAME, sites)
    assert "It offers: resid.pre, resid.post" in str(error.value)


def test_a_name_missing_in_one_prompt() -> None:
    """A named position must be in every pair."""
    task = make_task(make_pair(5, (2,)), make_pair(5, (2,), names={"end": 4}))
    with pytest.raises(UnknownName, match="'mid'"):
        select_sites(opened("llama"), task, "resid.pre@mid")


def test_selection_as_text() -> None:
    """Provenance keeps the text, or the first sites."""
    assert selection_text("resid.pre@*") == "resid.pre@*"
    sites = [Site("resid.pre", layer) for layer in range(3)]
    assert selection_text(sites) == "resid.pre[0], resid.pre[1], resid.pre[2]"
    assert selection_text(sites * 4).endswith(" …")


def test_effects_keep_the_order_of_the_selection() -> None:
    """Rows of the result are the selected sites."""
    effects = patch(opened("llama"), SAME, sites="mlp.out[2]@3, resid.pre[0]@2, attn.head[1, 2]@end")
    assert [str(site) for site in effects.sites] == ["mlp.out[2]@3", "resid.pre[0]@2", "attn.head[1, 2]@end"]
