"""Boxes: "Box F contains the apple, Box Q contains the key. Box Q contains the" → key."""

from collections.abc import Mapping, Sequence
from random import Random
from string import ascii_uppercase

from crosspatch.tasks.lexicon import THINGS
from crosspatch.tasks.pair import Task
from crosspatch.tasks.prompts import Drawn, compose, make_task
from crosspatch.tasks.tokens import OpenedModel, tokenizer_of
from crosspatch.tasks.words import check_choice, check_n, deal, usable

BOXES = (3, 2, 5, 7)
CORRUPTIONS = ("query", "swap")
FEWEST = 14
QUERY = ". Box {query} contains the"


def boxes(model: OpenedModel, n: int = 64, *, seed: int = 0, boxes: int = 3, corrupt: str = "query") -> Task:
    """Make `n` pairs of entity tracking: what a box contains was said among what other boxes contain.

    `corrupt`: "query" asks for another box, "swap" exchanges the contents of that box and the one asked for; either way
    the answer becomes the other box's thing. Wrong are the things of all other boxes. The set-up is that of Kim &
    Schuster (2023) and Prakash et al. (2024) in wording that asks as it tells. Positions: label and object (of the box
    asked for), other_label and other_object, query, end. The task's `alternatives` hold the other corrupt prompt. The
    same seed gives the same task.

    Raises BadInput for an option that does not exist or if fewer than 14 things or letters are single tokens.
    """
    check_n(n)
    check_choice("boxes", boxes, BOXES)
    check_choice("corrupt", corrupt, CORRUPTIONS)
    tokenizer_of(model)
    things = usable(model, THINGS, after="contains the", fewest=FEWEST, of="boxes: things")
    labels = list(usable(model, ascii_uppercase, after="Box", fewest=FEWEST, of="boxes: letters"))
    rng = Random(seed)
    drawn = []
    for places in deal([(at, to) for at in range(boxes) for to in range(boxes) if at != to], n, rng):
        rows = rng.sample(labels, boxes), rng.sample(list(things), boxes)
        drawn.append(_draw(model, rows, places=places, corrupt=corrupt, tokens=things))
    settings = {"n": n, "seed": seed, "boxes": boxes, "corrupt": corrupt}
    return make_task(model, "boxes", drawn=drawn, settings=settings)


def _draw(
    model: OpenedModel,
    rows: tuple[Sequence[str], Sequence[str]],
    *,
    places: tuple[int, int],
    corrupt: str,
    tokens: Mapping[str, int],
) -> Drawn:
    labels, things = rows
    at, to = places
    slots = {at: ("label", "object"), to: ("other_label", "other_object")}
    named = [slots.get(i, (f"_label{i}", f"_object{i}")) for i in range(len(labels))]
    template = ", ".join(f"Box {{{label}}} contains the {{{thing}}}" for label, thing in named) + QUERY
    words = {slot: word for names, pair in zip(named, zip(*rows, strict=True), strict=True)
             for slot, word in zip(names, pair, strict=True)} | {"query": labels[at]}  # fmt: skip
    clean = compose(model, template, words)
    prompts = {
        "query": compose(model, template, words | {"query": labels[to]}),
        "swap": compose(model, template, words | {"object": things[to], "other_object": things[at]}),
    }
    wrong = [tokens[thing] for i, thing in enumerate(things) if i != at]
    return Drawn(clean, prompts.pop(corrupt), [tokens[things[at]]], wrong, prompts)
