"""What the referee's rules look at (`Case`) and what they give (`Finding`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from crosspatch.engine import Effects
from crosspatch.referee.grid import MAIN, GridRun, Setting
from crosspatch.tasks.pair import EMBEDDINGS, RESAMPLE

VOID = 0.05  # share of the main corruption's gap up to which a corruption does not break the behaviour
STEPS = ("accuracy", "rank")  # metrics that count in whole steps
NAMED = 6


@dataclass(frozen=True)
class Finding:
    """One warning or observation: the rule that fired, what it saw, whose rule it is, and the sites concerned."""

    rule: str
    text: str
    source: str
    sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """What rules look at: the grid's effects, the setting that others are compared with, and the direct effects."""

    run: GridRun
    main: Setting

    def at(self, corruption: str = "", direction: str = "", metric: str = "") -> Effects | None:
        """Return the effects of the main setting with some of its parts changed, if they were run and tell anything."""
        setting = Setting(
            corruption or self.main.corruption, direction or self.main.direction, metric or self.main.metric
        )
        return self.run.effects.get(setting) if setting in self.run.effects and not self.void(setting) else None

    def void(self, setting: Setting) -> bool:
        """Whether a corruption does not break the behaviour: no gap, or a twentieth of the main corruption's, or less.

        A gap of the other sign counts as none.
        """
        own = self.run.effects[setting].mean_gap
        main = self.run.effects.get(replace(setting, corruption=self.main.corruption), self.run.effects[setting])
        return not own * main.mean_gap > VOID * main.mean_gap**2

    def other_question(self, corruption: str) -> bool:
        """Whether a corruption changes other positions than the main one, and so traces other information."""
        if corruption in (self.main.corruption, MAIN, RESAMPLE, *EMBEDDINGS):
            return False
        two = next(effects for setting, effects in self.run.effects.items() if setting.corruption == corruption)
        return changed(self.run.effects[self.main]) != changed(two)

    def parts(self, name: str) -> tuple[str, ...]:
        """List the corruptions, directions or metrics of the grid, in order."""
        return tuple(dict.fromkeys(getattr(setting, name) for setting in self.run.effects))


def changed(effects: Effects) -> list[tuple[int, ...]]:
    """List for each pair the positions at which the clean and the corrupt prompt differ."""
    return [
        tuple(i for i, (a, b) in enumerate(zip(view.clean_tokens, view.corrupt_tokens, strict=False)) if a != b)
        for view in effects.examples
    ]


def changed_names(effects: Effects) -> str:
    """Name the positions at which the first pair's prompts differ."""
    view = effects.examples[0]
    names = {index: name for name, index in view.names.items()}
    return ", ".join(names.get(i, f"position {i}") for i in changed(effects)[0])


def names_of(sites: Sequence[str]) -> str:
    """Write a list of sites, the first six by name."""
    shown = ", ".join(sites[:NAMED])
    return shown + (f" and {len(sites) - NAMED} more" if len(sites) > NAMED else "")
