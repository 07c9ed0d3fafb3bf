"""The circuit of a behaviour on the page of its effects: only the same model's, and with a word on another task."""

from typing import Any

from crosspatch.core.errors import BadInput
from crosspatch.engine.effects import Effects
from crosspatch.report import sections
from crosspatch.report.circuit import show_circuit
from crosspatch.report.circuit_content import CircuitContent
from crosspatch.report.frame import read_asset

MOST_DRAWN, MOST_LISTED = 200, 40  # edges: a page with maps has less room than the circuit's own
_ROW = 300  # letters of a row of the table


def circuit_beside(effects: Effects, content: CircuitContent) -> dict[str, Any]:
    """Put together what a page of effects shows of a circuit. Raises BadInput for a circuit of another model."""
    mine, theirs = (effects.model, _hash(effects.provenance)), (content.model, _hash(content.provenance))
    # A copy of a model under another name is the same model: its weights tell, where both are known.
    part = 1 if mine[1] and theirs[1] else 0
    if mine[part] and theirs[part] and mine[part] != theirs[part]:
        raise BadInput(
            f"the circuit is of {_name(*theirs)}, and these effects are of {_name(*mine)}: give a circuit of the same "
            "model, or write its own page."
        )
    made = show_circuit(content, drawn=MOST_DRAWN, listed=MOST_LISTED)
    said = set(sections.flat(effects.provenance))  # once is enough
    return made | {
        "chips": [chip for chip in made["chips"] if chip[0] != "model"],
        "warnings": (*_other_task(effects, content), *content.warnings),
        "provenance": [line for line in made["provenance"] if line not in said],
    }


def letters_of(beside: dict[str, Any]) -> int:
    """Count the letters that a circuit adds to a page, of its script, its picture and its tables."""
    own = sum(len(read_asset(name)) for name in ("network.js", "network.css"))
    return own + sum(len(beside[name]) for name in ("svg", "facts", "curves")) + _ROW * len(beside["rows"])


def _other_task(effects: Effects, content: CircuitContent) -> tuple[str, ...]:
    if content.task in ("", effects.task):
        return ()
    return (f"The circuit was found on the task {content.task}, and the effects above are of {effects.task}.",)


def _hash(provenance: Any) -> str:
    settings = provenance.get("settings")
    return str(settings.get("model_hash") or "") if isinstance(settings, dict) else ""


def _name(model: str, fingerprint: str) -> str:
    return " ".join(filter(None, (model or "another model", fingerprint and f"({fingerprint})")))
