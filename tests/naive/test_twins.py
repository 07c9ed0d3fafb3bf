"""The naive twins against identities that hold whatever the model: the twins must be right before they judge."""

from functools import cache
from math import exp, log

import pytest
import torch

from naive.attribution import attribution
from naive.joint import (
    activation,
    forward,
    joint_effect,
    keeper,
    knockout_effect,
    mean_effect,
    patterns,
    resample_effect,
    spot,
    taken,
    zero_effect,
)
from naive.metrics import naive_accuracy, naive_divergence, naive_kl, naive_prob_diff, naive_stolfo
from naive.noise import noised_effect, noised_logits, restored_effect
from naive.patching import hook, run
from naive.path import path_effect, path_logits
from zoo import make_pair, module_of, opened

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2", "gemma3", "olmo2")
DTYPE = torch.float64
TINY = 1e-6  # double precision, but norms and softmax of some families run in single
PAIR = make_pair(9, (3, 6))
BASE, SOURCE = PAIR.corrupt, PAIR.clean
EMBED = ("embed", 0, None, None)
NOISE = torch.randn(2, 32, generator=torch.Generator().manual_seed(0), dtype=DTYPE)

families = pytest.mark.parametrize("family", FAMILIES)


def score(logits):
    return float(logits[5] - logits[7])


@cache
def subject(family):
    """A module and its anatomy; eager, since Gemma 2's soft cap of attention is in its eager kernel alone."""
    return module_of(family, DTYPE, "eager"), opened(family, DTYPE).anatomy


@cache
def logits_of(family, ids):
    return run(subject(family)[0], ids)


def gap(family):
    return score(logits_of(family, SOURCE)[-1]) - score(logits_of(family, BASE)[-1])


def joint(family, *parts, base=BASE, source=SOURCE):
    return joint_effect(*subject(family), base, source, parts=parts, score=score)


def path(family, sender, receivers, **settings):
    return path_effect(*subject(family), BASE, SOURCE, sender=sender, receivers=receivers, score=score, **settings)


def everything(anatomy):
    kinds = [kind for kind in anatomy.kinds() if kind not in ("embed", "logits")]
    return [EMBED, *((kind, layer, None, None) for layer in range(anatomy.layers) for kind in kinds)]


# joint patches


@families
def test_a_run_s_own_activations_change_nothing(family):
    for part in everything(subject(family)[1]):
        assert abs(joint(family, part, source=BASE)) < TINY, part


@families
def test_the_whole_source_s_stream_is_the_source_run(family):
    """At any depth, whichever kind carries the stream; both changed positions, or only those from the first on."""
    anatomy = subject(family)[1]
    kinds = ["resid.pre", "resid.post"] + ["resid.mid"] * ("resid.mid" in anatomy.kinds())
    for kind in kinds:
        assert joint(family, (kind, 1, None, None)) == pytest.approx(gap(family), abs=TINY)
    assert joint(family, EMBED) == pytest.approx(gap(family), abs=TINY)
    assert joint(family, ("embed", 0, None, [3, 6])) == pytest.approx(gap(family), abs=TINY)
    assert joint(family, *everything(anatomy)) == pytest.approx(gap(family), abs=TINY)
    assert joint(family, ("resid.pre", 1, None, [0, 1, 2])) == pytest.approx(0, abs=TINY)
    assert abs(joint(family, ("embed", 0, None, [3]))) > 1e-3


@families
def test_heads_written_one_by_one_are_the_heads_written_together(family):
    anatomy = subject(family)[1]
    apart = [("attn.head", 1, head, [4, 8]) for head in range(anatomy.heads)]
    together = joint(family, ("attn.head", 1, None, [4, 8]))
    assert joint(family, *apart) == pytest.approx(together, abs=TINY)
    assert abs(joint(family, *apart[:1]) - together) > 1e-6


@families
def test_the_source_s_queries_keys_and_values_are_the_source_s_attention(family):
    """All of q, k and v of a layer give its heads; so do patterns with values."""
    whole = joint(family, ("attn.head", 1, None, None))
    assert abs(whole) > 1e-3
    for kinds in (("attn.q", "attn.k", "attn.v"), ("attn.pattern", "attn.v"), ("attn.in",)):
        assert joint(family, *((kind, 1, None, None) for kind in kinds)) == pytest.approx(whole, abs=TINY)


# knockout


