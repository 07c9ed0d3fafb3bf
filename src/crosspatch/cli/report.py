"""`report`: the page or the numbers of a saved run, as one file."""

import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosspatch.cli import options as given
from crosspatch.cli.beside import beside_in
from crosspatch.cli.folder import COMPARED, PAGE, audit_in, what_in
from crosspatch.cli.say import Voice
from crosspatch.cli.show import ending
from crosspatch.cli.study import show_study
from crosspatch.core.errors import BadInput
from crosspatch.core.names import counted

if TYPE_CHECKING:
    from crosspatch.engine.effects import Effects

STANDARD_OUTPUT = Path("-")


class Format(StrEnum):
    """What a run can be written as."""

    html = "html"
    csv = "csv"
    json = "json"
    parquet = "parquet"
    md = "md"
    latex = "latex"
    svg = "svg"
    png = "png"
    pdf = "pdf"


FormatOption = Annotated[
    Format, typer.Option("--format", help="The page, a table of all sites, all numbers, a summary, or a figure.")
]
OutFile = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Where to; - is standard output.  [default: in DIR]", show_default=False
    ),
]


def report(
    folders: given.RunFolders,
    *,
    form: FormatOption = Format.html,
    out: OutFile = None,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Write the page, or the numbers, of a saved run; of several runs, a page that compares them.

    A run and a circuit of the same model come on one page.

    \b
    crosspatch report runs/ioi-gemma-3-270m-7f3a2c
    crosspatch report runs/ioi-gemma-3-270m-7f3a2c --format csv --out -
    crosspatch report runs/ioi-gemma-3-270m-7f3a2c runs/ioi-gemma-3-1b-c92d10
    crosspatch report runs/ioi-gemma-3-270m-7f3a2c runs/circuit-ioi-gemma-3-270m-51b0e9
    crosspatch report runs/ioi-gemma-3-270m-7f3a2c --format pdf
    """
    from crosspatch import load
    from crosspatch.core.store import write_whole

    voice, folder = Voice(json, quiet), folders[0]
    if len(folders) > 1:
        _write_several(folders, form, out, voice)
        return
    if audit_in(folder):
        _write_audit(folder, form, out or folder / PAGE, voice)
        return
    if what_in(folder) == "circuit":
        _write_circuit(folder, form, out or folder / PAGE, voice)
        return
    if what_in(folder) == "study":
        if form is not Format.html or out == STANDARD_OUTPUT:
            raise BadInput(f"{folder} holds a study: only its page is written, to a file; --json prints its findings.")
        show_study(folder, out or folder / PAGE, voice)
        return
    effects = load(folder)
    written = _writer(form, folder)(effects)
    content = written if isinstance(written, bytes) else written.encode("utf-8", errors="replace")
    if out == STANDARD_OUTPUT and json:
        raise BadInput("--json and --out - both want standard output: leave one of them out.")
    if out == STANDARD_OUTPUT:
        sys.stdout.buffer.write(content)
        return
    path = folder / _NAMES[form] if out is None else out
    write_whole(path, content)
    voice.document({"format": form.value, "path": path, "finding": effects.finding()})
    voice.show(*ending(effects, folder, path))


def _write_several(folders: Sequence[Path], form: Format, out: Path | None, voice: Voice) -> None:
    """Write one page of several folders: runs compared, or a run and its circuit.

    Raises BadInput for other forms, and for folders that do not belong on one page.
    """
    if form is not Format.html or out == STANDARD_OUTPUT:
        raise BadInput("several folders come on one page, written to a file: give one folder for other forms.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise BadInput("a run cannot be compared with itself: give each folder once.")
    circuits = [folder for folder in folders if what_in(folder) == "circuit"]
    runs = [folder for folder in folders if folder not in circuits]
    for folder in runs:
        if audit_in(folder) or what_in(folder) == "study":
            raise BadInput(f"{folder} holds no run of patching: only effects of sites can be compared.")
    if not circuits:
        _write_comparison(runs, out or folders[0] / COMPARED, voice)
    elif len(runs) == len(circuits) == 1:
        _write_with_circuit(runs[0], circuits[0], out or runs[0] / PAGE, voice)
    else:
        raise BadInput(
            f"{counted(len(runs), 'run')} and {counted(len(circuits), 'circuit')} do not come on one page: give one of "
            "each. Circuits are compared by: crosspatch circuit compare DIR DIR"
        )


def _write_comparison(folders: Sequence[Path], path: Path, voice: Voice) -> None:
    """Write the page that compares several runs. Raises BadInput for runs that cannot be compared."""
    from crosspatch import load
    from crosspatch.report.compare import compare_page

    names = [folder.resolve().name for folder in folders]
    names = names if len(set(names)) == len(names) else list(map(str, folders))
    found = [load(folder) for folder in folders]
    written = compare_page(list(zip(names, found, strict=True)), path)
    findings = {name: effects.finding() for name, effects in zip(names, found, strict=True)}
    voice.document({"format": Format.html.value, "path": written, "findings": findings})
    voice.show(*(f"{name}: {finding}" for name, finding in findings.items()), f"report → {written}")


def _write_with_circuit(folder: Path, circuit_folder: Path, path: Path, voice: Voice) -> None:
    """Write a run's page with a circuit and its scores on it. Raises BadInput for a circuit of another model."""
    from crosspatch import load
    from crosspatch.cli.circuit_folder import load_circuit_of, load_score_of

    effects, circuit, score = load(folder), load_circuit_of(circuit_folder), load_score_of(circuit_folder)
    written = effects.report(path, **beside_in(folder, effects), circuit=circuit, score=score)
    told = circuit.finding(score)
    voice.document({"format": Format.html.value, "path": written, "finding": effects.finding(), "circuit": told})
    voice.show(effects.finding(), told, f"report → {written}")


def _write_audit(folder: Path, form: Format, path: Path, voice: Voice) -> None:
    """Write the page of an audit; its sweeps are run folders of their own. Raises BadInput for other forms."""
    from crosspatch.referee import Audit

    if form is not Format.html or path == STANDARD_OUTPUT:
        raise BadInput(f"{folder} holds an audit: only its page is written, to a file. Its sweeps are folders in it.")
    found = Audit.load(folder)
    written = found.report(path)
    voice.document({"format": form.value, "path": written, "finding": found.verdict()})
    voice.show(found.verdict(), f"report → {written}")


def _write_circuit(folder: Path, form: Format, path: Path, voice: Voice) -> None:
    """Write the page of a circuit. Raises BadInput for other forms."""
    from crosspatch.cli.circuit_folder import load_circuit_of, load_score_of

    if form is not Format.html or path == STANDARD_OUTPUT:
        raise BadInput(
            f"{folder} holds a circuit: only its page is written, to a file. Other tools' formats: crosspatch circuit "
            f"show {folder} --export eap-ig FILE"
        )
    circuit, score = load_circuit_of(folder), load_score_of(folder)
    written, told = circuit.report(path, score), circuit.finding(score)
    voice.document({"format": form.value, "path": written, "finding": told})
    voice.show(told, f"report → {written}")


def _writer(form: Format, folder: Path) -> "Callable[[Effects], str | bytes]":
    """Give what writes a folder's run in a form; numpy and the page's template are loaded only here."""
    from crosspatch.report import exports
    from crosspatch.report.page import page_html

    known: dict[Format, Callable[[Effects], str | bytes]] = {
        Format.html: lambda effects: page_html(effects, **beside_in(folder, effects)),
        Format.csv: exports.csv_text,
        Format.json: exports.json_text,
        Format.md: exports.markdown_text,
        Format.parquet: exports.parquet_bytes,
        Format.latex: exports.latex_text,
        **{each: partial(exports.figure_bytes, form=each.value) for each in (Format.svg, Format.png, Format.pdf)},
    }
    return known[form]


_NAMES = {form: f"effects.{form.value}" for form in Format} | {Format.html: PAGE, Format.latex: "effects.tex"}
