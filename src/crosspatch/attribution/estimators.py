"""The estimators by name, with their settings as plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

from crosspatch.core.errors import BadInput, UnknownName

Path = Literal["", "inputs", "activations"]
# Places of the steps between base (0) and source (1).
POINTS = ("left", "right", "midpoint")
STEPS = 10


@dataclass(frozen=True)
class Estimator:
    """Say how effects are estimated from gradients.

    `qk`: queries and keys act through the softmax itself, linear only behind it. `drop`: average of magnitudes over
    gradients in each of which one block adds nothing (GradDrop). `path`: gradients are averaged over `steps` runs
    between base and source, of the whole prompt ("inputs") or of each kind in each layer ("activations"); `points` says
    where the steps lie. `rules` are those of relevance propagation.
    """

    name: str
    qk: bool = False
    drop: bool = False
    path: Path = ""
    steps: int = STEPS
    points: str = "midpoint"
    rules: tuple[str, ...] = ()
    preset: str = ""

    @property
    def signed(self) -> bool:
        """Whether an estimate has a sign; GradDrop adds magnitudes up."""
        return not self.drop

    @property
    def alphas(self) -> tuple[float, ...]:
        """The places of the steps: 0 is the base run, 1 the source run."""
        shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[self.points]
        return tuple((step + shift) / self.steps for step in range(self.steps))

    def settings(self) -> dict[str, Any]:
        """Return what a result stores of it."""
        path = {"path": self.path, "steps": self.steps, "points": self.points} if self.path else {}
        rules = {"preset": self.preset, "rules": list(self.rules)} if self.rules else {}
        return {"estimator": self.name, "signed": self.signed, **path, **rules}

    def to_json(self) -> dict[str, Any]:
        """Write it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Estimator":
        """Read what `to_json` wrote. Raises TypeError or KeyError for anything else."""
        return cls(**{**entry, "rules": tuple(entry["rules"])})

    @property
    def title(self) -> str:
        """Name it with its settings."""
        more = [f"rules {self.preset}"] if self.rules else [f"{self.steps} steps"] if self.path else []
        return ", ".join((TITLES[self.name], *more))


TITLES: Mapping[str, str] = MappingProxyType(
    {
        "atp": "AtP",
        "atp-qk": "AtP with the fix of queries and keys",
        "atp-drop": "AtP with GradDrop",
        "atp*": "AtP*",
        "ig": "integrated gradients over inputs",
        "ig-activations": "integrated gradients over activations",
        "relp": "RelP",
    }
)
_KNOWN: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "atp": {},
        "atp-qk": {"qk": True},
        "atp-drop": {"drop": True},
        "atp*": {"qk": True, "drop": True},
        "ig": {"path": "inputs"},
        "ig-activations": {"path": "activations"},
        "relp": {},
    }
)
NAMES = tuple(_KNOWN)
# Sets of rules as published: the LN rule alone is what the published demonstration of RelP runs; `relp` is its table
# of rules, `repo` its repository's default, `attnlrp` Achtibat et al. 2024, `cp` Ali et al. 2022.
PRESETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ln": ("ln",),
        "relp": ("ln", "identity", "half", "ah"),
        "repo": ("ln", "identity", "half"),
        "attnlrp": ("ln", "identity", "half", "uniform"),
        "cp": ("ln", "ah"),
    }
)
PRESET = "relp"


def estimator(
    by: str | Estimator, *, preset: str | None = None, steps: int | None = None, points: str | None = None
) -> Estimator:
    """Find an estimator by name and fill in its settings.

    Raises:
        UnknownName: no such estimator, preset or rule for the points.
        BadInput: a setting that it does not have, or steps that are no positive number.
    """
    if isinstance(by, Estimator):
        if (preset, steps, points) != (None, None, None):
            raise BadInput("an Estimator has its settings already: leave preset, steps and points out.")
        return by
    if by not in _KNOWN:
        raise UnknownName.of("estimator", by, NAMES)
    known, path = _KNOWN[by], bool(_KNOWN[by].get("path"))
    if preset is not None and by != "relp":
        raise BadInput(f"preset={preset!r} with by={by!r}: only 'relp' has presets.")
    if not path and (steps is not None or points is not None):
        raise BadInput(f"steps or points with by={by!r}: only 'ig' and 'ig-activations' have them.")
    if steps is not None and steps < 1:
        raise BadInput(f"steps={steps}: give a positive number of steps between base and source run.")
    if points is not None and points not in POINTS:
        raise UnknownName.of("place of the steps", points, POINTS)
    named = preset or PRESET
    if by == "relp" and named not in PRESETS:
        raise UnknownName.of("preset", named, PRESETS)
    rules = {"rules": PRESETS[named], "preset": named} if by == "relp" else {}
    return Estimator(by, **known, steps=steps or STEPS, points=points or "midpoint", **rules)
