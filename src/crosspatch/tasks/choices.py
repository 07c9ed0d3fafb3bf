"""Colours: a multiple-choice question whose answer was just said, to be given as a letter."""

from collections.abc import Mapping, Sequence
from random import Random
from string import ascii_uppercase

from crosspatch.core.errors import BadInput
from crosspatch.tasks.lexicon import COLOURS, OBJECTS
from crosspatch.tasks.pair import Task
from crosspatch.tasks.prompts import Drawn, compose, make_task
from crosspatch.tasks.tokens import OpenedModel, tokenizer_of
from crosspatch.tasks.words import check_choice, check_n, deal, one_token, usable

WAYS = (4, 2)
LETTERS = ("ABCD", "random")
CORRUPTIONS = ("colour", "order")
FEWEST = 6
HEAD = "The {_thing} is {colour}.\nQuestion: What colour is the {_thing}?\n"
LINE = "{{_letter{0}}}. {{{1}}}\n"
TAIL = "Answer:"
Row = tuple[Sequence[str], Sequence[str]]  # letters, colours


def colours(
    model: OpenedModel, n: int = 64, *, seed: int = 0, ways: int = 4, letters: str = "ABCD", corrupt: str = "colour"
) -> Task:
    """Make `n` pairs of copy-colours multiple choice with `ways` choices; the answer is the letter of a colour.

    `letters`: "ABCD" in this order, or "random" ones. `corrupt`: "colour" says another of the colours, "order" swaps
    two choices; either way the letter of the answer changes, and wrong are all other letters. The set-up is that of
    Lieberum et al. (2023) and Wiegreffe et al. (2025). Positions: colour (as said first), choice (where it is offered),
    rival (the choice that is right in the corrupt prompt), end. The task's `alternatives` hold the other corrupt
    prompt. The same seed gives the same task.

    Raises BadInput for an option that does not exist or if too few colours or letters are single tokens.
    """
    check_n(n)
    check_choice("ways", ways, WAYS)
    check_choice("letters", letters, LETTERS)
    check_choice("corrupt", corrupt, CORRUPTIONS)
    tokenizer = tokenizer_of(model)
    known = list(usable(model, COLOURS, after="is", fewest=FEWEST, of="colours: colours"))
    tokens = one_token(tokenizer, "ABCD" if letters == "ABCD" else ascii_uppercase, after=TAIL)
    if len(tokens) < ways:
        raise BadInput(
            f"only {len(tokens)} letters are single tokens for the tokenizer of {model.name!r}: {ways} needed."
        )
    rng = Random(seed)
    drawn = []
    for places in deal([(at, to) for at in range(ways) for to in range(ways) if at != to], n, rng):
        signs = list(tokens)[:ways] if letters == "ABCD" else rng.sample(list(tokens), ways)
        row = signs, rng.sample(known, ways)
        drawn.append(_draw(model, row, places=places, thing=rng.choice(OBJECTS), corrupt=corrupt, tokens=tokens))
    settings = {"n": n, "seed": seed, "ways": ways, "letters": letters, "corrupt": corrupt}
    return make_task(model, "colours", drawn=drawn, settings=settings)


def _draw(
    model: OpenedModel, row: Row, *, places: tuple[int, int], thing: str, corrupt: str, tokens: Mapping[str, int]
) -> Drawn:
    letters, offered = row
    at, to = places
    names = ["choice" if i == at else "rival" if i == to else f"_colour{i}" for i in range(len(letters))]
    template = HEAD + "".join(LINE.format(i, name) for i, name in enumerate(names)) + TAIL
    words = {f"_letter{i}": letter for i, letter in enumerate(letters)} | dict(zip(names, offered, strict=True))
    words |= {"_thing": thing, "colour": offered[at]}
    clean = compose(model, template, words)
    prompts = {
        "colour": compose(model, template, words | {"colour": offered[to]}),
        "order": compose(model, template, words | {"choice": offered[to], "rival": offered[at]}),
    }
    wrong = [tokens[letter] for i, letter in enumerate(letters) if i != at]
    return Drawn(clean, prompts.pop(corrupt), [tokens[letters[at]]], wrong, prompts)
