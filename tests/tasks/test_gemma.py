"""The generators on a real model: it does the tasks, so that patching has something to explain."""

import pytest

from builders_gemma import gemma
from builders_tasks import StubModel
from crosspatch.tasks import TASKS, capitals, check, get_task, ioi
from crosspatch.tasks.lexicon import IOI_TEMPLATES, NAMES

pytestmark = pytest.mark.gemma


@pytest.fixture(scope="module", name="gemma")
def fixture_gemma():
    model = gemma()
    return StubModel(model.tokenizer, model.module, model.module.config.vocab_size, model.name)


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


# task, options, (least accuracy, least logit difference, most on corrupt prompts)
DONE = [
    ("greater_than", {}, (0.95, 2.0, 0.0)),
    ("docstring", {}, (0.8, 3.5, 0.5)),
    ("induction", {}, (0.9, 5.0, -4.0)),
    ("facts", {}, (0.9, 4.5, -4.0)),
    ("sva", {"form": "simple"}, (0.95, 4.0, -4.0)),
    ("sva", {"form": "phrase"}, (0.8, 1.5, -1.5)),
    ("sva", {"form": "clause"}, (0.9, 1.5, -1.5)),
    ("gender_bias", {}, (0.6, 0.5, -2.0)),
    ("gender_bias", {"form": "name"}, (0.95, 3.0, -3.0)),
    ("arithmetic", {}, (0.7, 2.0, -2.0)),
]


@pytest.mark.parametrize(("name", "options", "limits"), DONE)
def test_gemma_does_what_it_can(gemma, name, options, limits):
    """Accuracy and logit difference above a floor, and the corrupt prompts undo it."""
    accuracy, clean, corrupt = limits
    report = check(gemma, get_task(name, gemma, n=16, **options))
    assert report.aligned
    assert report.accuracy >= accuracy
    assert report.logit_diff >= clean
    assert report.corrupt_logit_diff <= corrupt


@pytest.mark.parametrize("name", sorted(TASKS))
def test_gemmas_tokenizer_writes_every_task(gemma, name):
    """Every option's pairs are aligned, and answers are single tokens, also where the model cannot do the task."""
    for option, told in TASKS[name].options.items():
        for value in told.values:
            if (option, value) != ("known_only", True):
                task = get_task(name, gemma, n=4, **{option: value})
                for pair in task.pairs:
                    assert tuple(gemma.tokenizer.encode(pair.clean_text)) == pair.clean
                    assert tuple(gemma.tokenizer.encode(pair.corrupt_text)) == pair.corrupt
                    assert all(len(answer) == 1 for answer in (*pair.right, *pair.wrong))
                    assert pair.clean[0] == gemma.tokenizer.bos_token_id


def test_gemmas_years_are_scored_on_the_tens_digit(gemma):
    """Its tokenizer writes each digit as a token."""
    assert get_task("greater_than", gemma, n=2).settings["scored"] == "tens digit"
