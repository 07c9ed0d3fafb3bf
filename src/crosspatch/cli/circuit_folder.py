"""Run folders of circuits: where one goes, what is there already, what is kept of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from crosspatch.cli.folder import JOURNAL, META, PAGE, SCORE, found_share, read_summary, what_in, write_summary
from crosspatch.cli.options import DEFAULT_FOLDER
from crosspatch.cli.question import question_key
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput, CorruptFile

if TYPE_CHECKING:
    from crosspatch.circuits import Circuit, Graph, Scorecard

CIRCUIT = "circuit"
_SAME = ("model_hash", "data_hash", "dtype", "metric", "corruption", "ablation", "places", "method")


@dataclass(frozen=True)
class Found:
    """Where a circuit goes, and what of it was there: the circuit, its scores, and whether the run goes on."""

    folder: Path
    circuit: "Circuit | None" = None
    score: "Scorecard | None" = None
    resume: bool = False


def circuit_key(settings: Mapping[str, Any]) -> str:
    """Give the key of a search by what a circuit stores of it: equal keys are equal searches, with equal circuits."""
    return question_key(*(json.dumps(settings.get(name), sort_keys=True) for name in _SAME))


def difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in which settings two searches differ."""
    names = {"model_hash": "model", "data_hash": "task"}
    found = []
    for name in _SAME:
        if json.dumps(earlier.get(name), sort_keys=True) != json.dumps(now.get(name), sort_keys=True):
            word = names.get(name, name)
            had = earlier.get(word if name in names else name)
            told = ", ".join(f"{key} {value}" for key, value in had.items()) if isinstance(had, Mapping) else had
            more = f" with {earlier.get('n')} pairs" if name == "data_hash" else ""
            found.append(f"its {word}: {told}{more}")
    return "; ".join(found) or "its settings differ"


def find_folder(now: Mapping[str, Any], folder: Path, resume: Path | None, voice: Voice) -> Found:
    """Decide what a search does with its folder.

    Raises BadInput where something would be lost: another run, or a circuit of this search whose scores are missing
    (unless `resume`), and for a folder to resume that holds nothing. Raises CorruptFile for one that is damaged.
    """
    if what_in(folder) is None:
        return _begun(folder, resume, voice)
    _refuse_other(folder)
    try:
        circuit = load_circuit_of(folder)
    except CorruptFile as damage:
        if resume is not None:
            raise
        voice.say(f"{folder} holds a damaged circuit, which is replaced ({damage})")
        return Found(folder)
    earlier = circuit.settings.get("settings", {})
    if read_summary(folder).get("key"):
        raise BadInput(f"{folder} holds scores of `circuit score`: give the search another folder.")
    if circuit_key(earlier) != circuit_key(now):
        how = "cannot resume it: give the options that it was started with" if resume else "give another --out, or "
        remove = "" if resume else f"remove it first: crosspatch runs remove {folder}"
        raise BadInput(f"{folder} holds another circuit ({difference(earlier, now)}): {how}{remove}.")
    score = load_score_of(folder)
    if resume is not None:
        return Found(folder, circuit, score, resume=True)
    if not read_summary(folder).get("complete", True):
        raise BadInput(
            f"{folder} holds this circuit, found but not scored yet. Add --resume to score it, or remove it first: "
            f"crosspatch runs remove {folder}"
        )
    voice.say(f"{folder} holds this circuit already; it is found again and replaced.")
    return Found(folder, circuit, score)


def _begun(folder: Path, resume: Path | None, voice: Voice) -> Found:
    journal = folder / JOURNAL
    if journal.is_dir():
        voice.say(f"{folder} holds finished work of a search that was stopped: {_work(journal)}")
        return Found(folder, resume=True)
    if resume is not None and resume != DEFAULT_FOLDER:
        raise BadInput(f"nothing to resume in {folder}: it holds neither a circuit nor finished work of a search.")
    if resume is not None:
        voice.say(f"nothing to resume in {folder}: starting from the beginning.")
    return Found(folder)


def _work(journal: Path) -> str:
    from crosspatch.core.journal import ABOUT, Journal

    if not (journal / ABOUT).exists() or Journal.found(journal).plan.get("units"):
        return found_share(journal)
    return "the rest is run now."


def _refuse_other(folder: Path) -> None:
    what = what_in(folder)
    if what != CIRCUIT:
        held = "a run that is no circuit" if what else "other files"
        raise BadInput(
            f"{folder} holds {held}: give another --out, or remove it first: crosspatch runs remove {folder}"
        )


def load_circuit_of(folder: Path) -> "Circuit":
    """Load the circuit of a run folder. Raises BadInput or CorruptFile, also for a folder that holds something else."""
    from crosspatch.circuits import load_circuit

    if folder.is_dir() and not (folder / META).exists():
        raise BadInput(f"{folder} holds no circuit: give the folder that `crosspatch circuit find` wrote.")
    if what_in(folder) not in (None, "", CIRCUIT):
        raise BadInput(f"{folder} holds a run that is no circuit: see it with `crosspatch runs show {folder}`.")
    return load_circuit(folder)


def load_score_of(folder: Path) -> "Scorecard | None":
    """Load the scores beside a circuit; None where there are none. Raises CorruptFile for damaged ones."""
    from crosspatch.circuits import load_scorecard

    return load_scorecard(folder / SCORE) if (folder / SCORE).is_dir() else None


def open_circuit(name: str, graph: "Graph | None" = None) -> "Circuit":
    """Open a circuit by its run folder, a .json file in the format of EAP-IG, or a published name.

    Raises BadInput, CorruptFile or UnknownName for what is none.
    """
    from crosspatch.circuits import known_circuit, read_eap_ig
    from crosspatch.circuits.known import KNOWN

    path = Path(name)
    if path.is_dir():
        return load_circuit_of(path)
    if path.is_file() or path.suffix == ".json":
        return read_eap_ig(path, graph)
    if name in KNOWN:
        return known_circuit(name)
    raise BadInput(
        f"no circuit at {name!r}. Give a run folder of `crosspatch circuit find`, a .json file of EAP-IG, or a "
        f"published circuit: {', '.join(KNOWN)}."
    )


@dataclass(frozen=True)
class Kept:
    """What is saved of a circuit, and told of it: its page (None: not written) and its JSON document."""

    circuit: "Circuit"
    score: "Scorecard | None"
    folder: Path
    page: Path | None
    summary: dict[str, Any]


def keep(circuit: "Circuit", score: "Scorecard | None", folder: Path, *, report: bool, **more: Any) -> Kept:
    """Save a circuit, its scores, its page and its summary in a run folder; finished work is no longer needed.

    Raises BadInput if something cannot be written.
    """
    from crosspatch.cli.circuit_text import summary_of

    circuit.save(folder)
    if score is None:
        rmtree(folder / SCORE, ignore_errors=True)  # of a circuit that was there before
    else:
        score.save(folder / SCORE)
    page = folder / PAGE if report else None
    if page is not None:
        circuit.report(page, score)
    summary = summary_of(circuit, score, **more, folder=folder, report=page)
    write_summary(folder, summary)
    rmtree(folder / JOURNAL, ignore_errors=True)
    return Kept(circuit, score, folder, page, summary)
