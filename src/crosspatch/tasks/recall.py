"""Recalled facts: prompts about a subject, each paired with one about another subject of as many tokens."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from crosspatch.core.errors import BadInput
from crosspatch.tasks.checking import keep_known
from crosspatch.tasks.pair import Task, take
from crosspatch.tasks.prompts import Drawn, Prompt, compose, make_pair, make_task
from crosspatch.tasks.rows import is_id
from crosspatch.tasks.tokens import OpenedModel, tokenizer_of
from crosspatch.tasks.words import one_token


@dataclass(frozen=True)
class Fact:
    """State a fact: a wording with a slot {subject}, what stands there, what follows, and what kind of fact it is."""

    wording: str
    subject: str
    answer: str
    relation: str = ""


@dataclass(frozen=True)
class _Known:
    """Hold a fact as the tokenizer writes it: its prompt and its answer's one token."""

    prompt: Prompt
    answer: int


def recall(
    model: OpenedModel,
    name: str,
    *,
    facts: Iterable[Fact],
    n: int,
    known_only: bool,
    settings: Mapping[str, str | int | float],
) -> Task:
    """Make `n` pairs of facts of one relation whose subjects have equally many tokens and whose answers differ.

    Positions: subject_first and subject (first and last token of the subject), end. With `known_only`, pairs that the
    model gets wrong are replaced by others (`keep_known`); fewer than `n` may then be left. The seed is read from
    `settings`. Raises BadInput for more pairs than the facts give on this tokenizer.
    """
    groups = _group(model, facts)
    most = sum(first.answer != second.answer for group in groups for first in group for second in group)
    if not is_id(n) or not 1 <= n <= most:
        raise BadInput(f"n={n!r}: for the tokenizer of {model.name!r} there are 1 to {most} pairs of {name}.")
    # a known pair is wanted for each of n: look at twice as many and a few
    rows = list(islice(_match(groups, Random(settings["seed"])), 2 * n + 8 if known_only else n))
    drawn = [Drawn(a.prompt, b.prompt, [a.answer], [b.answer], {}) for a, b in rows]
    pairs = [make_pair(model, each, {"subject_first": each.clean.spans["subject"][0]}) for each in drawn]
    task = make_task(model, name, drawn=drawn, settings={"n": len(drawn), **settings}, pairs=pairs)
    return _first(keep_known(model, task), n) if known_only else task


def _group(model: OpenedModel, facts: Iterable[Fact]) -> list[list[_Known]]:
    """Bring together the usable facts of one relation and one length."""
    tokenizer = tokenizer_of(model)
    groups: dict[tuple[str, int], list[_Known]] = {}
    for fact in facts:
        text = fact.wording.format(subject=fact.subject)
        for token in one_token(tokenizer, [fact.answer], after=text).values():
            prompt = compose(model, fact.wording, {"subject": fact.subject})
            groups.setdefault((fact.relation, len(prompt.ids)), []).append(_Known(prompt, token))
    return [group for group in groups.values() if len(group) > 1]


def _match(groups: Sequence[Sequence[_Known]], rng: Random) -> Iterator[tuple[_Known, _Known]]:
    """Yield every ordered pair of a group once, each fact as often as the others for as long as that is possible."""
    shuffled = [rng.sample(group, len(group)) for group in groups]
    for shift in range(1, max(map(len, shuffled), default=0)):
        turned = [(group, [*group[shift:], *group[:shift]]) for group in shuffled if shift < len(group)]
        matches = [(a, b) for one, other in turned for a, b in zip(one, other, strict=True) if a.answer != b.answer]
        yield from rng.sample(matches, len(matches))


def _first(task: Task, n: int) -> Task:
    return take(task, range(min(n, len(task))))
