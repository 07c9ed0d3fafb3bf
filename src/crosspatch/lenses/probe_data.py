"""What a probe is given, checked: features of finite numbers, labels of several classes, groups and types."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from crosspatch.core.errors import BadInput, NotFinite
from crosspatch.lenses.probe_split import Codes, Examples

KINDS = ("linear", "mlp")
Marks = Sequence[Any] | np.ndarray | None


@dataclass(frozen=True)
class Probing:
    """How probes are fitted and measured.

    `held_out` is the share of the examples that measures; `validation` the share of the rest by which `probe_layers`
    chooses a layer. `penalty` is λ in mean cross-entropy + λ / (2 n) · ‖W‖² on standardised features (scikit-learn's
    C = 1/λ). `hidden` is the width of an MLP's one layer. `controls` is how often labels are drawn anew for the control
    task, `permutations` how often for a p-value (0: none).
    """

    held_out: float = 0.3
    validation: float = 0.25
    penalty: float = 1.0
    hidden: int = 64
    controls: int = 5
    permutations: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.controls, self.permutations) < 0 or self.hidden < 1 or not self.penalty > 0:
            raise BadInput(
                f"{self}: give counts of 0 or more for controls and permutations, a hidden width of 1 or more and a "
                "penalty above zero."
            )


@dataclass(frozen=True, eq=False)
class Question:
    """Examples to learn, and the type of each, which alone decides its label in the control task."""

    examples: Examples
    types: Codes


def read_question(labels: Sequence[Any] | np.ndarray, groups: Marks, types: Marks) -> Question:
    """Turn labels, groups and types into codes.

    Without groups each example is its own; without types the groups are, so that no control label can be learnt from
    one side for the other.

    Raises:
        BadInput: labels that are no whole numbers or texts, one class alone, or groups or types of another length.
    """
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "biuUO" or not all(isinstance(v, (str, int)) for v in found.tolist()):
        raise BadInput(
            f"labels are {found.dtype} {list(found.shape)}: give one whole number or text an example. Numbers on a "
            "scale are no classes: cut them into bins first."
        )
    if len({type(value) is str for value in found.tolist()}) > 1:
        raise BadInput("labels mix texts with numbers: give one or the other.")
    classes, codes = np.unique(found, return_inverse=True)
    if len(classes) < 2:
        raise BadInput(f"all {len(found)} labels are {classes.tolist()}: a probe tells two classes or more apart.")
    own = np.arange(len(found)) if groups is None else _codes(groups, len(found), "groups")
    kinds = own if types is None else _codes(types, len(found), "types")
    names = tuple(int(name) if isinstance(name, bool) else name for name in classes.tolist())
    return Question(Examples(codes.astype(np.int64), own, names), kinds)


def _codes(marks: Sequence[Any] | np.ndarray, count: int, what: str) -> Codes:
    found = np.asarray(marks)
    if found.shape != (count,):
        raise BadInput(f"{what} have shape {list(found.shape)} and there are {count} labels: give one an example.")
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def read_features(features: Any, count: int) -> Float[np.ndarray, "example d"]:
    """Return features in double precision.

    Raises:
        BadInput: anything but a table with a row a label.
        NotFinite: NaN or infinity.
    """
    if isinstance(features, dict):
        raise BadInput("features are a mapping: give the features of one layer, or use probe_layers for all of them.")
    found = np.asarray(features)
    if found.ndim != 2 or found.shape[0] != count or not found.shape[1] or found.dtype.kind not in "fiu":
        raise BadInput(
            f"features are {found.dtype} {list(found.shape)} and there are {count} labels: give numbers "
            "[example, d], a row a label in the same order."
        )
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise NotFinite(f"features of example {row} are not finite: leave it out, or look where they come from.")
    return found


def control_labels(question: Question, rng: np.random.Generator) -> Codes:
    """Draw a label for each type at random, classes as likely as in the data (Hewitt & Liang 2019, section 2)."""
    labels = question.examples.labels
    share = np.bincount(labels) / len(labels)
    drawn = rng.choice(len(share), size=int(question.types.max()) + 1, p=share)
    return drawn[question.types].astype(np.int64)


def permuted_labels(examples: Examples, rng: np.random.Generator) -> Codes:
    """Permute labels as a null hypothesis allows: groups of one label swap labels as wholes, mixed ones within."""
    labels, groups = examples.labels, examples.groups
    first = np.unique(groups, return_index=True)[1]
    of_group = labels[first]
    if (of_group[groups] == labels).all():
        return rng.permutation(of_group)[groups]
    order = np.lexsort((rng.random(len(labels)), groups))
    permuted = labels.copy()
    permuted[np.argsort(groups, kind="stable")] = labels[order]
    return permuted
