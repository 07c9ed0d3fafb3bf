"""`study`: a paper's experiments run again on the user's model, its claims beside what is found, as a page."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosspatch.cli import options as given
from crosspatch.cli.folder import PAGE, ROOT, writable
from crosspatch.cli.question import question_key, read_list
from crosspatch.cli.say import Voice
from crosspatch.core.names import plain_name

if TYPE_CHECKING:
    from crosspatch.studies import Study

study_app = typer.Typer(
    help="Run a paper's experiments on your model, and see where its claims hold.", no_args_is_help=True
)

Speech = Annotated[
    str, typer.Argument(metavar="[MODEL]", help="A Whisper: a known name, a hub id or a folder.", show_default=True)
]
PartsOption = Annotated[
    str | None,
    typer.Option("--parts", metavar="NAMES", help="Some of maps,decoder,hearing,probes,repetition,context.  [all]"),
]
Small = Annotated[bool, typer.Option("--small", help="Few clips of each part: to see whether it runs.")]
StudyOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder.  [default: runs/study-speech-MODEL-HASH]", show_default=False),
]


@study_app.command("speech")
def speech(
    model: Speech = "whisper-base",
    *,
    parts: PartsOption = None,
    small: Small = False,
    seed: given.Seed = 0,
    out: StudyOut = None,
    device: given.Device = None,
    dtype: given.Dtype = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Study a Whisper: lenses, probes, repetition, context (arXiv 2508.15882).

    Sentences are read out by flite and espeak-ng, which must be installed. What was measured before in the same folder
    is not measured again, so that a run that was stopped goes on.

    \b
    crosspatch study speech
    crosspatch study speech whisper-tiny.en --parts decoder,repetition
    """
    voice = Voice(json, quiet)
    chosen = read_list(parts, "--parts")
    from crosspatch.models.load import load
    from crosspatch.studies import Sizes, study_speech
    from crosspatch.studies.speech.whole import document

    loaded = load(model, device=device, dtype=dtype, say=voice.say)
    sizes = Sizes(maps=2, decoder=1, hearing=2, probes=2, repetition=2, context=3) if small else Sizes()
    key = question_key(loaded.fingerprint, seed, sizes)
    folder = out or ROOT / f"study-speech-{plain_name(loaded.name)}-{key}"
    how = {"sizes": sizes, "seed": seed, "folder": folder, "progress": voice.progress()}
    with writable(folder):
        try:
            found = study_speech(loaded, parts=chosen or None, **how)
        except KeyboardInterrupt:
            voice.say(f"the parts that were finished are kept in {folder}: the same command goes on from there.")
            raise
        page = found.report(folder / PAGE)
    voice.document(document(found) | {"folder": folder, "report": page})
    show(found, voice)
    voice.show(f"report → {page}")


def show_study(folder: Path, page: Path | None, voice: Voice) -> None:
    """Show a kept study, and write its page if one is asked for."""
    from crosspatch.studies import load_study
    from crosspatch.studies.speech.whole import document

    found = load_study(folder)
    written = None if page is None else found.report(page)
    voice.document(document(found) | {"folder": folder, "report": written})
    show(found, voice)
    if written is not None:
        voice.show(f"report → {written}")


def show(found: "Study", voice: Voice) -> None:
    """Show a study's findings and warnings."""
    voice.show(f"{found.title} · {found.model}", *lines(found), *(f"! {text}" for text in found.warnings))


def lines(found: "Study") -> Iterator[str]:
    """Yield each finding in three lines: how it stands to the paper, what was measured, what the paper says."""
    for each in found.findings:
        yield f"{each.verdict}: {each.said}"
        yield f"    here       {each.measured} {each.unit}; {each.count} {each.of}"
        yield f"    the paper  {each.claim}"
