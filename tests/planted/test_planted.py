"""Planted models: what is known about them is what patching finds, by the engine and by hand."""

from dataclasses import dataclass
from functools import cache
from random import Random

import pytest
import torch

import crosspatch as xp
from crosspatch.models.model import Model
from crosspatch.sites import KINDS, parse_site
from naive.joint import activation, joint_effect, part_of
from naive.patching import run
from naive.path import path_effect
from planted import Expected, Planted, backup, fraction, gates, induction, negative, reverse

BUILDERS = {
    "AND": gates.build_and,
    "OR": gates.build_or,
    "ADDER": gates.build_adder,
    "induction": induction.build,
    "backup": backup.build,
    "negative": negative.build,
    "fraction": fraction.build,
    "reverse": reverse.build,
    "reverse by length": reverse.build_by_length,
}
EXACT = 1e-4
planted_models = pytest.mark.parametrize("name", BUILDERS)
directions = pytest.mark.parametrize("direction", ["denoise", "noise"])


@dataclass(frozen=True)
class Subject:
    planted: Planted
    model: Model


@cache
def subject(name: str) -> Subject:
    planted = BUILDERS[name]()
    return Subject(planted, xp.open_model(planted.module))


def engine_effects(name: str, direction: str, sites: str, metric: str = "logit_diff") -> dict[str, list[float]]:
    """Normalised effects by site, one a pair."""
    it = subject(name)
    effects = xp.patch(it.model, it.planted.task(), sites=sites, direction=direction, metric=metric)
    return {str(site): values.tolist() for site, values in zip(effects.sites, effects.values, strict=True)}


def by_hand(name: str, direction: str, twin, **parts) -> list[float]:
    """Normalised effects of a naive twin, one a pair; `parts` are texts of sites, or "logits"."""
    it, found, gaps = subject(name), [], []
    for (clean, corrupt, right, wrong), pair in zip(it.planted.pairs, it.planted.task().pairs, strict=True):
        base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)

        def score(logits, right=right, wrong=wrong):
            return float(logits[right] - logits[wrong])

        def read(sites, names=pair.names):
            return sites if sites == "logits" else [part_of(parse_site(site), names) for site in sites]

        named = {key: read(sites) for key, sites in parts.items()}
        found.append(twin(it.planted.module, it.model.anatomy, base, source, score=score, **named))
        gaps.append(score(run(it.planted.module, source)[-1]) - score(run(it.planted.module, base)[-1]))
    return [effect * len(gaps) / sum(gaps) for effect in found]


@planted_models
def test_every_kind_of_site_is_offered(name):
    """The proof finds all parts of a planted model, though most of its weights are zero."""
    anatomy = subject(name).model.anatomy
    assert not anatomy.refused
    assert set(anatomy.kinds()) == {kind for kind in KINDS if not kind.startswith("cross.")}
    assert (anatomy.sequential, anatomy.packed, anatomy.readout.direct) == (True, True, True)


@planted_models
@directions
def test_patching_finds_what_was_planted(name, direction):
    truth = subject(name).planted.truth
    found = engine_effects(name, direction, ", ".join(truth))
    assert set(found) == set(truth)
    for site, expected in truth.items():
        assert found[site] == pytest.approx([getattr(expected, direction)] * 3, abs=EXACT), site


@planted_models
@directions
def test_sites_patched_at_once(name, direction):
    together = subject(name).planted.together
    assert together
    for sites, expected in together.items():
        found = by_hand(name, direction, joint_effect, parts=sites)
        assert found == pytest.approx([getattr(expected, direction)] * 3, abs=EXACT), sites


@planted_models
@directions
def test_paths(name, direction):
    paths = subject(name).planted.paths
    assert paths
    for (sender, receiver), expected in paths.items():
        receivers = receiver if receiver == "logits" else (receiver,)
        found = by_hand(name, direction, path_effect, sender=(sender,), receivers=receivers)
        assert found == pytest.approx([getattr(expected, direction)] * 3, abs=EXACT), (sender, receiver)


@planted_models
def test_what_is_planted_is_no_trifle(name):
    """Each model tells effects apart: sites that carry everything, and sites that carry nothing."""
    planted = subject(name).planted
    assert Expected(0.0, 0.0) in planted.truth.values()
    assert Expected(1.0, 1.0) in planted.truth.values()
    assert len(set(planted.pairs)) == 3


