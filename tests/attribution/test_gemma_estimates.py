"""Estimates on the real Gemma-3-270M against an independent measurement of the same prompts, metric and sites."""

import numpy as np
import pytest

import crosspatch as xp
from builders_gemma import gemma
from crosspatch.attribution import compare_estimate

pytestmark = pytest.mark.gemma
KINDS = ("resid.pre", "attn.out", "mlp.out")
PROMPTS = (
    ("When John and Mary went to the shops,", "gave the bag to", "John", "Mary"),
    ("When Tom and James went to the park,", "gave the ball to", "Tom", "James"),
    ("When Dan and Sid went to the shops,", "gave an apple to", "Dan", "Sid"),
    ("After Martin and Amy went to the park,", "gave a drink to", "Martin", "Amy"),
)
# Pearson correlation with exact denoising over 18 layers × 15 positions, by a script that shares no code with this one.
MEASURED = {
    ("atp", None): (0.297, 0.952, -0.648),
    ("relp", "ln"): (0.925, 0.958, 0.935),
    ("relp", "repo"): (0.902, 0.939, 0.971),
    ("relp", "relp"): (0.927, 0.755, 0.963),
    ("relp", "cp"): (0.963, 0.768, 0.966),
}


@pytest.fixture(scope="module")
def model():
    return gemma()


@pytest.fixture(scope="module")
def task(model):
    clean, corrupt, right, wrong = [], [], [], []
    for start, end, first, second in PROMPTS:
        one, two = (model.tokenizer(f"{start} {name} {end}").input_ids for name in (second, first))
        for prompts, answers in (((one, two), (first, second)), ((two, one), (second, first))):
            clean.append(prompts[0])
            corrupt.append(prompts[1])
            right.append(model.tokenizer(f" {answers[0]}").input_ids[-1])
            wrong.append(model.tokenizer(f" {answers[1]}").input_ids[-1])
    return xp.tasks.from_tokens(clean, corrupt, right=right, wrong=wrong)


@pytest.fixture(scope="module")
def exact(model, task):
    found = xp.patch(model, task, sites=", ".join(KINDS))
    assert float(found.source.mean()) == pytest.approx(4.9024, abs=1e-3)
    return found


@pytest.mark.parametrize(("by", "preset"), MEASURED)
def test_correlations_are_those_measured_independently(model, task, exact, by, preset):
    """Within 0.02 of the table: another attention kernel moves a correlation by about 0.001."""
    found = xp.attribute(model, task, sites=", ".join(KINDS), by=by, preset=preset)
    agreed = compare_estimate(found, exact)
    correlations = [agreed.only(kind).pearson for kind in KINDS]
    np.testing.assert_allclose(correlations, MEASURED[by, preset], atol=0.02)


def test_integrated_gradients_repair_the_norms(model, task, exact):
    """Five prompts between base and source are enough where one gradient is anti-correlated."""
    found = compare_estimate(xp.attribute(model, task, sites=", ".join(KINDS), by="ig", steps=5), exact)
    assert min(found.only(kind).pearson for kind in KINDS) > 0.95
