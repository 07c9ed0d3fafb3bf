"""Audit: the grid's effects, how far its settings agree, and what the rules found; drawn, saved and loaded."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.core.files import write_atomic
from crosspatch.engine import Effects
from crosspatch.referee.case import STEPS, Case, Finding
from crosspatch.referee.compare import Found, correlations, found_in
from crosspatch.referee.grid import GridRun, Setting, main_setting
from crosspatch.referee.rules import findings_of

if TYPE_CHECKING:
    from rich.console import Group as Stack

DIRECT = "direct effects"
NAMED = 8
SURE = 0.9  # share of the settings that make a site sure
INDEX = "audit.json"


@dataclass(frozen=True)
class Agreement:
    """How many settings of the same question find a site, and of these how many say that it helps."""

    site: str
    finders: int
    helping: int
    settings: int

    @property
    def share(self) -> float:
        """The share of settings that find the site."""
        return self.finders / self.settings

    @property
    def sign(self) -> str:
        """Whether settings say that the site helps, hurts, or disagree."""
        return "helps" if self.helping == self.finders else "mixed" if self.helping else "hurts"


@dataclass(frozen=True, eq=False)
class Audit:
    """Patching in every way of a grid: effects by setting, the main one first.

    Raises BadInput without effects.
    """

    run: GridRun
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.run.effects:
            raise BadInput("an audit needs the effects of one setting at least.")

    @property
    def effects(self) -> Mapping[Setting, Effects]:
        """Effects by setting: single sites, and windows behind them."""
        return self.run.effects

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings of the grid."""
        return tuple(self.run.effects)

    @cached_property
    def main(self) -> Setting:
        """The setting that the others are compared with: the task's own corruption and metric, the first direction."""
        return main_setting(self.settings)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What the rules found, each with its source."""
        return findings_of(self._case)

    @cached_property
    def telling(self) -> tuple[Setting, ...]:
        """The settings whose corruption breaks the behaviour; the others count in no comparison."""
        return tuple(setting for setting in self.settings if not self._case.void(setting))

    @cached_property
    def alike(self) -> tuple[Setting, ...]:
        """The telling settings that ask the main setting's question: its key positions, and no metric of whole steps.

        All telling settings if the main one is not among them.
        """
        other = {name for name in self._case.parts("corruption") if self._case.other_question(name)}
        kept = tuple(s for s in self.telling if s.corruption not in other and s.metric not in STEPS)
        return kept if self.main in kept else self.telling

    @cached_property
    def found(self) -> Mapping[Setting, Found]:
        """The sites that each telling setting finds, by the 2-SD rule."""
        return {setting: found_in(self.effects[setting]) for setting in self.telling}

    @cached_property
    def correlations(self) -> Float[np.ndarray, "setting setting"]:
        """Rank correlations between the effects of every two telling settings."""
        return correlations([self.effects[setting] for setting in self.telling])

    def agreement(self) -> tuple[Agreement, ...]:
        """List the sites that some setting finds, those that most settings find first.

        Counted are the settings that ask the main one's question (`alike`).
        """
        found = [self.found[setting] for setting in self.alike]
        count = Counter(site for each in found for site in each.all)
        helping = Counter(site for each in found for site in each.helping)
        rows = [Agreement(site, n, helping[site], len(self.alike)) for site, n in count.items()]
        return tuple(sorted(rows, key=lambda row: (-row.finders, row.site)))

    def verdict(self) -> str:
        """Say in two sentences which sites every setting finds, and how far the settings agree."""
        if not self.telling:
            return "No corruption breaks the behaviour, so nothing can be found. Choose another task or model."
        rows, counted = self.agreement(), len(self.alike)
        sure = [row.site for row in rows if row.share >= SURE and row.sign != "mixed"]
        found = f"No site is found by nine in ten of {counted} settings"
        if sure:
            named = ", ".join(sure[:NAMED]) + (" and more" if len(sure) > NAMED else "")
            verb = "sites are" if len(sure) > 1 else "site is"
            found = f"{len(sure)} {verb} found by nine in ten of {counted} settings: {named}"
        rest = len(rows) - len(sure)
        others = {0: "no other by any", 1: "1 other depends on how you patch"}
        return f"{found}; {others.get(rest, f'{rest} others depend on how you patch')}. {self._spread()}"

    def _spread(self) -> str:
        places = [number for number, setting in enumerate(self.telling) if setting in self.alike]
        among = self.correlations[np.ix_(places, places)][np.tril_indices(len(places), -1)]
        among = among[~np.isnan(among)]
        if not len(among):
            return "Too few sites matter for their order to be compared between settings."
        return f"Rank correlations between settings: median {np.median(among):.2f}, lowest {among.min():.2f}."

    def cost(self) -> str:
        """Say what the audit cost in plain forwards, and in single sweeps."""
        run = self.run
        times = run.forwards / run.single if run.single else float("nan")
        sweeps = len({(setting.corruption, setting.direction) for setting in self.settings})
        return (
            f"{len(self.settings)} settings (and their windows) off {sweeps} sweeps: the work of {run.forwards:,.0f} "
            f"forwards, {times:.2f} times those sweeps with one metric and single sites"
        )

    def save(self, folder: str | Path) -> Path:
        """Write a folder with one result folder a setting; give it. Raises BadInput if it cannot."""
        folder = Path(folder)
        names = {
            _folder_name(number, setting): effects for number, (setting, effects) in enumerate(self.effects.items())
        }
        for name, effects in (names | ({DIRECT: self.run.direct} if self.run.direct is not None else {})).items():
            effects.save(folder / name)
        index = {
            "what": "audit",
            "settings": [asdict(setting) for setting in self.settings],
            "folders": list(names),
            "direct": self.run.direct is not None,
            "forwards": self.run.forwards,
            "single": self.run.single,
            "left_out": list(self.run.left_out),
            "provenance": dict(self.provenance),
            "findings": [asdict(finding) for finding in self.findings],
        }
        write_atomic(folder / INDEX, json.dumps(index, indent=1, default=str).encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Audit":
        """Read what `save` wrote; findings are made anew. Raises BadInput without a folder, CorruptFile if damaged."""
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise BadInput(f"{str(folder)!r} holds no audit: there is no {INDEX} in it.")
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if index["what"] != "audit":
                raise ValueError(f"it holds {index['what']!r}")
            settings = [Setting(**{part: str(value) for part, value in entry.items()}) for entry in index["settings"]]
            effects = dict(zip(settings, (_part(folder, name) for name in index["folders"]), strict=True))
            direct = _part(folder, DIRECT) if index["direct"] else None
            costs = float(index["forwards"]), float(index["single"])
            return cls(GridRun(effects, direct, *costs, tuple(index["left_out"])), dict(index["provenance"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{str(folder / INDEX)!r} is no audit as crosspatch writes it: {error}.") from error

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page; give its path. Raises BadInput if it cannot be written."""
        from crosspatch.report import write_audit

        return write_audit(self, path)

    def __repr__(self) -> str:
        notes = "".join(f"\n! {finding.text}" for finding in self.findings)
        return f"Audit of {len(self.settings)} settings\n{self.verdict()}{notes}"

    def __rich__(self) -> "Stack":
        from rich.console import Group as Stack
        from rich.text import Text

        from crosspatch.draw import rich_table

        notes = [Text(f"! [{each.rule}] {each.text} ({each.source})", style="yellow") for each in self.findings]
        left = [Text(f"left out: {text}", style="dim") for text in self.run.left_out]
        table = rich_table(("site", "found by", "sign", f"effect ({self.main})"), self.table())
        return Stack(table, *notes, *left, Text(self.verdict(), style="bold"), Text(self.cost()))

    def table(self, most: int = 15) -> list[tuple[str, str, str, str]]:
        """List the sites most settings find: site, how many find it, what it does, its effect in the main setting."""
        main = self.effects[self.main]
        mean = dict(zip(map(str, main.sites), main.mean().tolist(), strict=True))
        return [
            (row.site, f"{row.finders} of {row.settings}", row.sign, f"{mean.get(row.site, float('nan')):.2f}")
            for row in self.agreement()[:most]
        ]

    def _repr_html_(self) -> str:
        from html import escape

        from crosspatch.draw import table_html

        sites = table_html(("site", "found by", "sign", f"effect ({self.main})"), self.table())
        rows = [(f.rule, f.text, f.source) for f in self.findings]
        found = table_html(("rule", "finding", "source"), rows) if rows else "<p>No rule of the referee fired.</p>"
        return f"<p>{escape(self.verdict())}</p>{sites}{found}<p>{escape(self.cost())}</p>"

    @cached_property
    def _case(self) -> Case:
        return Case(self.run, self.main)


def _folder_name(number: int, setting: Setting) -> str:
    """Name a setting's folder; a task's corruptions may have any name."""
    text = "".join(c if c.isalnum() or c in "+-_." else "_" for c in str(setting).replace(", ", "-"))
    return f"{number:02d} {text}"


def _part(folder: Path, name: str) -> Effects:
    """Read one setting's effects. Raises ValueError for a name that leaves the folder or holds none."""
    if Path(name).name != name or not (folder / name).is_dir():
        raise ValueError(f"there is no part {name!r}")
    return Effects.load(folder / name)


def settings_words(settings: Sequence[Setting]) -> str:
    """Name the parts of a grid: its corruptions, directions and metrics."""
    parts = ("corruption", "direction", "metric")
    return "; ".join(f"{part}s: {', '.join(dict.fromkeys(getattr(s, part) for s in settings))}" for part in parts)