@planted_models
def test_norms_are_the_identity(name):
    """The norm's scale is the same on all inputs: what goes in comes out."""
    it = subject(name)
    clean = it.planted.pairs[0][0]
    for kind, stream in (("attn.in", "resid.pre"), ("mlp.in", "resid.mid")):
        went, came = (activation(it.planted.module, it.model.anatomy, clean, each, 0) for each in (stream, kind))
        assert torch.allclose(came, went, atol=1e-6, rtol=1e-6)
        assert float(went.abs().max()) >= 1


# what the models do


@pytest.mark.parametrize(
    ("name", "gate"), [("AND", lambda a, b: a * b), ("OR", max), ("ADDER", lambda a, b: (a + b) / 2)]
)
def test_gates_are_functions_of_their_inputs(name, gate):
    """On all four inputs, with any filler: the logit difference swings by 12 with the gate."""
    it = subject(name)
    _, _, yes, no = it.planted.pairs[0]
    for a, b, filler in ((a, b, filler) for a in (0, 1) for b in (0, 1) for filler in "xyz"):
        logits = run(it.planted.module, gates.prompt(a, b, filler))[-1]
        assert float(logits[yes] - logits[no]) == pytest.approx(gates.SWING * (gate(a, b) - 0.5), abs=EXACT)


@pytest.mark.parametrize("seed", range(4))
def test_induction_continues_any_repeated_token(seed):
    """In random prompts without other repeats, the token after the first copy gets logit 10, all others none."""
    words = Random(seed).sample(range(1, 16), 9)
    for place in range(8):
        logits = run(subject("induction").planted.module, [0, *words, words[place]])[-1]
        expected = torch.zeros(16)
        expected[words[place + 1]] = 10.0
        assert torch.allclose(logits, expected, atol=EXACT)
    assert float(run(subject("induction").planted.module, [0, *words])[-1].abs().max()) < EXACT


def test_the_backup_speaks_only_where_the_first_head_is_missing():
    """Silent in the clean run; with the first head's output wiped out it carries three quarters of the answer."""
    it = subject("backup")
    clean, corrupt, *_ = it.planted.pairs[0]
    channel = 0  # the first of the head's columns carries A
    awake = activation(it.planted.module, it.model.anatomy, corrupt, "attn.pattern", 1)[0, -1]
    asleep = activation(it.planted.module, it.model.anatomy, clean, "attn.pattern", 1)[0, -1]
    assert (int(awake.argmax()), int(asleep.argmax())) == (2, 0)
    assert activation(it.planted.module, it.model.anatomy, clean, "attn.head", 1)[-1, channel] == 0
    one = engine_effects("backup", "noise", "attn.head[0, 0]@end")["attn.head[0, 0]@end"]
    both = by_hand("backup", "noise", joint_effect, parts=("attn.head[0, 0]@end", "attn.head[1, 0]@end"))
    assert max(one) < 0.3
    assert min(both) > 0.99


@directions
def test_probability_hides_the_negative_head(direction):
    """Half the gap in logits, with its sign, is a fortieth of the gap in probability: there is so little to lose."""
    head = "attn.head[0, 1]@end"
    assert engine_effects("negative", direction, head)[head] == pytest.approx([-0.5] * 3, abs=EXACT)
    hidden = engine_effects("negative", direction, head, "prob")[head]
    assert all(-1 / 40 < effect < 0 for effect in hidden)
    assert all(abs(effect) > 1e-3 for effect in hidden)


@pytest.mark.parametrize("text", ["w x y z x x", "x", "z z z x x y w x x x", "x x x"])
def test_the_fraction_of_x_at_each_token(text):
    it, words = subject("fraction"), text.split()
    _, _, high, low = it.planted.pairs[0]
    logits = run(it.planted.module, [fraction.TOKENS.index(word) for word in words])
    shares = [words[:end].count("x") / end for end in range(1, len(words) + 1)]
    expected = [fraction.SWING * (2 * share - 1) for share in shares]
    assert (logits[:, high] - logits[:, low]).tolist() == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", range(1, 6))
def test_the_letters_backwards(length, seed):
    """Of any length, with any padding; only the right letter has a logit."""
    letters = Random(10 * length + seed).choices(reverse.LETTERS, k=length)
    words = reverse.words(" ".join([*letters, *"." * (5 - length)]), *range(length)).split()
    logits = run(subject("reverse").planted.module, [reverse.TOKENS.index(word) for word in words])[-length:]
    expected = torch.zeros_like(logits)
    for index, letter in enumerate(reversed(letters)):
        expected[index, reverse.TOKENS.index(letter)] = reverse.LOGIT
    assert torch.allclose(logits, expected, atol=EXACT)
