"""Findings: answers that the user keeps. Each is a run folder at once, so that nothing is lost with the window."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import ValidationError

from crosspatch.core.errors import BadInput, CrosspatchError, UnknownName
from crosspatch.core.names import plain_name
from crosspatch.core.store import write_whole
from crosspatch.engine.effects import Effects
from crosspatch.engine.keeping import task_hash
from crosspatch.models.model import Model
from crosspatch.sites import members_of
from crosspatch.workbench.asked import AskedPatch
from crosspatch.workbench.code import script_of
from crosspatch.workbench.pairs import task_of
from crosspatch.workbench.state import Result

ABOUT, PAGE = "finding.json", "report.html"
FEW = 3  # sites that a title can list


@dataclass(frozen=True)
class Finding:
    """One kept answer: where it lies, what was asked, what the user wrote beside it."""

    name: str
    folder: Path
    result: Result
    note: str = ""

    def told(self) -> dict[str, Any]:
        """Describe it for the browser."""
        effects: Effects = self.result.effects
        return {
            "name": self.name,
            "folder": str(self.folder),
            "note": self.note,
            "joint": self.result.joint,
            "title": title_of(self.result),
            "finding": says(self.result),
            "asked": self.result.asked.model_dump(),
            "metric": effects.metric,
        }


def title_of(result: Result) -> str:
    """Name what was patched, and how."""
    how = ", together" if result.joint and len(members_of(result.effects.sites[0])) > 1 else ""
    return f"{_what(result)}, {result.asked.direction}{how}"


def _what(result: Result) -> str:
    """Name what was patched: as it was asked, or of many sites together their number, kinds and layers."""
    members = members_of(result.effects.sites[0]) if result.joint else ()
    if len(members) <= FEW:
        return result.asked.sites
    layers = sorted({member.layer for member in members if member.layer is not None})
    where = f", layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f", layer {layers[0]}" if layers else ""
    kinds = ", ".join(dict.fromkeys(member.kind for member in members))
    return f"{len(members)} sites ({kinds}{where})"


def says(result: Result) -> str:
    """Say what came out in one sentence."""
    effects: Effects = result.effects
    if not result.joint:
        return effects.finding()
    base, source, raw = float(effects.base[0]), float(effects.source[0]), float(effects.raw[0, 0])
    share = f", {raw / (source - base):.0%} of the way to the source run's {source:.3g}" if source != base else ""
    return (
        f"In one run ({result.asked.direction}), patching {_what(result)} brings {effects.metric} from {base:.3g} "
        f"to {base + raw:.3g}{share}, on this one pair."
    )


class Findings:
    """The kept answers of one model, in run folders below `out`, whose names begin with `workbench`."""

    def __init__(self, out: Path, model: Model) -> None:
        self.out, self.model = out, model
        self._lock = Lock()
        self._kept: dict[str, Finding] = {}
        for folder in sorted(out.glob("workbench-*"), key=_written) if out.is_dir() else ():
            self._load(folder)

    def all(self) -> list[Finding]:
        """List the findings, the first one kept first."""
        with self._lock:
            return list(self._kept.values())

    def need(self, name: str) -> Finding:
        """Return a finding. Raises UnknownName if there is none of this name."""
        with self._lock:
            found = self._kept.get(name)
        if found is None:
            raise UnknownName(f"no finding {name[:80]!r} is kept here.")
        return found

    def keep(self, result: Result, note: str) -> Finding:
        """Write an answer to a run folder and list it; the same answer again takes the new note. Raises BadInput."""
        name = self._name(result)
        folder = self.out / name
        found = Finding(name, folder, result, note)
        with self._lock:
            result.effects.save(folder)
            write_whole(folder / ABOUT, json.dumps(self._about(found), indent=1).encode())
            result.effects.report(folder / PAGE)
            self._kept[name] = found
        return found

    def drop(self, name: str) -> None:
        """Take a finding off the list; its run folder stays, without the mark that lists it. Raises UnknownName."""
        found = self.need(name)
        with self._lock:
            try:
                (found.folder / ABOUT).unlink(missing_ok=True)
            except OSError as problem:
                raise BadInput(f"cannot take {found.folder} off the list: {problem.strerror}.") from problem
            self._kept.pop(name, None)

    def script(self, findings: Sequence[Finding]) -> str:
        """Write Python that finds the same anew."""
        return script_of(self.model, [each.result for each in findings])

    def _name(self, result: Result) -> str:
        asked = result.asked
        text = repr((self.model.fingerprint, task_hash(task_of(self.model, asked.pair)), asked.sites, asked.direction))
        key = sha256((text + repr((result.effects.metric, result.joint))).encode()).hexdigest()[:8]
        return f"workbench-{plain_name(self.model.name)}-{key}"

    def _about(self, finding: Finding) -> dict[str, Any]:
        return {
            "model": self.model.fingerprint,
            "asked": finding.result.asked.model_dump(),
            "joint": finding.result.joint,
            "note": finding.note,
        }

    def _load(self, folder: Path) -> None:
        """Take up a finding of an earlier workbench on this model; what is not one is left alone."""
        try:
            about = json.loads((folder / ABOUT).read_bytes())
            if about["model"] != self.model.fingerprint:
                return
            result = Result(AskedPatch(**about["asked"]), bool(about["joint"]), Effects.load(folder))
            self._kept[folder.name] = Finding(folder.name, folder, result, str(about["note"]))
        except (OSError, ValueError, LookupError, TypeError, ValidationError, CrosspatchError):
            return


def _written(folder: Path) -> float:
    try:
        return (folder / ABOUT).stat().st_mtime
    except OSError:
        return 0.0
