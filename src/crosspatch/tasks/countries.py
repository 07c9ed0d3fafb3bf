"""Capitals: "Kabul, the capital of" → Afghanistan; the corrupt prompt names another city of as many tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from crosspatch.core.errors import BadInput
from crosspatch.tasks.checking import keep_known
from crosspatch.tasks.lexicon import CAPITAL_TEMPLATES, CAPITALS
from crosspatch.tasks.pair import Pair, Task
from crosspatch.tasks.tokens import OpenedModel, continue_with, encode, token_strings, tokenizer_of


@dataclass(frozen=True)
class _Fact:
    """Hold one prompt about a city: its ids, the span of the city in them, the country's one token."""

    text: str
    ids: tuple[int, ...]
    country: int
    start: int
    stop: int


def capitals(model: OpenedModel, n: int = 32, *, seed: int = 0, template: int = 0, known_only: bool = False) -> Task:
    """Make `n` pairs that ask for the country of a capital; the corrupt prompt swaps in another city.

    Both cities have equally many tokens and both countries one. `template` chooses the wording. Positions:
    subject_first and subject (first and last token of the city), end. With `known_only`, pairs that the model gets
    wrong are replaced by others (`keep_known`); fewer than `n` may then be left. The same seed gives the same task.

    Raises BadInput for a template that does not exist, a model without tokenizer or more pairs than there are.
    """
    if not 0 <= template < len(CAPITAL_TEMPLATES):
        raise BadInput(f"template={template} does not exist: give 0 to {len(CAPITAL_TEMPLATES) - 1}.")
    groups = _group(_read_facts(model, CAPITAL_TEMPLATES[template]))
    most = sum(len(group) * (len(group) - 1) for group in groups)
    if not 1 <= n <= most:
        raise BadInput(f"n={n}: for the tokenizer of {model.name!r} there are 1 to {most} pairs of capitals.")
    settings = {"n": n, "seed": seed, "template": template}
    # a known pair is wanted for each of n: look at twice as many and a few
    drawn = list(islice(_match(groups, Random(seed)), 2 * n + 8 if known_only else n))
    task = _make_task(model, drawn, settings)
    return _first(keep_known(model, task), n) if known_only else task


def _read_facts(model: OpenedModel, template: str) -> list[_Fact]:
    """Tokenise the template with every city; the span of a city is what the prompts do not share at both ends."""
    tokenizer = tokenizer_of(model)
    known = []
    for city, country in CAPITALS:
        text = template.format(city=city)
        answer = continue_with(tokenizer, text, answer=f" {country}")
        if len(answer) == 1 and answer[0] != tokenizer.unk_token_id:
            known.append((text, encode(model, text), answer[0]))
    rows = [ids for _, ids, _ in known]
    start, tail = _shared(rows), _shared([ids[::-1] for ids in rows])
    return [_Fact(text, ids, country, start, len(ids) - tail) for text, ids, country in known]


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """Count the first tokens that all rows have in common."""
    return next((at for at, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), 0)


def _group(facts: Sequence[_Fact]) -> list[list[_Fact]]:
    groups: dict[int, list[_Fact]] = {}
    for fact in facts:
        groups.setdefault(len(fact.ids), []).append(fact)
    return [group for group in groups.values() if len(group) > 1]


def _match(groups: Sequence[Sequence[_Fact]], rng: Random) -> Iterator[tuple[_Fact, _Fact]]:
    """Yield every ordered pair of a group once, each fact as often as the others for as long as that is possible."""
    shuffled = [rng.sample(group, len(group)) for group in groups]
    for shift in range(1, max(map(len, shuffled), default=0)):
        matches = [(group[i], group[(i + shift) % len(group)]) for group in shuffled for i in range(len(group))
                   if shift < len(group)]  # fmt: skip
        yield from rng.sample(matches, len(matches))


def _make_task(
    model: OpenedModel, drawn: Sequence[tuple[_Fact, _Fact]], settings: Mapping[str, str | int | float]
) -> Task:
    pairs = tuple(
        Pair(
            clean=clean.ids,
            corrupt=corrupt.ids,
            right=((clean.country,),),
            wrong=((corrupt.country,),),
            names={"subject_first": clean.start, "subject": clean.stop - 1, "end": len(clean.ids) - 1},
            clean_text=clean.text,
            corrupt_text=corrupt.text,
        )
        for clean, corrupt in drawn
    )
    return Task(
        "capitals", pairs, settings=settings, tokens=tuple(token_strings(model.tokenizer, p.clean) for p in pairs)
    )


def _first(task: Task, n: int) -> Task:
    kept = task.pairs[:n]
    return Task(task.name, kept, task.metric, {**task.settings, "n": len(kept)}, task.tokens[:n])
