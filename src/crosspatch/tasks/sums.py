"""Arithmetic: a few worked sums, then one to finish, all with results of one digit."""

from collections.abc import Mapping, Sequence
from random import Random

from crosspatch.core.errors import BadInput
from crosspatch.tasks.pair import Task
from crosspatch.tasks.prompts import Drawn, Prompt, compose, make_task
from crosspatch.tasks.tokens import OpenedModel, tokenizer_of
from crosspatch.tasks.words import check_choice, check_n, deal, one_token

SHOTS = (4, 0, 2, 8)
CORRUPTIONS = ("b", "a")
MOST = 9
# results of one digit, where each operand has others that give one too
SUMS = tuple((a, b) for a in range(1, MOST - 1) for b in range(1, MOST - 1) if a + b <= MOST)
ASKED = "{a}+{b}="


def arithmetic(model: OpenedModel, n: int = 64, *, seed: int = 0, shots: int = 4, corrupt: str = "b") -> Task:
    """Make `n` pairs of a sum to finish behind `shots` worked ones; operands and results have one digit.

    The corrupt prompt changes one operand, `b` or `a`, and so the result; wrong is its result. No worked sum is the
    one asked for. The set-up is that of Stolfo et al. (2023) and Nikankin et al. (2025), cut to single digits so that
    every tokenizer writes the result as one token. Positions: a, b, end (the = sign). The task's `alternatives` hold
    the other corrupt prompt. The same seed gives the same task.

    Raises BadInput for an option that does not exist or if digits are no tokens of their own.
    """
    check_n(n)
    check_choice("shots", shots, SHOTS)
    check_choice("corrupt", corrupt, CORRUPTIONS)
    tokenizer_of(model)
    digits = one_token(model.tokenizer, "123456789", after="1+1=", space=False)
    if len(digits) < 9:
        raise BadInput(
            f"the tokenizer of {model.name!r} writes only {len(digits)} of 9 digits behind 1+1= as single tokens. "
            "Give prompts of your own with from_texts."
        )
    rng = Random(seed)
    drawn = [_draw(model, digits, asked, shots=shots, corrupt=corrupt, rng=rng) for asked in deal(SUMS, n, rng)]
    settings = {"n": n, "seed": seed, "shots": shots, "corrupt": corrupt}
    return make_task(model, "arithmetic", drawn=drawn, settings=settings)


def _draw(
    model: OpenedModel, digits: Mapping[str, int], asked: tuple[int, int], *, shots: int, corrupt: str, rng: Random
) -> Drawn:
    a, b = asked
    changed = {"b": (a, _other(b, MOST - a, rng)), "a": (_other(a, MOST - b, rng), b)}
    worked = rng.sample([each for each in SUMS if each not in (asked, *changed.values())], shots)
    prompts = {operand: _write(model, worked, each) for operand, each in changed.items()}
    right, wrong = (digits[str(sum(each))] for each in (asked, changed[corrupt]))
    return Drawn(_write(model, worked, asked), prompts.pop(corrupt), [right], [wrong], prompts)


def _other(operand: int, most: int, rng: Random) -> int:
    """Draw another operand that keeps the result at one digit."""
    return rng.choice([each for each in range(1, most + 1) if each != operand])


def _write(model: OpenedModel, worked: Sequence[tuple[int, int]], asked: tuple[int, int]) -> Prompt:
    shown = "".join(f"{a}+{b}={a + b}\n" for a, b in worked)
    return compose(model, shown + ASKED, dict(zip("ab", map(str, asked), strict=True)))