@families
def test_an_edge_that_is_cut_carries_nothing(family):
    """With everything but its own key cut, a head's output is its value at that token; other queries keep theirs."""
    module, anatomy = subject(family)
    cuts = [(1, 0, [5], [0, 1, 2, 3, 4, 6, 7, 8])]
    heads = read_with(family, "attn.head", 1, cuts=cuts)
    head, value = anatomy.points["attn.head"].columns(0), anatomy.points["attn.v"].columns(0)
    own = activation(module, anatomy, BASE, "attn.v", 1)[5, value]
    assert torch.allclose(heads[5, head], own, atol=TINY)
    before = activation(module, anatomy, BASE, "attn.head", 1)
    before[5, head] = heads[5, head]
    assert torch.allclose(heads, before, atol=TINY)


def read_with(family, kind, layer, *, writes=(), cuts=()):
    """Return what a kind holds in the base prompt, `[pos, width]`, while other parts are written over and edges cut."""
    module, anatomy = subject(family)
    seen = []
    handle = hook(*spot(module, anatomy, kind, layer), keeper(seen))
    forward(module, anatomy, BASE, writes, cuts)
    handle.remove()
    return seen[0]


@families
def test_what_is_left_shares_the_weight_of_a_cut_edge(family):
    """A pattern without one key, divided by what is left, is the pattern of a softmax with −inf there."""
    module, anatomy = subject(family)
    pattern = patterns(module, BASE)[2].clone()
    pattern[:, 8, 7] = 0
    pattern[:, 8] /= pattern[:, 8].sum(-1, keepdim=True)
    expected = score(forward(module, anatomy, BASE, [(("attn.pattern", 2, None, [8]), pattern)])[-1])
    found = knockout_effect(module, anatomy, BASE, cuts=[(2, None, [8], [7])], score=score)
    assert found == pytest.approx(expected - score(logits_of(family, BASE)[-1]), abs=TINY)
    assert abs(found) > 1e-4


@families
def test_edges_that_no_query_sees_may_be_cut(family):
    module, anatomy = subject(family)
    cuts = [(layer, None, [2], [3, 4, 5]) for layer in range(3)]
    assert knockout_effect(module, anatomy, BASE, cuts=cuts, score=score) == pytest.approx(0, abs=TINY)


def test_edges_outside_a_sliding_window_may_be_cut():
    """Gemma 3's first two layers see four tokens back, its third sees all."""
    module, anatomy = subject("gemma3")
    far = [(layer, None, [8], [0, 1, 2, 3, 4]) for layer in range(3)]
    assert knockout_effect(module, anatomy, BASE, cuts=far[:2], score=score) == pytest.approx(0, abs=TINY)
    assert abs(knockout_effect(module, anatomy, BASE, cuts=far[2:], score=score)) > 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_kernels_agree_on_a_cut(family):
    """The model's fused kernel, which may be given no mask at all, gives what the eager one gives."""
    anatomy, cuts = subject(family)[1], [(0, 1, [4, 5], [4]), (2, None, [8], [6])]
    effects = [
        knockout_effect(module_of(family, DTYPE, kernel), anatomy, BASE, cuts=cuts, score=score)
        for kernel in ("eager", "sdpa")
    ]
    assert effects[0] == pytest.approx(effects[1], abs=TINY)
    assert abs(effects[0]) > 1e-4


def test_a_query_without_keys_is_refused():
    with pytest.raises(ValueError, match="lost all its keys"):
        knockout_effect(*subject("llama"), BASE, cuts=[(0, 0, [2], None)], score=score)


# ablation


@families
def test_ablations(family):
    """A mean over one prompt is that prompt; a mean over positions too is the same at all of them."""
    module, anatomy = subject(family)
    parts = [("attn.head", 1, 2, [8]), ("mlp.out", 0, None, [6])]
    one = joint_effect(module, anatomy, BASE, SOURCE, parts=parts, score=score)
    assert mean_effect(module, anatomy, BASE, [SOURCE], parts=parts, score=score) == pytest.approx(one, abs=TINY)
    both = resample_effect(module, anatomy, BASE, [SOURCE, BASE], parts=parts, score=score)
    assert both == pytest.approx(one / 2, abs=TINY)
    ((_, held),) = taken(module, anatomy, BASE, parts[:1])
    flat = held.mean(0).expand_as(held)
    expected = score(forward(module, anatomy, BASE, [(parts[0], flat)])[-1]) - score(logits_of(family, BASE)[-1])
    over = mean_effect(module, anatomy, BASE, [BASE], parts=parts[:1], score=score, over="prompt and position")
    assert over == pytest.approx(expected, abs=TINY)


