"""The whole distribution of a patched run equals that of one forward with hooks."""

import numpy as np
import pytest
import torch

from crosspatch.core.errors import BadInput
from crosspatch.engine import patch, patched_logits
from crosspatch.metrics import METRICS
from crosspatch.sites import Group, Site
from crosspatch.tasks import Pair, Task, corrupt
from naive.joint import forward, part_of, taken
from zoo import make_pair, make_task, module_of, opened

PAIRS = (make_pair(6, (2,)), make_pair(8, (3, 5), seed=1))
TASK = make_task(*PAIRS)
SITES = (Site("resid.post", 0, None, 3), Site("mlp.out", 1, None, "end"))


def by_hand(name, pair, base, source):
    module, anatomy = module_of(name), opened(name).anatomy
    parts = [part_of(site, pair.names) for site in SITES]
    return forward(module, anatomy, base, taken(module, anatomy, source, parts))[-1].detach().numpy()


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "bloom", "llama"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_logits_are_those_of_one_forward_with_hooks(name, direction):
    """Base, source and patched, for pairs of unequal length, families that share prefixes and one that does not."""
    found = patched_logits(opened(name), TASK, sites=SITES, direction=direction)
    for number, pair in enumerate(PAIRS):
        base, source = (pair.corrupt, pair.clean) if direction == "denoise" else (pair.clean, pair.corrupt)
        for run, ids in ((found.base, base), (found.source, source)):
            with torch.no_grad():
                own = module_of(name)(torch.tensor([ids])).logits[0, -1]
            np.testing.assert_allclose(run[number], own.numpy(), atol=1e-4)
        expected = by_hand(name, pair, base, source)
        assert np.abs(expected - found.base[number]).max() > 1e-3
        np.testing.assert_allclose(found.patched[number], expected, atol=1e-4)


def test_the_metric_is_that_of_the_logits_and_of_patch():
    """The effect beside the logits is read off them, and equals what a sweep of the same site gives."""
    found = patched_logits(opened("gpt2"), TASK, sites="resid.post[1]@end")
    right, wrong = ([getattr(pair, side)[0][0] for pair in PAIRS] for side in ("right", "wrong"))
    rows = np.arange(len(PAIRS))
    change = found.patched - found.base
    np.testing.assert_allclose(found.effects.raw[0], change[rows, right] - change[rows, wrong], atol=1e-5)
    swept = patch(opened("gpt2"), TASK, sites="resid.post[1]@end")
    np.testing.assert_allclose(found.effects.raw, swept.raw, atol=1e-6)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_metric_is_that_of_patch(metric):
    """Those that read the clean or the base run's distribution too."""
    found = patched_logits(opened("gpt2"), TASK, sites=SITES, metric=metric)
    together = Group("both", SITES)
    np.testing.assert_allclose(
        found.effects.raw, patch(opened("gpt2"), TASK, sites=[together], metric=metric).raw, atol=1e-5
    )


def test_of_a_long_answer_the_first_token_is_read():
    """The answer is scored whole; the distribution is that of the token after the prompt."""
    pairs = [
        Pair((5, 6, 7, 8), (5, 6, 4, 8), ((11, 12),), (), {}),
        Pair((5, 9, 7, 3), (5, 9, 2, 3), ((13, 14, 15),), (), {}),
    ]
    task = Task("long", tuple(pairs), metric="logprob")
    found = patched_logits(opened("gpt2"), task, sites="resid.post[1]@2")
    np.testing.assert_allclose(found.effects.raw, patch(opened("gpt2"), task, sites="resid.post[1]@2").raw, atol=1e-5)
    with torch.no_grad():
        own = module_of("gpt2")(torch.tensor([pairs[1].corrupt])).logits[0, -1]
    np.testing.assert_allclose(found.base[1], own.numpy(), atol=1e-4)


def test_a_site_where_both_runs_agree_leaves_the_base_run():
    """Before the first differing token nothing is patched: the patched distribution is the base run's, to the bit."""
    found = patched_logits(opened("gpt2"), make_task(PAIRS[0]), sites="resid.post[1]@0")
    assert (found.patched == found.base).all()
    assert (found.effects.raw == 0).all()


def test_draws_of_noise_are_averaged():
    """One row a pair, whatever the number of draws."""
    noisy = corrupt(TASK, "gaussian", draws=3, sigma=1.0)
    found = patched_logits(opened("gpt2"), noisy, sites="resid.post[1]@end")
    assert found.patched.shape[0] == len(TASK)
    assert found.effects.raw.shape == (1, len(TASK))


def test_no_site_is_refused():
    """An empty list of sites is said to select nothing."""
    with pytest.raises(BadInput, match="selects no site"):
        patched_logits(opened("gpt2"), TASK, sites=())
