"""What one workbench holds: the model, its line, results that were answered lately, what is kept."""

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_urlsafe
from threading import Lock
from typing import Generic, TypeVar

from crosspatch.core.errors import UnknownName
from crosspatch.engine.effects import Effects
from crosspatch.lenses import HeadPatterns
from crosspatch.models.model import Model
from crosspatch.workbench.asked import AskedPatch
from crosspatch.workbench.line import Line

Value = TypeVar("Value")


@dataclass(frozen=True)
class Limits:
    """Bounds that keep one question from taking the machine: bytes beside the weights, tokens, sites, bytes of a body.

    `cells` bounds the sites of a sweep and of a joint patch; `results` finished answers are held for being kept.
    """

    memory: int | None = None
    tokens: int = 1024
    cells: int = 20_000
    body: int = 1 << 20
    results: int = 64


@dataclass(frozen=True)
class Result:
    """One answered question: what was asked, whether its sites were patched together, the effects."""

    asked: AskedPatch
    joint: bool
    effects: Effects


class Recent(Generic[Value]):
    """The newest few values by id; the oldest go first."""

    def __init__(self, most: int, what: str) -> None:
        self.most, self.what = most, what
        self._held: OrderedDict[str, Value] = OrderedDict()
        self._lock = Lock()

    def add(self, value: Value, name: str = "") -> str:
        """Hold a value; return its id."""
        name = name or token_urlsafe(9)
        with self._lock:
            self._held[name] = value
            self._held.move_to_end(name)
            while len(self._held) > self.most:
                self._held.popitem(last=False)
        return name

    def get(self, name: str) -> Value | None:
        """Return a value, None if it was never there or is gone."""
        with self._lock:
            return self._held.get(name)

    def need(self, name: str) -> Value:
        """Return a value. Raises UnknownName if it was never there or is gone."""
        found = self.get(name)
        if found is None:
            raise UnknownName(f"no {self.what} {name[:40]!r} is held here (any more): run it again.")
        return found


@dataclass
class State:
    """A served model and all that its tabs share."""

    model: Model
    out: Path
    limits: Limits = field(default_factory=Limits)
    line: Line = field(default_factory=Line)

    def __post_init__(self) -> None:
        from crosspatch.workbench.findings import Findings
        from crosspatch.workbench.sweeps import LiveSweep

        self.results: Recent[Result] = Recent(self.limits.results, "result")
        self.sweeps: Recent[LiveSweep] = Recent(self.limits.results, "sweep")
        self.patterns: Recent[HeadPatterns] = Recent(2, "attention")
        self.findings = Findings(self.out, self.model)
