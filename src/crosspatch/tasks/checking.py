"""What a task is worth on a model: does the model do it, do the pairs fit, can the metric score it."""

from dataclasses import dataclass
from itertools import chain
from math import inf, isnan, nan
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

from crosspatch.core.errors import BadInput, ManyTokenAnswer, NotFinite
from crosspatch.draw import Display, Displayed, number
from crosspatch.tasks.forward import read_last_logits
from crosspatch.tasks.pair import Pair, Task, take
from crosspatch.tasks.tokens import OpenedModel, check_ids


@dataclass(frozen=True, repr=False)
class TaskCheck(Displayed):
    """Say how well a model does a task.

    `accuracy` is the share of clean prompts where the best right answer is above every wrong one (above the whole
    vocabulary if there is no wrong one), `wrong` the indices of the others. `logit_diff` and `corrupt_logit_diff` are
    the mean of right minus wrong logits on clean and corrupt prompts (NaN without wrong answers). `aligned` tells
    whether the model's tokenizer gives the same tokens for the pairs' texts. Answers of several tokens are compared by
    their first tokens alone: `first_token_only` says whether there are any.
    """

    task: str
    n: int
    aligned: bool
    accuracy: float
    logit_diff: float
    corrupt_logit_diff: float
    wrong: tuple[int, ...]
    first_token_only: bool = False

    def display(self) -> Display:
        """Say how often the model is right, and by how much."""
        rows = [
            ("accuracy", f"{self.accuracy:.0%} of {self.n} pairs"),
            ("logit difference, clean", number(self.logit_diff)),
            ("logit difference, corrupt", number(self.corrupt_logit_diff)),
            ("tokens as the model's tokenizer gives them", "yes" if self.aligned else "no"),
        ]
        notes = ["Answers of several tokens are compared by their first tokens."] if self.first_token_only else []
        return Display(f"Check of {self.task}", ("what", "found"), rows, notes)


@dataclass(frozen=True)
class _Logits:
    """Hold one prompt's logits of its answers' first tokens, and of the best token that is no right answer."""

    right: tuple[float, ...]
    wrong: tuple[float, ...]
    others: float


@runtime_checkable
class Scoring(Protocol):
    """The part of a metric that decides whether it can score a task."""

    @property
    def name(self) -> str:
        """The metric's name."""
        ...

    @property
    def sums_over_answer_tokens(self) -> bool:
        """Whether answers of several tokens can be scored."""
        ...

    @property
    def needs_wrong(self) -> bool:
        """Whether wrong answers are needed."""
        ...


def check(model: OpenedModel, task: Task) -> TaskCheck:
    """Run the clean and corrupt prompts through the model and say how well it does the task.

    Raises BadInput if the pairs hold token ids that the model does not have, NotFinite if its logits are NaN.
    """
    clean, corrupt = _run(model, task, "clean"), _run(model, task, "corrupt")
    wrong = tuple(index for index, logits in enumerate(clean) if not _knows(logits))
    return TaskCheck(
        task=task.name,
        n=len(task.pairs),
        aligned=_is_aligned(model, task),
        accuracy=1 - len(wrong) / len(task.pairs),
        logit_diff=fmean(map(_difference, clean)),
        corrupt_logit_diff=fmean(map(_difference, corrupt)),
        wrong=wrong,
        first_token_only=any(len(each) > 1 for pair in task.pairs for each in (*pair.right, *pair.wrong)),
    )


def keep_known(model: OpenedModel, task: Task) -> Task:
    """Keep the pairs that the model knows: right above wrong on the clean prompt, wrong above right on the corrupt.

    For tasks whose corrupt prompt has the wrong answer as its answer; answers of several tokens are compared by their
    first tokens alone. The settings record how many pairs were `checked`
    and `dropped`. Raises BadInput if a pair has no wrong answer or if no pair is left.
    """
    _require_wrong(task, "keep_known compares right with wrong answers")
    runs = zip(_run(model, task, "clean"), _run(model, task, "corrupt"), strict=True)
    kept = [i for i, (clean, corrupt) in enumerate(runs) if _knows(clean) and max(corrupt.wrong) > max(corrupt.right)]
    if not kept:
        raise BadInput(
            f"model {model.name!r} gets none of the {len(task.pairs)} pairs of task {task.name!r} right on both sides, "
            "so patching would explain nothing. See check(model, task), and choose another task or model."
        )
    return take(task, kept, checked=len(task.pairs), dropped=len(task.pairs) - len(kept))


def check_metric(task: Task, metric: Scoring) -> None:
    """Raise ManyTokenAnswer or BadInput if `metric` cannot score the task's answers."""
    if metric.needs_wrong:
        _require_wrong(task, f"metric {metric.name!r} compares right with wrong answers")
    if metric.sums_over_answer_tokens:
        return
    for index, pair in enumerate(task.pairs):
        long = next((each for each in pair.right + (pair.wrong if metric.needs_wrong else ()) if len(each) > 1), None)
        if long:
            raise ManyTokenAnswer(
                f"metric {metric.name!r} reads one token, but an answer of example {index} has {len(long)} "
                f"(token ids {list(long)}). Use metric 'logprob', which adds over an answer's tokens, or make the task "
                "with answers='first token'."
            )


def _require_wrong(task: Task, reason: str) -> None:
    missing = next((index for index, pair in enumerate(task.pairs) if not pair.wrong), None)
    if missing is not None:
        raise BadInput(
            f"{reason}, but task {task.name!r} gives no wrong answer for example {missing}. Give wrong=… when you make "
            "the task, or choose a metric that needs none: prob, logprob, rank, kl, right_logit."
        )


def _run(model: OpenedModel, task: Task, side: str) -> list[_Logits]:
    prompts = [getattr(pair, side) for pair in task.pairs]
    for index, (pair, prompt) in enumerate(zip(task.pairs, prompts, strict=True)):
        for ids in (prompt, *pair.right, *pair.wrong):
            check_ids(ids, model.vocab_size, what=f"task {task.name!r}, example {index}")
    return read_last_logits(model.module, prompts, lambda index, row: _pick(task.pairs[index], row))


def _pick(pair: Pair, row: Any) -> _Logits:
    right, wrong = ([answer[0] for answer in side] for side in (pair.right, pair.wrong))
    others = row.clone()
    others[right] = -inf
    if isnan(float(row.max())):  # the maximum is NaN if any logit is
        raise NotFinite(
            f"the model gives NaN for a prompt of the pair {pair.clean_text or pair.clean!r}. "
            "Open the model in float32; if that does not help, its weights hold NaN."
        )
    return _Logits(tuple(row[right].tolist()), tuple(row[wrong].tolist()), float(others.max()))


def _knows(logits: _Logits) -> bool:
    return max(logits.right) > (max(logits.wrong) if logits.wrong else logits.others)


def _difference(logits: _Logits) -> float:
    return fmean(logits.right) - fmean(logits.wrong) if logits.wrong else nan


def _is_aligned(model: OpenedModel, task: Task) -> bool:
    if model.tokenizer is None:
        return True
    told = ((p.clean_text, p.clean) for p in task.pairs), ((p.corrupt_text, p.corrupt) for p in task.pairs)
    return all(tuple(model.tokenizer.encode(text)) == ids for text, ids in chain(*told) if text)
