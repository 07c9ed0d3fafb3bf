"""Corruptions of the prompt and ablations of sites equal their twins; several metrics are read off one sweep."""

import math

import numpy as np
import pytest
import torch

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.engine import Ablation, ablate, patch, patch_metrics
from crosspatch.engine.corrupting import Corrupter
from crosspatch.metrics import METRICS
from crosspatch.models.open import open_model
from crosspatch.tasks import Corruption, corrupt, from_tokens
from naive.joint import forward, mean_effect, part_of, resample_effect, zero_effect
from naive.noise import noised_effect, noised_logits, restored_effect
from naive.patching import hook
from zoo import ZOO, fresh, make_pair, make_task, module_of, opened

PAIRS = tuple(make_pair(7, (2,), seed=seed) for seed in range(3)) + tuple(make_pair(6, (3,), seed=s) for s in (3, 4))
TASK = make_task(*PAIRS)
FAMILIES = ["gpt2", "llama", "gemma3", "opt", "gpt_neox", "bloom", "gptj"]


def score(pair):
    right, wrong = ([answer[0] for answer in side] for side in (pair.right, pair.wrong))
    return lambda logits: float(logits[right].double().mean() - logits[wrong].double().mean())


def noise_of(name, task):
    """The noise that a sweep of the task uses, `[example][draw]`, as the twin wants it: one tensor a prompt."""
    made = task.corruption
    corrupter = Corrupter.of(opened(name), task.pairs, made)
    like = torch.zeros(())
    found = []
    for number, pair in enumerate(task.pairs):
        draws = [(number * made.draws + draw, pair) for draw in range(made.draws)]
        found.append([corrupter.overlay([each], like).shift[0] for each in draws])
    return found, corrupter.deviation


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_noise_on_embeddings_equals_the_twin(name, direction):
    """Base or source run is the clean prompt with noise at the key token; effects are means over draws."""
    task = corrupt(TASK, "gaussian", draws=2, seed=5)
    effects = patch(opened(name), task, sites="resid.pre[1]@2|3|end, mlp.out[0]@3", direction=direction)
    noise, _ = noise_of(name, task)
    module, anatomy = module_of(name), opened(name).anatomy
    for j, pair in enumerate(PAIRS):
        at = [2] if j < 3 else [3]
        runs = [noised_logits(module, anatomy, pair.clean, noise=each[at], positions=at)[-1] for each in noise[j]]
        noised = np.mean([score(pair)(logits) for logits in runs])
        clean = score(pair)(forward(module, anatomy, pair.clean)[-1])
        base, source = (noised, clean) if direction == "denoise" else (clean, noised)
        assert effects.base[j] == pytest.approx(base, abs=2e-5)
        assert effects.source[j] == pytest.approx(source, abs=2e-5)
        twin = restored_effect if direction == "denoise" else noised_effect
        for i, site in enumerate(effects.sites):
            given = {"positions": at, "parts": [part_of(site, pair.names)], "score": score(pair)}
            slow = np.mean([twin(module, anatomy, pair.clean, noise=each[at], **given) for each in noise[j]])
            assert effects.raw[i, j] == pytest.approx(slow, abs=3e-5)


def test_noise_is_three_standard_deviations_of_the_embeddings_seen():
    """Sigma is measured on the prompts' own token embeddings, repeats counted; seeds differ, the same seed does not."""
    task = corrupt(TASK, "gaussian", draws=40)
    noise, deviation = noise_of("gpt2", task)
    table = module_of("gpt2").transformer.wte.weight.detach().double()
    tokens = torch.cat([table[list(pair.clean)] for pair in PAIRS])
    assert deviation == pytest.approx(float(tokens.std(correction=0)), rel=1e-6)
    drawn = torch.stack([draw[2] for draw in noise[0]])
    assert float(drawn.std()) == pytest.approx(3 * deviation, rel=0.1)
    assert not torch.equal(drawn[0], drawn[1])
    again, other = (noise_of("gpt2", corrupt(TASK, "gaussian", seed=seed))[0] for seed in (0, 1))
    assert torch.equal(noise[0][0], again[0][0])
    assert not torch.equal(again[0][0], other[0][0])
    assert float(torch.stack(noise[0])[:, [0, 1, 3, 4, 5, 6]].abs().max()) == 0


