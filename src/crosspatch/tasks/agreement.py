"""Subject-verb agreement: "The author near the dogs" → is; the corrupt prompt turns the subject's number over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from crosspatch.core.errors import BadInput
from crosspatch.tasks.lexicon import CLAUSE_VERBS, NOUNS, PREPOSITIONS
from crosspatch.tasks.pair import Task
from crosspatch.tasks.prompts import Drawn, Prompt, compose, make_task
from crosspatch.tasks.tokens import OpenedModel, tokenizer_of
from crosspatch.tasks.words import check_choice, check_n, deal, one_token

FORMS = {
    "phrase": "The {subject} {preposition} the {attractor}",
    "simple": "The {subject}",
    "clause": "The {subject} that the {attractor} {verb}",
}
ATTRACTORS = ("mixed", "same", "other")
SINGULAR, PLURAL = ("is", "was", "has"), ("are", "were", "have")
FEWEST_NOUNS = 8
Noun = tuple[str, str]  # singular, plural


@dataclass(frozen=True)
class _Words:
    """Hold what this tokenizer can use: nouns and verbs whose two numbers are single tokens, prepositions, answers."""

    nouns: Sequence[Noun]
    verbs: Sequence[Noun]
    prepositions: Sequence[str]
    answers: tuple[Sequence[int], Sequence[int]]


def sva(model: OpenedModel, n: int = 64, *, seed: int = 0, form: str = "phrase", attractor: str = "mixed") -> Task:
    """Make `n` pairs of subject-verb agreement; the corrupt prompt has the subject in the other number.

    `form`: "simple" asks right behind the subject, "phrase" behind a prepositional phrase, "clause" behind a relative
    clause. `attractor` says whether the noun in between has the subject's number ("same"), the "other", or each in
    half of the pairs. Right are is, was and has, or are, were and have; wrong the other three. Positions: subject,
    preposition, attractor, verb (of the clause), end. The same seed gives the same task. The set-up is that of
    Finlayson et al. (2021) and Marks et al. (2024).

    Raises BadInput for an option that does not exist or if the tokenizer splits too many nouns or the verbs.
    """
    check_n(n)
    check_choice("form", form, tuple(FORMS))
    check_choice("attractor", attractor, ATTRACTORS)
    words = _usable(model)
    rng = Random(seed)
    same = deal({"mixed": [True, False], "same": [True], "other": [False]}[attractor], n, rng)
    plural = deal([False, True], n, rng)
    drawn = [_draw(model, words, form=form, numbers=each, rng=rng) for each in zip(plural, same, strict=True)]
    settings: dict[str, str | int | float] = {"n": n, "seed": seed, "form": form}
    return make_task(
        model, "sva", drawn=drawn, settings=settings | ({} if form == "simple" else {"attractor": attractor})
    )


def _usable(model: OpenedModel) -> _Words:
    tokenizer = tokenizer_of(model)
    known = one_token(tokenizer, {word for noun in (*NOUNS, *CLAUSE_VERBS) for word in noun}, after="The")
    nouns, verbs = ([noun for noun in all_ if set(noun) <= set(known)] for all_ in (NOUNS, CLAUSE_VERBS))
    prepositions = list(one_token(tokenizer, PREPOSITIONS, after="dog"))
    answers = tuple(list(one_token(tokenizer, verb, after="dog").values()) for verb in (SINGULAR, PLURAL))
    if len(nouns) < FEWEST_NOUNS or not all((verbs, prepositions, *answers)):
        raise BadInput(
            f"only {len(nouns)} of {len(NOUNS)} nouns, {len(verbs)} verbs, {len(prepositions)} prepositions and "
            f"{len(answers[0])}+{len(answers[1])} answers are single tokens in both numbers for the tokenizer of "
            f"{model.name!r}, and sva needs {FEWEST_NOUNS} nouns and one of each. Give prompts with from_texts."
        )
    return _Words(nouns, verbs, prepositions, (answers[0], answers[1]))


def _draw(model: OpenedModel, words: _Words, *, form: str, numbers: tuple[bool, bool], rng: Random) -> Drawn:
    plural, same = numbers
    subject, other = rng.sample(list(words.nouns), 2)
    shared = {
        "preposition": rng.choice(words.prepositions),
        "attractor": other[plural == same],
        "verb": rng.choice(words.verbs)[plural == same],
    }
    clean, corrupt = (_write(model, form, shared | {"subject": subject[number]}) for number in (plural, not plural))
    return Drawn(clean, corrupt, words.answers[plural], words.answers[not plural], {})


def _write(model: OpenedModel, form: str, words: Mapping[str, str]) -> Prompt:
    return compose(model, FORMS[form], words)
