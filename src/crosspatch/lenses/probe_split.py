"""Split examples into two sides with alike shares of the classes, and no group on both."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from crosspatch.core.errors import BadInput

TRIES = 50  # random orders of the groups, of which the split with the most even classes is taken
Codes = Int[np.ndarray, " example"]
Places = Int[np.ndarray, " place"]  # of some of the examples
Sides = tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held"]]


@dataclass(frozen=True, eq=False)
class Examples:
    """Labels and groups of the examples of a probe as codes 0, 1, …; `classes` are the labels that codes stand for."""

    labels: Codes
    groups: Codes
    classes: tuple[str | int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def grouped(self) -> bool:
        """Whether some group has several examples."""
        return len(np.unique(self.groups)) < len(self)

    def take(self, places: Places) -> "Examples":
        """Return some of the examples."""
        return Examples(self.labels[places], self.groups[places], self.classes)


def split_examples(examples: Examples, share: float, *, seed: int) -> Sides:
    """Return the places of the examples that are kept, and of about a `share` of them that are held out, both sorted.

    Each class has that share of its own examples held out, as nearly as groups allow, and is on both sides.

    Raises:
        BadInput: a share outside 0 to 1, or a class that cannot be on both sides.
    """
    if not 0 < share < 1:
        raise BadInput(f"held_out={share}: give a share between 0 and 1.")
    rng = np.random.default_rng(seed)
    out = _by_group(examples, share, rng) if examples.grouped else _by_example(examples, share, rng)
    for side, there in (("kept", ~out), ("held out", out)):
        counts = np.bincount(examples.labels[there], minlength=len(examples.classes))
        if not counts.all():
            lost = examples.classes[int(counts.argmin())]
            raise BadInput(
                f"no example of class {lost!r} is {side}: each class needs examples in two groups at least, so that it "
                "can be learnt from one and measured on the other. Give more examples, or leave the class out."
            )
    return np.flatnonzero(~out), np.flatnonzero(out)


def _by_example(examples: Examples, share: float, rng: np.random.Generator) -> Bool[np.ndarray, " example"]:
    """Hold out the share of each class, one example at least."""
    out = np.zeros(len(examples), dtype=bool)
    for code in range(len(examples.classes)):
        own = rng.permutation(np.flatnonzero(examples.labels == code))
        out[own[: max(1, round(share * len(own)))]] = True
    return out


def _by_group(examples: Examples, share: float, rng: np.random.Generator) -> Bool[np.ndarray, " example"]:
    """Take groups in random orders while each brings the held-out classes nearer to their share; keep the best."""
    groups = int(examples.groups.max()) + 1
    table = np.zeros((groups, len(examples.classes)))
    np.add.at(table, (examples.groups, examples.labels), 1)
    target = share * table.sum(axis=0)

    def misses(chosen: Bool[np.ndarray, " group"]) -> tuple[int, float]:
        held = table[chosen].sum(axis=0)
        one_sided = int(((held == 0) | (held == table.sum(axis=0))).sum())
        return one_sided, float(((held - target) ** 2).sum())

    tried = [_greedy(table, target, rng.permutation(groups)) for _ in range(TRIES)]
    return min(tried, key=misses)[examples.groups]


def _greedy(
    table: Float[np.ndarray, "group class"], target: Float[np.ndarray, " class"], order: Int[np.ndarray, " group"]
) -> Bool[np.ndarray, " group"]:
    chosen, held = np.zeros(len(table), dtype=bool), np.zeros(len(target))
    for group in order:
        if ((held + table[group] - target) ** 2).sum() < ((held - target) ** 2).sum():
            chosen[group] = True
            held = held + table[group]
    return chosen