@pytest.mark.parametrize("by", ["gaussian", "zero", "mean"])
def test_restoring_the_key_embedding_restores_everything(by):
    """The corrupt run differs from the clean one in nothing else."""
    effects = patch(opened("gemma3"), corrupt(TASK, by, draws=2), sites="embed@2|3")
    whole = [[0, 0, 0, 1, 1], [1, 1, 1, 0, 0]]
    np.testing.assert_allclose(effects.raw[::-1], np.array(whole) * effects.gap, atol=1e-5)


def test_zero_and_mean_embeddings_are_what_they_say():
    """The mean is over the clean prompts of the same layout, at that position."""
    model = opened("llama")
    table = module_of("llama").model.embed_tokens.weight.detach()
    for by, expected in (("zero", 0 * table[0]), ("mean", table[[p.clean[2] for p in PAIRS[:3]]].mean(0))):
        task = corrupt(TASK, by)
        overlay = Corrupter.of(model, task.pairs, task.corruption).overlay([(0, PAIRS[0])], table)
        seen = table[list(PAIRS[0].clean)] * overlay.scale[0] + overlay.shift[0]
        torch.testing.assert_close(seen[2], expected)
        torch.testing.assert_close(seen[3], table[PAIRS[0].clean[3]])


def test_token_corruptions_keep_answers_and_change_key_tokens_only():
    """Another example's tokens, or the task's own alternative; each is stored with the result."""
    other = tuple((*pair.clean[:2], 17, *pair.clean[3:]) for pair in PAIRS)
    task = make_task(*PAIRS)
    task = type(task)(task.name, task.pairs, alternatives={"ABC": other})
    drawn = corrupt(task, "resample")
    for pair, before in zip(drawn.pairs, PAIRS, strict=True):
        changed = [i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if a != b]
        assert changed == [i for i, (a, b) in enumerate(zip(before.clean, before.corrupt, strict=True)) if a != b]
        assert (pair.right, pair.wrong, pair.names) == (before.right, before.wrong, before.names)
    swapped = corrupt(task, "ABC")
    assert [pair.corrupt for pair in swapped.pairs] == list(other)
    effects = patch(opened("gpt2"), swapped, sites="embed@2")
    assert effects.provenance["settings"]["corruption"]["by"] == "ABC"


def test_bad_corruptions_say_what_is_allowed():
    """Ways, sizes, names and layouts that do not exist."""
    with pytest.raises(UnknownName, match=r"unknown corruption 'noise'.*gaussian"):
        corrupt(TASK, "noise")
    with pytest.raises(BadInput, match=r"sigma=0"):
        corrupt(TASK, "gaussian", sigma=0.0)
    with pytest.raises(UnknownName):
        corrupt(TASK, "gaussian", at=["S9"])
    with pytest.raises(BadInput, match=r"example 0 has a layout .* of its own"):
        corrupt(make_task(PAIRS[0]), "resample")
    with pytest.raises(BadInput, match=r"no other prompt has"):
        patch(opened("gpt2"), corrupt(make_task(PAIRS[0]), "mean"), sites="embed@2")
    assert Corruption().settings() == {"by": "replace", "at": "where the prompts differ"}


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen3", "gpt_neox", "bloom", "gpt_bigcode"])
def test_ablations_equal_the_twins(name):
    """Zero, the mean at each position over prompts of the layout, and another prompt's activations."""
    model, module = opened(name), module_of(name)
    sites = "attn.head[1, 0]@end, attn.head[2, 1]@all, mlp.out[0]@2, resid.pre[1]@3, attn.v[1, 0]@2"
    sites += ", resid.mid[1]@3" if "resid.mid" in ZOO[name].kinds else ""
    for by in ("zero", "mean", "resample"):
        effects = ablate(model, TASK, sites=sites, by=by)
        drawn = Ablation(by).drawn(PAIRS) if by == "resample" else None
        for i, site in enumerate(effects.sites):
            for j, pair in enumerate(PAIRS):
                parts, like = [part_of(site, pair.names)], PAIRS[:3] if j < 3 else PAIRS[3:]
                given = {"parts": parts, "score": score(pair)}
                if by == "zero":
                    twin = zero_effect(module, model.anatomy, pair.clean, **given)
                elif by == "mean":
                    corrupts = [p.corrupt for p in like]
                    twin = mean_effect(module, model.anatomy, pair.clean, corrupts, over="prompt", **given)
                else:
                    twin = resample_effect(module, model.anatomy, pair.clean, [drawn[j]], **given)
                assert effects.raw[i, j] == pytest.approx(twin, abs=3e-5), (by, str(site), j)


