"""`circuit show`: a saved circuit again, its page, and files that other tools read."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosspatch.cli import circuit_options as about
from crosspatch.cli import options as given
from crosspatch.cli.circuit_folder import load_circuit_of, load_score_of
from crosspatch.cli.circuit_text import circuit_text, ending, summary_of
from crosspatch.cli.folder import PAGE, read_summary
from crosspatch.cli.say import Voice
from crosspatch.core.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from crosspatch.circuits import Circuit


class Exchange(StrEnum):
    """Formats of other tools."""

    eap_ig = "eap-ig"
    neuronpedia = "neuronpedia"
    transformer_lens = "transformer-lens"


Export = Annotated[
    tuple[str, Path] | None,
    typer.Option("--export", metavar="FORMAT FILE", help="Write eap-ig, neuronpedia or transformer-lens JSON."),
]


def show(
    folder: given.RunFolder,
    *,
    top: about.TopEdges = 20,
    export: Export = None,
    report: given.Report = True,
    json: given.Json = False,
    quiet: given.Quiet = False,
) -> None:
    """Show a saved circuit, write its page again, or export it.

    \b
    crosspatch circuit show runs/circuit-ioi-gemma-3-270m-7f3a2c
    crosspatch circuit show runs/circuit-ioi-gemma-3-270m-7f3a2c --export eap-ig ioi.json
    """
    voice = Voice(json, quiet)
    if export is not None and export[0] not in list(Exchange):
        raise UnknownName.of("format of --export", export[0], [each.value for each in Exchange])
    circuit, score = load_circuit_of(folder), load_score_of(folder)
    if export is not None:
        written = write_as(Exchange(export[0]), circuit, export[1])
        voice.document({"format": export[0], "path": written, "finding": circuit.finding(score)})
        voice.show(circuit.finding(score), f"{export[0]} → {written}")
        return
    page = folder / PAGE if (folder / PAGE).is_file() else None
    if report:
        page = circuit.report(folder / PAGE, score)
    voice.document(summary_of(circuit, score, top=top, folder=folder, report=page))
    voice.show(*circuit_text(circuit, score, top=top), *ending(circuit, score, folder, page))
    told = read_summary(folder)
    if not told.get("complete", True):
        voice.say(f"interrupted before it was scored. Continue with: {told.get('resume')}")


def write_as(form: Exchange, circuit: "Circuit", path: Path) -> Path:
    """Write a circuit in another tool's format. Raises BadInput for what the format cannot say."""
    from crosspatch.circuits import write_eap_ig, write_neuronpedia
    from crosspatch.circuits.exchange import write_transformer_lens
    from crosspatch.circuits.telling import about as told

    if form is Exchange.eap_ig:
        return write_eap_ig(circuit, path, d_model=told(circuit).get("d_model"))
    if form is Exchange.transformer_lens:
        return write_transformer_lens(circuit, path)
    return write_neuronpedia(circuit, path, prompt=_prompt(circuit), slug=path.stem)


def _prompt(circuit: "Circuit") -> Any:
    """Return the prompt that a circuit was found on. Raises BadInput for a circuit that keeps none."""
    from crosspatch.circuits.neuronpedia import ShownPrompt
    from crosspatch.circuits.opening import ELSEWHERE
    from crosspatch.circuits.telling import about as told
    from crosspatch.sites import resolve_position

    kept = circuit.details.get("prompt")
    if not isinstance(kept, dict):
        raise BadInput("this circuit keeps no prompt to draw it over: only `circuit find` keeps one. Find it again.")
    tokens, names = tuple(map(str, kept["tokens"])), dict(kept["names"])
    places = [place for place in circuit.graph.places if place != ELSEWHERE]
    positions = {place: resolve_position(place, names, len(tokens)) for place in places}
    if circuit.graph.places:
        free = [at for at in range(len(tokens)) if at not in positions.values()]
        positions[ELSEWHERE] = free[-1] if free else 0
    scan = str(told(circuit).get("model") or "unknown").rsplit("/", 1)[-1]
    return ShownPrompt(scan, "".join(tokens), tokens, positions)
