"""Greater-than: "The war lasted from the year 1732 to the year 17" → a number above 32."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from crosspatch.core.errors import BadInput
from crosspatch.tasks.lexicon import EVENTS
from crosspatch.tasks.pair import Task
from crosspatch.tasks.prompts import Drawn, compose, make_task
from crosspatch.tasks.tokens import OpenedModel, tokenizer_of
from crosspatch.tasks.words import check_n, deal, one_token, usable

CENTURIES = tuple(range(11, 18))
FEWEST_EVENTS = 8
TEMPLATE = "The {noun} lasted from the year {XX1}{YY} to the year {XX2}"
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class _Years:
    """Hold what this tokenizer makes of years: which may stand first, and the scored answers' tokens by number.

    `step` is 1 where a year's last two digits are one token, 10 where each digit is one and the tens are scored.
    """

    starts: tuple[tuple[int, int], ...]
    answers: Mapping[int, int]
    step: int


def greater_than(model: OpenedModel, n: int = 64, *, seed: int = 0) -> Task:
    """Make `n` pairs that ask for the end of a span of years; the corrupt span begins in a year ending in 01.

    Right are all two-digit endings above that of the first year, wrong those at or below it (Hanna, Liu & Variengien
    2023). A tokenizer that writes each digit as a token is scored on the tens digit: right are the digits above the
    first year's, wrong those below, and the same digit, which may go on either way, is in neither. The settings say
    which is `scored`. Positions: noun, XX1 (the century), YY (the first year's ending; its last digit), tens (its
    first digit, where digits are tokens), XX2, end. The same seed gives the same task.

    Raises BadInput if the tokenizer writes years in neither way, or has fewer than 8 of the nouns as single tokens.
    """
    check_n(n)
    tokenizer_of(model)
    nouns = usable(model, EVENTS, after="The", fewest=FEWEST_EVENTS, of="greater_than: nouns")
    years = _whole(model) or _digits(model)
    if years is None:
        raise BadInput(
            f"the tokenizer of {model.name!r} writes the year 1732 neither as 17 and 32 nor digit by digit, so "
            "greater_than has no single-token answers. Give prompts of your own with from_texts."
        )
    rng = Random(seed)
    chosen = zip(deal(list(nouns), n, rng), deal(years.starts, n, rng), strict=True)
    drawn = [_draw(model, noun, start, years=years) for noun, start in chosen]
    scored = "two digits" if years.step == 1 else "tens digit"
    return make_task(model, "greater_than", drawn=drawn, settings={"n": n, "seed": seed, "scored": scored})


def _whole(model: OpenedModel) -> _Years | None:
    """Read years whose last two digits are one token; those that are one token as a whole are left out."""
    tokenizer = model.tokenizer
    found: list[tuple[int, int]] = []
    answers: dict[str, int] = {}
    for century in CENTURIES:
        endings = [f"{year:02}" for year in range(100)]
        split = one_token(tokenizer, endings, after=f"the year {century}", space=False)
        whole = [text for text in split if _adds_one(model, century, text)]
        answers |= split
        if "01" in whole:
            found += [(century, int(text)) for text in whole if 2 <= int(text) <= 98]
    return _Years(tuple(found), {int(text): token for text, token in answers.items()}, 1) if found else None


def _adds_one(model: OpenedModel, century: int, ending: str) -> bool:
    """Tell whether a year is its century's tokens and one more."""
    before, after = (
        model.tokenizer.encode(f"the year {text}", add_special_tokens=False) for text in (century, f"{century}{ending}")
    )
    return after[:-1] == before


def _digits(model: OpenedModel) -> _Years | None:
    """Read years as four digits; first years whose tens have digits on both sides."""
    answers = one_token(model.tokenizer, DIGITS, after="the year 17", space=False)
    whole = model.tokenizer.encode("the year 17", add_special_tokens=False)
    fits = model.tokenizer.encode("the year 1732", add_special_tokens=False) == [
        *whole, *(answers[digit] for digit in "32" if digit in answers)
    ]  # fmt: skip
    if len(answers) < len(DIGITS) or not fits:
        return None
    starts = tuple((century, year) for century in CENTURIES for year in range(10, 90))
    return _Years(starts, {10 * int(digit): token for digit, token in answers.items()}, 10)


def _draw(model: OpenedModel, noun: str, start: tuple[int, int], *, years: _Years) -> Drawn:
    century, year = start
    template = TEMPLATE if years.step == 1 else TEMPLATE.replace("{YY}", "{tens}{YY}")
    words = {"noun": noun, "XX1": str(century), "XX2": str(century)}
    clean, corrupt = (
        compose(model, template, words | ({"YY": ending} if years.step == 1 else {"tens": ending[0], "YY": ending[1]}))
        for ending in (f"{year:02}", "01")
    )
    floor = year - year % years.step
    right = [token for value, token in years.answers.items() if value > floor]
    # the same ending is wrong; the same tens digit may go on to a later year or to an earlier one
    wrong = [token for value, token in years.answers.items() if value < floor + (years.step == 1)]
    return Drawn(clean, corrupt, right, wrong, {})
