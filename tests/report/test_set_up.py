"""How a result was made, in words: corruptions, ablations, paths, cuts, windows."""

import pytest

from builders import small_effects
from crosspatch.report.page import page_html
from crosspatch.report.set_up import corruption_words, how_chips, how_lines, how_text, kicker
from crosspatch.report.summary import summary_of, title
from crosspatch.sites import Edge, Group, Site

PLACE = "where the prompts differ"


def made(sites=None, direction="noise", **settings):
    """Make effects whose provenance has these settings."""
    return small_effects(sites, direction=direction, provenance={"settings": settings})


@pytest.mark.parametrize(
    ("corruption", "words"),
    [
        (
            {"by": "gaussian", "at": "S2", "sigma": 3.0, "draws": 10, "seed": 4},
            "Gaussian noise of 3 standard deviations on the clean prompt's embeddings at S2, 10 draws a pair (seed 4)",
        ),
        (
            {"by": "gaussian", "at": PLACE, "sigma": 1.0, "draws": 1, "seed": 0},
            f"Gaussian noise of 1 standard deviation on the clean prompt's embeddings {PLACE}, 1 draw a pair (seed 0)",
        ),
        ({"by": "zero", "at": "S1,S2"}, "the clean prompt with embeddings of zero at S1, S2"),
        ({"by": "mean", "at": PLACE}, f"the clean prompt with the mean embedding of the task's clean prompts {PLACE}"),
        ({"by": "resample", "at": PLACE, "seed": 2}, f"the clean prompt with another pair's tokens {PLACE} (seed 2)"),
        ({"by": "ABC", "at": PLACE}, "the task's ABC prompts"),
        ({}, "the pair's own corrupted prompt"),
    ],
)
def test_corruptions_are_described(corruption, words):
    assert corruption_words(corruption) == words


def test_a_plain_sweep_needs_no_words():
    effects = made(direction="denoise", corruption={"by": "replace"}, ablation=None)
    assert how_lines(effects) == []
    assert how_text(effects) == "denoise"
    assert kicker(effects) == "Activation patching"
    assert dict(how_chips(effects))["direction"] == "denoise (clean into corrupted)"


@pytest.mark.parametrize(
    ("ablation", "words"),
    [
        ({"by": "zero"}, "Zero ablation: zeros are written into the clean run."),
        (
            {"by": "mean", "reference_prompts": "the task's corrupt ones"},
            "Mean ablation: the mean over the corrupted prompts of the same layout, at each position, is written into "
            "the clean run.",
        ),
        (
            {"by": "resample", "seed": 3, "reference_prompts": 40},
            "Resample ablation: activations of one of 40 reference prompts, drawn at random (seed 3), are written into "
            "the clean run.",
        ),
    ],
)
def test_ablations_are_described(ablation, words):
    effects = made(ablation=ablation, corruption={"by": "ABC"})
    assert how_lines(effects) == ["Corrupted runs: the task's ABC prompts.", words]
    assert how_text(effects) == f"{ablation['by']} ablation, ABC"
    assert (kicker(effects), dict(how_chips(effects))["direction"]) == ("Ablation", "")


def test_paths_are_described():
    through = made(senders="attn.head", to="attn.q[9, 6]@end", through="mlps")
    assert how_lines(through) == [
        "Each site sends to attn.q[9, 6]@end alone. Paths pass MLPs, which are recomputed; every other head is held at "
        "the clean run."
    ]
    assert how_text(through) == "noise, paths to attn.q[9, 6]@end"
    edges = made(to="logits", through="nothing", direction="denoise")
    assert how_lines(edges) == [
        "Each site sends to the final stream alone. Paths are single edges: every other head and MLP is held at the "
        "corrupted run."
    ]
    assert kicker(edges) == "Path patching"


def test_cuts_and_windows_are_described():
    edges = tuple(Edge(layer, "end", "S2", head) for layer in (0, 1) for head in (3, 0))
    cut = made([Group("attention end to S2, layers 0 to 1", edges, "attention end to S2", 0, "end")])
    assert how_lines(cut)[0].startswith("Attention from end to S2 is cut in heads 0, 3 in the layers named")
    assert (kicker(cut), how_text(cut)) == ("Attention knockout", "cuts")
    members = tuple(Site("mlp.out", layer, None, 10) for layer in (0, 1))
    joint = made([Group("mlp.out[0:2]@10", members, "mlp.out ×2", 1, 10)])
    assert how_lines(joint) == [
        "mlp.out ×2: so many adjacent layers patched together; a window stands at its middle layer."
    ]


def test_page_title_and_summary_say_how():
    effects = made(ablation={"by": "mean"}, corruption={"by": "ABC"})
    html = page_html(effects)
    for words in ('<p class="kicker">Ablation ·', "the mean over", "<span>ablation</span> mean", "ABC prompts"):
        assert words in html
    assert "corrupted into clean" not in html
    assert title(effects).startswith("m · t · mean ablation, ABC · logit_diff")
    assert summary_of(effects, top=1)["ablation"] == {"by": "mean"}
