"""Docstring: a function's documentation lists its parameters in order; the third one is asked for."""

from collections.abc import Mapping, Sequence
from random import Random

from crosspatch.tasks.lexicon import ARGUMENTS, NOTIONS
from crosspatch.tasks.pair import Task
from crosspatch.tasks.prompts import Drawn, Prompt, compose, make_task
from crosspatch.tasks.tokens import OpenedModel, tokenizer_of
from crosspatch.tasks.words import check_choice, check_n, usable

CORRUPTIONS = ("definition", "documentation", "both", "answer")
FEWEST_WORDS = 20
HEAD = "def {_function}(self, {_1}, {_2}, {A_def}, {B_def}, {C_def}, {_3}):\n"
BODY = '    """{_4} {_5} {_6}\n\n    :param {A_doc}: {_7} {_8}\n    :param {B_doc}: {_9} {_10}\n    :param'
DEFINED = ("_1", "_2", "A_def", "B_def", "C_def", "_3")  # the six arguments in their order
NOTED = ("_4", "_5", "_6", "_7", "_8", "_9", "_10")


def docstring(model: OpenedModel, n: int = 64, *, seed: int = 0, corrupt: str = "definition") -> Task:
    """Make `n` pairs of a Python function of six arguments whose docstring is about to name the third of its own.

    The documented arguments are the third to fifth; right is the fifth, wrong are the other five (Heimersheim & Janiak
    2023). `corrupt`: "definition" puts other random names in the place of all six arguments, "documentation" of the two
    that are documented already, "both" of all, "answer" of the fifth alone. Positions: A_def, B_def, C_def, A_doc,
    B_doc, end. The task's `alternatives` hold the other corrupt prompts. The same seed gives the same task.

    Raises BadInput for an option that does not exist or if fewer than 20 of the words are single tokens.
    """
    check_n(n)
    check_choice("corrupt", corrupt, CORRUPTIONS)
    tokenizer_of(model)
    words = usable(model, ARGUMENTS, after="self,", fewest=FEWEST_WORDS, of="docstring: argument names")
    notes = usable(model, NOTIONS, after="load:", fewest=FEWEST_WORDS, of="docstring: words")
    rng = Random(seed)
    drawn = [_draw(model, words, notes=list(notes), corrupt=corrupt, rng=rng) for _ in range(n)]
    return make_task(model, "docstring", drawn=drawn, settings={"n": n, "seed": seed, "corrupt": corrupt})


def _draw(model: OpenedModel, words: Mapping[str, int], *, notes: Sequence[str], corrupt: str, rng: Random) -> Drawn:
    names = rng.sample(list(words), 15)
    plain = dict(zip(NOTED, rng.sample(notes, len(NOTED)), strict=True))
    clean = dict(zip(DEFINED, names, strict=False)) | {"_function": names[6]}
    clean |= {"A_doc": clean["A_def"], "B_doc": clean["B_def"]}
    defined, documented = dict(zip(DEFINED, names[7:13], strict=True)), {"A_doc": names[13], "B_doc": names[14]}
    changes = {
        "definition": defined,
        "documentation": documented,
        "both": defined | documented,
        "answer": {"C_def": defined["C_def"]},
    }
    prompts = {way: _write(model, plain | clean | change) for way, change in changes.items()}
    wrong = [words[clean[slot]] for slot in DEFINED if slot != "C_def"]
    return Drawn(_write(model, plain | clean), prompts.pop(corrupt), [words[clean["C_def"]]], wrong, prompts)


def _write(model: OpenedModel, words: Mapping[str, str]) -> Prompt:
    return compose(model, HEAD + BODY, words)