def test_ablation_means_need_prompts_of_the_same_layout():
    """One prompt's mean is itself: refused, with what to do."""
    with pytest.raises(BadInput, match=r"needs two reference prompts of its layout"):
        ablate(opened("gpt2"), make_task(PAIRS[0], PAIRS[3]), sites="mlp.out[0]@end")
    with pytest.raises(UnknownName, match=r"unknown ablation 'noise'"):
        ablate(opened("gpt2"), TASK, by="noise")
    reference = Ablation("mean", PAIRS)
    assert ablate(opened("gpt2"), make_task(PAIRS[0]), sites="mlp.out[0]@end", by=reference).n == 1


def test_several_metrics_cost_one_sweep():
    """The blocks run as often for all metrics as for one, and each metric's numbers are those of its own sweep."""
    names = [name for name in METRICS if name != "accuracy"]
    module = fresh("qwen3")
    model, calls = open_model(module), []

    def note(value):
        calls.append(value.shape[:-1].numel())
        return value

    hook(module.model.layers[1].mlp.down_proj, "in", note)
    single = patch(model, TASK, sites="resid.pre@2|3|end").raw
    once = sum(calls)
    calls.clear()
    found = patch_metrics(model, TASK, list(METRICS), sites="resid.pre@2|3|end")
    assert sum(calls) == once
    np.testing.assert_allclose(found["logit_diff"].raw, single, atol=1e-5)
    for name in names:
        own = patch(model, TASK, sites="resid.pre@2|3|end", metric=name)
        np.testing.assert_allclose(found[name].raw, own.raw, atol=1e-5, err_msg=name)
    assert found["accuracy"].metric == "accuracy"
    with pytest.raises(BadInput, match=r"each name once"):
        patch_metrics(model, TASK, ["prob", "prob"])


def test_stolfo_and_both_divergences_on_a_whole_patch():
    """Patching everything gives the source run: no divergence left, and Stolfo's metric that of the two plain runs."""
    task = from_tokens([[3, 5, 7]], [[3, 6, 7]], right=[4], wrong=[9])
    found = patch_metrics(opened("gpt2"), task, ["kl", "kl_reverse", "stolfo"], sites="embed@1")
    for name in ("kl", "kl_reverse"):
        assert found[name].raw[0, 0] == pytest.approx(-found[name].base[0], abs=1e-6)
        assert found[name].base[0] > 0
    clean, base = (forward(module_of("gpt2"), opened("gpt2").anatomy, p)[-1].double() for p in ([3, 5, 7], [3, 6, 7]))
    after, before = clean.softmax(-1), base.softmax(-1)
    expected = 0.5 * ((after[4] - before[4]) / before[4] + (before[9] - after[9]) / after[9])
    assert found["stolfo"].raw[0, 0] == pytest.approx(float(expected), rel=1e-4)
    assert not math.isnan(found["stolfo"].mean_gap)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_family_takes_noise(name):
    """Noise on embeddings reaches every family's stream, and restoring it is the whole effect."""
    effects = patch(opened(name), corrupt(make_task(PAIRS[0]), "gaussian", draws=1), sites="resid.pre[0]@2")
    assert effects.raw[0, 0] == pytest.approx(effects.gap[0], abs=2e-5 * max(1.0, abs(float(effects.gap[0]))))