@families
def test_a_model_without_attention_and_mlps_is_its_embedding(family):
    """All parts at zero leave what enters the first block."""
    module, anatomy = subject(family)
    parts = [(kind, layer, None, None) for layer in range(3) for kind in ("attn.out", "mlp.out")]
    left = score(logits_of(family, BASE)[-1]) + zero_effect(module, anatomy, BASE, parts=parts, score=score)
    first = ("resid.post", 2, None, None), activation(module, anatomy, BASE, "resid.pre", 0)
    assert left == pytest.approx(score(forward(module, anatomy, BASE, [first])[-1]), abs=TINY)


# path patching


@families
def test_a_path_from_a_run_to_itself_changes_nothing(family):
    module, anatomy = subject(family)
    for receivers in ("logits", [("attn.q", 2, 1, None)], [("resid.post", 1, None, None)]):
        logits = path_logits(module, anatomy, BASE, BASE, sender=[("attn.head", 0, 1, None)], receivers=receivers)
        assert torch.allclose(logits, logits_of(family, BASE), atol=TINY)


@families
def test_every_sender_to_the_logits_is_the_source_run(family):
    """All heads and the embeddings of the source leave nothing of the base: the MLPs are recomputed."""
    senders = [EMBED, *(("attn.head", layer, None, None) for layer in range(3))]
    assert path(family, senders, "logits") == pytest.approx(gap(family), abs=TINY)
    assert path(family, [EMBED], "logits", frozen=()) == pytest.approx(gap(family), abs=TINY)
    assert abs(path(family, [EMBED], "logits") - gap(family)) > 1e-3


@families
def test_a_path_to_the_whole_stream_behind_the_sender_is_a_patch(family):
    """Nothing but the MLP lies between a head and the stream behind its block; in the last block, nor to the logits."""
    head = ("attn.head", 0, 1, None)
    for receivers in (("resid.post", 0, None, None), ("resid.pre", 1, None, None)):
        assert path(family, [head], [receivers]) == pytest.approx(joint(family, head), abs=TINY)
    last = ("attn.head", 2, 3, [8])
    assert path(family, [last], "logits") == pytest.approx(joint(family, last), abs=TINY)


@families
def test_queries_keys_and_values_receive_what_attention_receives(family):
    sender = [("attn.head", 0, None, None)]
    parts = [[(kind, 2, None, None)] for kind in ("attn.in", "attn.q", "attn.k", "attn.v")]
    whole = path(family, sender, parts[0])
    assert path(family, sender, [part for (part,) in parts[1:]]) == pytest.approx(whole, abs=TINY)
    assert abs(whole) > 1e-5
    assert abs(path(family, sender, parts[1]) - whole) > 1e-6


@families
def test_receivers_before_or_beside_the_sender_take_nothing(family):
    sender = [("attn.head", 1, 0, None)]
    assert path(family, sender, [("attn.q", 1, 1, None), ("attn.in", 0, None, None)]) == pytest.approx(0, abs=TINY)


@families
def test_a_direct_edge_adds_the_head_s_change_and_nothing_else(family):
    """Heads and MLPs held: the last stream moves by the projection of the head's change, through norms behind it."""
    module, anatomy = subject(family)
    part = ("attn.head", 1, 2, None)
    found = path_logits(
        *(module, anatomy, BASE, SOURCE), sender=[part], receivers="logits", frozen=("attn.head", "mlp.out")
    )
    head = taken(module, anatomy, SOURCE, [part])
    added = [read_with(family, "attn.out", 1, writes=writes) for writes in ([], head)]
    stream = activation(module, anatomy, BASE, "resid.post", 2) + added[1] - added[0]
    expected = forward(module, anatomy, BASE, [(("resid.post", 2, None, None), stream)])
    assert torch.allclose(found, expected, atol=TINY)
    assert float((found - logits_of(family, BASE)).abs().max()) > 1e-4


@families
def test_paths_do_not_pass_through_other_heads(family):
    """The path to the logits differs from the patch, which other heads carry on; without other heads it does not."""
    sender = [("attn.head", 0, 0, None)]
    assert path(family, sender, "logits", frozen=()) == pytest.approx(joint(family, *sender), abs=TINY)
    assert abs(path(family, sender, "logits") - joint(family, *sender)) > 1e-5


