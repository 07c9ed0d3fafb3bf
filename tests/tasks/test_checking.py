"""What a task is worth on a model, counted by hand on models whose answers are known."""

import math
from dataclasses import replace

import pytest
import torch

from builders_tasks import OnceSeen, StubModel, atlas_of, byte_tokenizer, piece_tokenizer, stub
from crosspatch.core.errors import BadInput, ManyTokenAnswer, NotFinite
from crosspatch.metrics import METRICS, metric_from
from crosspatch.tasks import Task, capitals, check, check_metric, from_tokens, ioi, keep_known


@pytest.fixture(scope="module")
def tokenizer():
    return piece_tokenizer()


def test_a_model_that_solves_the_task(tokenizer):
    """OnceSeen prefers the name said once: right by 5 on clean prompts, wrong by 5 where S2 became IO."""
    module = OnceSeen(len(tokenizer)).train()
    task = ioi(stub(tokenizer), 20)
    report = check(stub(tokenizer, module), task)
    assert (report.task, report.n, report.accuracy, report.wrong, report.aligned) == ("ioi", 20, 1.0, (), True)
    assert report.logit_diff == pytest.approx(5)
    assert report.corrupt_logit_diff == pytest.approx(-5)
    assert module.training  # dropout was off in the run only
    assert module.dropout.training


def test_prompts_run_unpadded_in_batches_of_one_length(tokenizer):
    """Every prompt runs once, beside prompts of its own length."""
    module = OnceSeen(len(tokenizer))
    task = ioi(stub(tokenizer), 40)
    check(stub(tokenizer, module), task)
    lengths = sorted(len(pair.clean) for pair in task.pairs for _ in ("clean", "corrupt"))
    assert sorted(length for rows, length in module.calls for _ in range(rows)) == lengths
    assert max(rows for rows, _ in module.calls) <= 16


@pytest.mark.parametrize("form", ["object", "dict", "tuple"])
def test_only_the_last_position_is_asked_for_and_every_form_of_output_is_read(tokenizer, form):
    """A module that takes `logits_to_keep` computes one position, and no cache."""
    task = capitals(stub(tokenizer), 6)
    module = atlas_of([task], len(tokenizer), form=form)
    report = check(stub(tokenizer, module), task)
    assert (report.accuracy, report.logit_diff, report.corrupt_logit_diff) == (1.0, 8.0, -8.0)
    assert set(module.kept) == {1}


def test_wrong_examples_are_listed_in_their_order(tokenizer):
    """Ties count as wrong: the model must put right above wrong."""
    task = capitals(stub(tokenizer), 8)
    forgotten = {task.pairs[2].right[0][0], task.pairs[5].right[0][0]}
    report = check(stub(tokenizer, atlas_of([task], len(tokenizer), forget=forgotten)), task)
    expected = tuple(i for i, pair in enumerate(task.pairs) if pair.right[0][0] in forgotten)
    assert report.wrong == expected
    assert {2, 5} <= set(expected)
    assert report.accuracy == pytest.approx(1 - len(expected) / 8)
    assert report.logit_diff == pytest.approx(8 * report.accuracy)


class Fixed(torch.nn.Module):
    """Give the same logits everywhere, with a parameter to tell the device."""

    def __init__(self, logits):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(logits))

    def forward(self, ids):
        return self.weight.expand(*ids.shape, -1)


def fixed(logits):
    return StubModel(None, Fixed(logits), len(logits))


def test_alternatives_count_by_the_best_and_average_in_the_difference():
    """Right is known if its best alternative beats the best wrong one; the difference is of means, as logit_diff is."""
    model = fixed([0.0, 4.0, 1.0, 3.0, 2.0])
    task = from_tokens([[0, 1]], [[0, 2]], right=[[1, 2]], wrong=[[3, 4]])
    report = check(model, task)
    assert (report.accuracy, report.logit_diff) == (1.0, 0.0)
    assert check(model, from_tokens([[0, 1]], [[0, 2]], right=[[2, 4]], wrong=[[3]])).wrong == (0,)


def test_without_wrong_answers_right_must_be_the_top_of_the_vocabulary():
    """Accuracy is top-1, other right answers are no rivals, and there is no difference to give."""
    model = fixed([0.0, 4.0, 1.0, 3.0, 5.0])
    report = check(model, from_tokens([[0, 1], [0, 3]], [[0, 2], [0, 2]], right=[[1, 4], 1]))
    assert (report.accuracy, report.wrong) == (0.5, (1,))
    assert math.isnan(report.logit_diff)
    assert math.isnan(report.corrupt_logit_diff)


