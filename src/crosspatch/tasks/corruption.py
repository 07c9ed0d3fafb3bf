"""How the corrupt run of a pair is made: other tokens, or the clean ones with other embeddings at key positions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.sites import resolve_position
from crosspatch.tasks.pair import EMBEDDINGS, RESAMPLE, TOKENS, Corruption, Pair, Task


def corrupt(task: Task, by: str, *, at: Sequence[str] = (), sigma: float = 3.0, draws: int = 10, seed: int = 0) -> Task:
    """Return the task with its corrupt runs made another way (`Corruption` lists the ways); answers stay.

    Gaussian noise and its 3 standard deviations are those of causal tracing (Meng et al. 2022, "ROME"; Zhang & Nanda
    2023), where the wrong answer is still that of the replaced prompt.

    Raises:
        UnknownName: no such way, or a pair without a position of a name in `at`.
        BadInput: noise of no size, no draw, or an example that no other one can stand in for.
    """
    ways = (TOKENS, RESAMPLE, *EMBEDDINGS, *task.alternatives)
    if by not in ways:
        raise UnknownName.of("corruption", by, ways)
    if sigma <= 0 or draws < 1:
        raise BadInput(f"sigma={sigma}, draws={draws}: give noise of a positive size and at least one draw.")
    made = Corruption(by, tuple(at), sigma, draws if by == "gaussian" else 1, seed)
    for pair in task.pairs:
        key_positions(pair, made)
    pairs = task.pairs
    if by == RESAMPLE:
        pairs = tuple(_resampled(task, made))
    elif by in task.alternatives:
        prompts = zip(task.pairs, task.alternatives[by], strict=True)
        pairs = tuple(replace(pair, corrupt=prompt, corrupt_text="") for pair, prompt in prompts)
    return replace(task, pairs=pairs, corruption=made)


def key_positions(pair: Pair, made: Corruption) -> tuple[int, ...]:
    """Return the positions that decide the answer, in order. Raises UnknownName for a name that the pair lacks."""
    if made.at:
        return tuple(sorted({resolve_position(name, pair.names, len(pair.clean)) for name in made.at}))
    return tuple(i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if a != b)


def layout_of(pair: Pair) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Return what two pairs must share for one position to mean the same in both: length and named positions."""
    return len(pair.clean), tuple(sorted(pair.names.items()))


def _resampled(task: Task, made: Corruption) -> Iterator[Pair]:
    """Yield each pair with the key tokens of another example of the same layout, drawn at random."""
    rng = Random(made.seed)
    for number, pair in enumerate(task.pairs):
        keys = key_positions(pair, made)
        alike = (other for other in task.pairs if layout_of(other) == layout_of(pair))
        others = [other for other in alike if _tokens(other, keys) != _tokens(pair, keys)]
        if not others:
            raise BadInput(
                f"example {number} has a layout (length, named positions) of its own, so that no other example's "
                "tokens can stand in for its own. Give more pairs, or one template."
            )
        drawn = rng.choice(others).clean
        prompt = tuple(drawn[i] if i in keys else token for i, token in enumerate(pair.clean))
        yield replace(pair, corrupt=prompt, corrupt_text="")


def _tokens(pair: Pair, positions: Sequence[int]) -> tuple[int, ...]:
    return tuple(pair.clean[i] for i in positions)
