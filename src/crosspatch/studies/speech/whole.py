"""The speech study as a whole: its parts measured one after another, kept as they come, and told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from crosspatch.core.errors import BadInput, CorruptFile, UnknownName
from crosspatch.core.progress import Progress, SilentProgress
from crosspatch.core.provenance import here
from crosspatch.core.store import read_result, write_result
from crosspatch.lenses.probe_fit import need_scikit_learn
from crosspatch.models.load import Loaded, load
from crosspatch.studies.speech import context, decoder, hearing, maps, probes, repetition
from crosspatch.studies.speech.corpus import need_voices
from crosspatch.studies.speech.ear import Ear
from crosspatch.studies.speech.part import Part, kept, refuse_loss
from crosspatch.studies.study import Finding, Section, Study

VERSION = 1  # of what the parts measure; raised when that changes, so that kept parts are measured again
TITLE = "What a speech model hears, layer by layer"
PAPER = "Beyond Transcription: Mechanistic Interpretability in ASR (Glazer et al. 2025)"
LINK = "https://arxiv.org/abs/2508.15882"
Measure = Callable[[Ear, int, int], Part]
Tell = Callable[[Part], tuple[list[Finding], Section]]
PARTS: Mapping[str, tuple[Measure, Tell]] = MappingProxyType(
    {
        "maps": (maps.measure, maps.tell),
        "decoder": (decoder.measure, decoder.tell),
        "hearing": (hearing.measure, hearing.tell),
        "probes": (probes.measure, probes.tell),
        "repetition": (repetition.measure, repetition.tell),
        "context": (context.measure, context.tell),
    }
)


@dataclass(frozen=True)
class Sizes:
    """How much each part measures.

    `maps`: clips for the sweep of heads; `decoder`: sentences, each by two voices; `hearing`: sentences; `probes`:
    sentences a voice, of twelve voices (below five, speakers are left out); `repetition`: loops that are patched;
    `context`: word pairs.
    """

    maps: int = 6
    decoder: int = 6
    hearing: int = 8
    probes: int = 5
    repetition: int = 12
    context: int = 14

    def __post_init__(self) -> None:
        least = {"probes": 2, "hearing": 2, "context": 2, "maps": 2, "decoder": 1, "repetition": 1}
        most = {"probes": 10, "hearing": 10, "context": 14, "maps": 10, "decoder": 10, "repetition": 24}
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not least[name] <= value <= most[name]:
                raise BadInput(f"{name}={value}: the speech study has material for {least[name]} to {most[name]}.")


def study_speech(
    model: Any = "whisper-base",
    *,
    parts: Sequence[str] | None = None,
    sizes: Sizes | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Study:
    """Run the experiments of "Beyond Transcription" on a Whisper, and set what is found beside what the paper says.

    `model` is what `load` takes, or what it gave. `parts` are some of maps, decoder, hearing, probes, repetition and
    context; by default all. Sentences are read out by flite and espeak-ng. With a `folder` each part is kept there as
    it comes: what was measured with the same model, seed and size is not measured again, and nothing else is replaced.

    Raises:
        UnknownName: a part that there is not.
        BadInput: a model that is no Whisper, or that is training; sizes that there is no material for; a folder whose
            parts were measured with another model, seed or size.
        MissingExtra: flite or espeak-ng, scikit-learn, or what reads sound is not installed.

    >>> study_speech("whisper-tiny.en", folder="runs/speech").report("speech.html")  # doctest: +SKIP
    """
    chosen = list(dict.fromkeys(parts if parts is not None else PARTS))
    for name in chosen:
        if name not in PARTS:
            raise UnknownName.of("part of the speech study", name, tuple(PARTS))
    if not chosen:
        raise BadInput(f"parts=[]: give one at least of {', '.join(PARTS)}.")
    sizes, progress = sizes or Sizes(), progress or SilentProgress()
    need_voices()
    if "probes" in chosen:
        need_scikit_learn()  # now, and not after minutes of other parts
    loaded = model if isinstance(model, Loaded) else load(model)
    ear, where = Ear.of(loaded), None if folder is None else Path(folder)
    found: dict[str, Part] = {}
    common = {"model": loaded.fingerprint, "seed": seed, "version": VERSION}
    settings = {name: {**common, "count": getattr(sizes, name)} for name in chosen}
    if where is not None:
        for name, own in settings.items():
            refuse_loss(where / name, own)
    progress.start(len(chosen), "parts")
    try:
        for name, own in settings.items():
            found[name] = kept(where, name, own, partial(PARTS[name][0], ear, own["count"], seed))
            progress.advance(1, name)
    finally:
        progress.close()
    about = here(model=loaded.name, model_hash=loaded.fingerprint, seed=seed, **asdict(sizes))
    study = told(loaded.name, found, about)
    if where is not None:
        write_result(where, {}, {"what": "study", "study": "speech", "parts": chosen, **document(study)})
    return study


def load_study(folder: str | Path) -> Study:
    """Read a study that was kept in a folder, and tell it anew; no model is needed.

    Raises:
        BadInput: there is none, or none that came to its end.
        CorruptFile: it is damaged.
    """
    _, about = read_result(folder)
    if about.get("what") != "study":
        raise BadInput(f"{str(folder)!r} holds no study. `crosspatch study speech --out DIR` makes one.")
    try:
        parts = {name: Part(*read_result(Path(folder) / name)) for name in about["parts"]}
        return told(about["model"], parts, about["provenance"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptFile(
            f"{str(folder)!r} holds no study as this version writes it: {error!r}. Run it again."
        ) from None


def document(study: Study) -> dict[str, Any]:
    """Describe a study as JSON: its findings beside the paper's claims."""
    about = {name: getattr(study, name) for name in ("title", "paper", "link", "model")}
    findings = [asdict(finding) for finding in study.findings]
    return {**about, "findings": findings, "warnings": list(study.warnings), "provenance": dict(study.provenance)}


def told(name: str, parts: Mapping[str, Part], provenance: Mapping[str, Any]) -> Study:
    """Tell what the parts of a study found."""
    findings: list[Finding] = []
    sections: list[Section] = []
    for part, measured in parts.items():
        some, section = PARTS[part][1](measured)
        findings += some
        sections.append(section)
    findings.sort(key=lambda finding: finding.verdict == "no claim")  # what can be checked comes first
    warnings = (
        "All voices are synthetic (flite, espeak-ng), and the clips few: findings are about this model on them, not "
        "about people's speech.",
        "The paper's numbers are for Whisper-large-v3 and Qwen2-Audio, as public notes report them. A smaller model "
        "may differ, and does where it says “contradicts”.",
    )
    chips = (("clips", "synthetic"), ("parts", ", ".join(parts)))
    return Study(TITLE, PAPER, LINK, name, tuple(findings), tuple(sections), warnings, chips, provenance)