def test_a_task_made_with_another_tokenizer_is_not_aligned(tokenizer):
    """The texts give other tokens on this model; a task of ids has no texts to disagree."""
    task = ioi(stub(tokenizer), 4)
    other = piece_tokenizer(bos=False)
    assert not check(stub(other, OnceSeen(len(other))), task).aligned
    bare = from_tokens([p.clean for p in task.pairs], [p.corrupt for p in task.pairs], right=[5] * 4)
    assert check(stub(other, OnceSeen(len(other))), bare).aligned


def test_a_corrupt_text_that_gives_other_tokens_is_not_aligned(tokenizer):
    """Both sides' texts are read again."""
    task = ioi(stub(tokenizer), 2)
    pairs = (task.pairs[0], replace(task.pairs[1], corrupt_text="When Mary"))
    assert not check(stub(tokenizer, OnceSeen(len(tokenizer))), replace(task, pairs=pairs)).aligned


def test_ids_that_the_model_lacks_are_refused():
    """Before the embedding fails with an index error."""
    task = from_tokens([[0, 1], [0, 9]], [[0, 2], [0, 2]], right=[1, 1])
    with pytest.raises(
        BadInput, match=r"task 'custom', example 1 holds token id 9, but the model's vocabulary is 0 to 4"
    ):
        check(fixed([0.0] * 5), task)


def test_nan_logits_are_an_error():
    """NaN is neither right nor wrong."""
    with pytest.raises(NotFinite, match=r"gives NaN for a prompt of the pair \(0, 1\).*float32"):
        check(fixed([0.0, math.nan, 0.0]), from_tokens([[0, 1]], [[0, 2]], right=[1], wrong=[2]))


def test_keep_known_needs_wrong_answers():
    """There is nothing to compare with."""
    with pytest.raises(BadInput, match=r"keep_known compares .* no wrong answer for example 0"):
        keep_known(fixed([0.0] * 5), from_tokens([[0, 1]], [[0, 2]], right=[1]))


def several(**options):
    return from_tokens([[0, 1], [0, 3]], [[0, 2], [0, 2]], right=[1, [[1, 2]]], answers="all tokens", **options)


@pytest.mark.parametrize("name", ["logit_diff", "prob", "rank", "kl", "right_logit"])
def test_metrics_of_one_token_refuse_answers_of_several(name):
    """Only a metric that adds over tokens can score them."""
    with pytest.raises(
        ManyTokenAnswer, match=rf"'{name}' reads one token, but an answer of example 1 has 2 .*'logprob'"
    ):
        check_metric(several(wrong=[2, 3]), METRICS[name])
    check_metric(several(wrong=[2, 3]), METRICS["logprob"])


def test_wrong_answers_of_several_tokens_matter_only_to_metrics_that_read_them():
    """prob reads right answers alone."""
    task = from_tokens([[0, 1]], [[0, 2]], right=[1], wrong=[[[2, 3]]], answers="all tokens")
    check_metric(task, METRICS["prob"])
    with pytest.raises(ManyTokenAnswer):
        check_metric(task, METRICS["logit_diff"])


def test_a_metric_that_needs_wrong_answers_refuses_a_task_without_them():
    """Found before anything runs; a user's metric may say the same of itself."""
    task = from_tokens([[0, 1]], [[0, 2]], right=[1])
    mine = metric_from(lambda out: out.wrong[:, 0], name="mine", needs_wrong=True)
    for metric in (METRICS["logit_diff"], mine):
        with pytest.raises(
            BadInput, match=rf"'{metric.name}' compares .*'custom' gives no wrong answer for example 0.*prob"
        ):
            check_metric(task, metric)
    check_metric(task, METRICS[task.metric])


def test_byte_level_tokenizers_work_the_same():
    """GPT-2's kind of tokenizer, without BOS."""
    tokenizer = byte_tokenizer()
    task = ioi(stub(tokenizer), 8)
    assert isinstance(task, Task)
    assert check(stub(tokenizer, OnceSeen(len(tokenizer))), task).accuracy == 1.0