# noise


@families
def test_noise_restored_whole_is_the_clean_run(family):
    module, anatomy = subject(family)
    noisy = noised_logits(module, anatomy, BASE, noise=NOISE, positions=[3, 4])
    lost = score(logits_of(family, BASE)[-1]) - score(noisy[-1])
    assert abs(lost) > 1e-3
    settings = {"noise": NOISE, "positions": [3, 4], "score": score}
    for kind in ("resid.pre", "resid.post"):
        restored = restored_effect(module, anatomy, BASE, parts=[(kind, 1, None, None)], **settings)
        assert restored == pytest.approx(lost, abs=TINY)
        broken = noised_effect(module, anatomy, BASE, parts=[(kind, 1, None, None)], **settings)
        assert broken == pytest.approx(-lost, abs=TINY)
        assert restored_effect(module, anatomy, BASE, parts=[(kind, 1, None, [0, 2])], **settings) == 0
    calm = noised_logits(module, anatomy, BASE, noise=torch.zeros(2, 32), positions=[3, 4])
    assert torch.allclose(calm, logits_of(family, BASE), atol=TINY)


@families
def test_noise_between_two_tokens_is_the_other_token(family):
    """Noise equal to the difference of two embeddings makes the other prompt."""
    module, anatomy = subject(family)
    here, there = (activation(module, anatomy, ids, "embed", 0)[[3, 6]] for ids in (BASE, SOURCE))
    noisy = noised_logits(module, anatomy, BASE, noise=there - here, positions=[3, 6])
    assert torch.allclose(noisy, logits_of(family, SOURCE), atol=TINY)


# attribution


@families
def test_contributions_add_up_to_the_logit(family):
    module, anatomy = subject(family)
    for position in (-1, 4):
        found, logit = sum(attribution(module, anatomy, BASE, 5, position=position).values()), None
        logit = float(logits_of(family, BASE)[position, 5])
        cap = anatomy.readout.softcap
        assert (cap * float(torch.tensor(found / cap).tanh()) if cap else found) == pytest.approx(logit, abs=TINY)


def test_a_head_taken_out_costs_its_contribution_and_the_rescaling_of_the_norm():
    """A head of the last layer at zero, the MLP held: Llama's last norm follows the rest of the stream."""
    module, anatomy = subject("llama")
    head, mlp = ("attn.head", 2, 1, [8]), ("mlp.out", 2, None, None)
    nothing = torch.zeros_like(activation(module, anatomy, BASE, *head[:2]))
    writes = [*taken(module, anatomy, BASE, [mlp]), (head, nothing)]
    before, after = (read_with("llama", "resid.post", 2, writes=each)[-1] for each in ([], writes))
    held = float(logits_of("llama", BASE)[-1, 5]) - attribution(module, anatomy, BASE, 5)["attn.head", 2, 1]
    without = float(forward(module, anatomy, BASE, writes)[-1, 5])
    assert without == pytest.approx(held * float(before.norm() / after.norm()), abs=TINY)
    assert abs(without - held) > 1e-5


# metrics


def test_metrics_of_two_tokens_by_hand():
    """A coin of 3 : 1 and a fair one: every number can be written down."""
    three, fair = [log(3), 0.0], [0.0, 0.0]
    there = 0.75 * log(1.5) + 0.25 * log(0.5)
    back = 0.5 * log(2 / 3) + 0.5 * log(2)
    assert naive_divergence(three, fair) == pytest.approx(there)
    assert naive_divergence(fair, three) == pytest.approx(back)
    assert naive_divergence(three, [x + 5 for x in three]) == pytest.approx(0, abs=1e-12)
    assert naive_kl([log(0.75), log(0.25)], fair) == pytest.approx(there)
    assert naive_prob_diff(three, [0], [1]) == pytest.approx(0.5)
    assert naive_stolfo(fair, three, 0, 1) == pytest.approx(0.5 * (0.25 / 0.5 + 0.25 / 0.25))
    assert naive_stolfo(three, three, 0, 1) == 0
    assert [naive_accuracy(row, [0]) for row in (three, fair, [-exp(1), 0.0])] == [1, 0, 0]
    assert naive_accuracy([1.0, 2.0, 3.0], [0, 2]) == 1
