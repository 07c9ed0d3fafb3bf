"""Run folders: where a run goes, what may be replaced there, what is listed and what is removed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from crosspatch.cli.options import DEFAULT_FOLDER
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.core.names import plain_name

if TYPE_CHECKING:
    from crosspatch.cli.question import Question
    from crosspatch.engine.effects import Effects

ROOT = Path("runs")
AUDIT = "audit.json"
ARRAYS, META, PAGE, SUMMARY = "arrays.safetensors", "meta.json", "report.html", "summary.json"
ATTENTION = ("attention.safetensors", "attention.json")  # of the heads that a run swept
COMPARED = "compare.html"  # the page of several runs, in the folder of the first
SCORE = "score"  # the folder of a circuit's scores, in the circuit's own
JOURNAL = "journal"  # finished patches of a run that has not come to its end
EXPORTS = ("effects.csv", "effects.json", "effects.md", "effects.parquet")


@dataclass(frozen=True)
class Place:
    """Where a run goes, what was found there of the same question, and whether the run goes on from that."""

    folder: Path
    earlier: "Effects | None" = None
    resume: bool = False

    @property
    def complete(self) -> bool:
        """Tell whether a whole run of the question was found."""
        return self.earlier is not None and is_complete(self.earlier)


def default_folder(question: "Question") -> Path:
    """Name the folder of a question: `runs/ioi-gemma-3-270m-7f3a2c`."""
    return ROOT / f"{plain_name(question.task.name)}-{plain_name(question.model.name)}-{question.key}"


def find_places(question: "Question", *, out: Path | None, resume: Path | None, voice: Voice) -> "list[Place]":
    """Decide for each metric where its run goes: with several, in a folder each below `out`.

    Raises BadInput as `find_place` does, and for a folder to resume where there are several.
    """
    if question.others and resume not in (None, DEFAULT_FOLDER):
        raise BadInput(f"--resume {resume} with several metrics: give --resume alone, and --out as the run was begun.")
    if not question.others:
        return [find_place(question, out=out, resume=resume, voice=voice)]
    return [
        find_place(one, out=None if out is None else out / one.metric, resume=resume, voice=voice)
        for one in question.each
    ]


def find_place(question: "Question", *, out: Path | None, resume: Path | None, voice: Voice) -> Place:
    """Decide where the run goes and what of it is there already.

    Raises BadInput where that would lose something: an interrupted run of this question (unless `resume`), or the run
    of another question. Raises BadInput or CorruptFile if there is nothing to resume in a folder that was named.
    """
    if out is not None and resume not in (None, DEFAULT_FOLDER, out):
        raise BadInput(f"--out {out} and --resume {resume}: a run is continued where it is, so leave --out out.")
    named = resume is not None and resume != DEFAULT_FOLDER
    folder = resume if named and resume is not None else (out or default_folder(question))
    if resume is not None:
        return _resumed(folder, question, named=named, voice=voice)
    earlier = _there(folder, voice)
    if earlier is None:
        return Place(folder)
    _refuse_loss(folder, earlier, question)
    voice.say(f"{folder} holds this run already; it is run again and replaced.")
    return Place(folder, earlier)


def _resumed(folder: Path, question: "Question", *, named: bool, voice: Voice) -> Place:
    from crosspatch import load
    from crosspatch.cli.question import key_of

    if not named and not (folder / META).exists():
        voice.say(f"nothing to resume in {folder}: starting from the beginning.")
        return Place(folder)
    earlier = load(folder)
    if key_of(earlier) != question.key:
        raise BadInput(
            f"cannot resume {folder}: it is another question ({_difference(earlier, question)}). Give the options that "
            "it was started with, or start anew without --resume."
        )
    return Place(folder, earlier, resume=True)


def _there(folder: Path, voice: Voice) -> "Effects | None":
    """Load what a folder holds; None if it holds no run, or a damaged one, which may be replaced."""
    from crosspatch import load

    what = what_in(folder)
    if what is None:
        return None
    if what == "circuit":
        raise BadInput(f"{folder} holds a circuit. Give another --out, or remove it: crosspatch runs remove {folder}")
    try:
        return load(folder)
    except CorruptFile as damage:
        voice.say(f"{folder} holds a damaged run, which is replaced ({damage})")
        return None


def _refuse_loss(folder: Path, earlier: "Effects", question: "Question") -> None:
    from crosspatch.cli.question import key_of

    remove = f"remove it first: crosspatch runs remove {folder}"
    if key_of(earlier) != question.key:
        raise BadInput(
            f"{folder} holds another run ({_difference(earlier, question)}). Give another --out, or {remove}"
        )
    if not is_complete(earlier):
        raise BadInput(
            f"{folder} holds an interrupted run of this question, {done_share(earlier):.0%} done. Add --resume to "
            f"continue it, or {remove}"
        )


def _difference(earlier: "Effects", question: "Question") -> str:
    from crosspatch.engine.patching import task_hash

    settings = earlier.provenance.get("settings", {})
    pairs = (
        ("model", settings.get("model_hash") == question.model.fingerprint, earlier.model),
        ("task", settings.get("data_hash") == task_hash(question.task), f"{earlier.task} with {earlier.n} pairs"),
        ("sites", set(earlier.sites) == set(question.sites), settings.get("sites", f"{len(earlier.sites)} sites")),
        ("direction", earlier.direction == question.ask.direction, earlier.direction),
        ("metric", earlier.metric == question.metric, earlier.metric),
        ("ablation", _ablated(settings) == question.ask.ablation, _ablated(settings) or "none"),
        ("paths", (settings.get("to") or "") == question.ask.to, f"to {settings.get('to') or 'nothing'}"),
    )
    return "; ".join(f"its {name}: {had}" for name, same, had in pairs if not same) or "its settings differ"


def _ablated(settings: Mapping[str, Any]) -> str:
    return (settings.get("ablation") or {}).get("by", "")


def is_complete(effects: "Effects") -> bool:
    """Tell whether a run came to its end."""
    return bool(effects.provenance.get("settings", {}).get("complete", True))


def done_share(effects: "Effects") -> float:
    """Give the share of the work that was done: of the patches that must be run, not of those known to be zero."""
    import numpy as np

    plan = effects.provenance.get("settings", {}).get("plan", {})
    rows, zero = plan.get("rows", effects.raw.size), plan.get("zero", 0)
    return min(max(int((~np.isnan(effects.raw)).sum()) - zero, 0) / max(rows, 1), 1.0)


def found_share(journal: Path) -> str:
    """Say how much of its work a journal holds."""
    from crosspatch.core.journal import ABOUT, Journal

    if not (journal / ABOUT).exists():
        return "it is run now."
    found = Journal.found(journal)
    return f"{len(found.done())} of {found.plan.get('units')} units are done; the rest is run now."


@contextmanager
def writable(folder: Path) -> Iterator[Path]:
    """Make a folder and try to write in it, before hours of work; an empty one is taken away again.

    Raises BadInput if it cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    trial = folder / f".trial-{token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise BadInput(f"cannot write in {folder}: {reason}. Give --out a folder that is writable.") from problem
    try:
        yield folder
    finally:
        with suppress(OSError):  # not empty: the run is in it
            for path in made:
                path.rmdir()


