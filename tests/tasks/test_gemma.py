"""The generators on a real model: it does the tasks, so that patching has something to explain."""

import pytest

from builders_tasks import StubModel
from crosspatch.core.errors import MissingExtra
from crosspatch.tasks import capitals, check, ioi
from crosspatch.tasks.lexicon import IOI_TEMPLATES, NAMES

pytestmark = pytest.mark.gemma


@pytest.fixture(scope="module")
def gemma():
    from crosspatch.models.load import load

    try:
        loaded = load("gemma-3-270m")
    except MissingExtra as missing:
        pytest.skip(str(missing))
    return StubModel(loaded.tokenizer, loaded.module, loaded.module.config.vocab_size, loaded.name)


def test_gemma_does_ioi(gemma):
    """Accuracy 1.00 and a logit difference of about 5, of opposite sign on the corrupt prompt."""
    report = check(gemma, ioi(gemma, 64))
    assert report.aligned
    assert report.accuracy >= 0.97
    assert report.logit_diff == pytest.approx(5.3, abs=0.6)
    assert report.corrupt_logit_diff == pytest.approx(-report.logit_diff, abs=0.6)


def test_gemma_writes_every_name_as_one_token(gemma):
    """Positions and answers hold on the real tokenizer; each template keeps one length."""
    seen = set()
    for template in range(len(IOI_TEMPLATES)):
        pairs = ioi(gemma, 24, seed=template, template=template, corrupt="ABC").pairs
        assert len({len(pair.clean) for pair in pairs}) == 1
        words = [gemma.tokenizer.decode(pair.clean[pair.names[role]]) for pair in pairs for role in ("IO", "S1", "S2")]
        seen |= {word.strip() for word in words}
        assert all(pair.clean[0] == gemma.tokenizer.bos_token_id for pair in pairs)
    assert seen <= set(NAMES)


def test_gemma_knows_capitals(gemma):
    """At least 20 pairs on both sides, by a wide margin."""
    task = capitals(gemma, 20, known_only=True)
    assert len(task) == 20
    report = check(gemma, task)
    assert report.accuracy == 1.0
    assert report.logit_diff > 10