def read_summary(folder: Path) -> dict[str, Any]:
    """Describe the run in a folder: the summary that its verb wrote, else one made from its effects.

    Raises BadInput or CorruptFile if it holds no run that can be read.
    """
    try:
        found = json.loads((folder / SUMMARY).read_bytes())
        if isinstance(found, dict) and (folder / META).exists():
            return found
    except (OSError, ValueError):
        pass
    if what_in(folder) == "circuit":
        from crosspatch.cli.circuit_folder import load_circuit_of, load_score_of
        from crosspatch.cli.circuit_text import summary_of as summary_of_circuit

        return summary_of_circuit(load_circuit_of(folder), load_score_of(folder))
    from crosspatch import load
    from crosspatch.report.summary import summary_of

    return summary_of(load(folder), top=5)


def what_in(folder: Path) -> str | None:
    """Tell what a result folder says it holds, such as "circuit"; "" if it does not say, None without a result."""
    if not (folder / META).exists():
        return None
    try:
        return str(json.loads((folder / META).read_bytes())["meta"]["what"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def audit_in(folder: Path) -> bool:
    """Tell whether a folder holds an audit."""
    return (folder / AUDIT).is_file()


def run_folders(root: Path = ROOT) -> list[Path]:
    """List the runs and audits in a folder, finished or not, the latest first."""
    try:
        found = {path: _written(path) for path in root.iterdir()}
    except OSError:
        return []
    return sorted((path for path, when in found.items() if when), key=lambda path: found[path], reverse=True)


def _written(folder: Path) -> float:
    """Return when a run was last written in a folder; 0 if it holds none."""
    marks = (folder / name for name in (META, AUDIT, JOURNAL))
    return max((mark.stat().st_mtime for mark in marks if mark.exists()), default=0.0)


def remove_run(folder: Path) -> list[str]:
    """Delete the files that a run wrote, and the folder if nothing else is in it; list what was left.

    Raises BadInput if the folder holds no run, or if a file cannot be deleted.
    """
    if not any((folder / name).exists() for name in (META, ARRAYS, JOURNAL, AUDIT)):
        raise BadInput(f"{folder} is no run folder: it has neither {META} nor {ARRAYS}. See `crosspatch runs`.")
    try:
        if audit_in(folder) or what_in(folder) == "study":
            for path in folder.iterdir():  # one run a setting, one result a part
                if (path / META).exists():
                    remove_run(path)
            (folder / AUDIT).unlink(missing_ok=True)
        for name in (ARRAYS, META, PAGE, SUMMARY, COMPARED, *ATTENTION, *EXPORTS):
            (folder / name).unlink(missing_ok=True)
        rmtree(folder / JOURNAL, ignore_errors=True)
        if (folder / SCORE).is_dir():
            for name in (ARRAYS, META):
                (folder / SCORE / name).unlink(missing_ok=True)
            with suppress(OSError):  # something else is in it
                (folder / SCORE).rmdir()
        left = sorted(path.name for path in folder.iterdir())
        if not left:
            folder.rmdir()
    except OSError as problem:
        raise BadInput(f"cannot remove {folder}: {problem.strerror or problem}.") from problem
    return left


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Save a run's summary beside it. Raises BadInput if it cannot be written."""
    from crosspatch.cli.say import to_json
    from crosspatch.core.store import write_whole

    write_whole(folder / SUMMARY, (to_json(summary) + "\n").encode())
