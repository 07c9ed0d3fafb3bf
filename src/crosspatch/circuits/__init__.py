"""Circuits: the graph of a model's parts, which of its edges a behaviour needs, and how well they do alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspatch.circuits.areas import FaithfulnessCurve, faithfulness_curve
    from crosspatch.circuits.circuit import Circuit
    from crosspatch.circuits.eap_ig import read_eap_ig, write_eap_ig
    from crosspatch.circuits.finding import find
    from crosspatch.circuits.graph import CircuitEdge, Graph
    from crosspatch.circuits.known import known_circuit
    from crosspatch.circuits.method import Method
    from crosspatch.circuits.neuronpedia import read_neuronpedia, to_neuronpedia, write_neuronpedia
    from crosspatch.circuits.opening import graph_of
    from crosspatch.circuits.overlap import Overlap, compare_circuits
    from crosspatch.circuits.recovery import Roc, recovery_of, sweep_recovery
    from crosspatch.circuits.regime import Regime
    from crosspatch.circuits.saving import load_circuit, save_circuit
    from crosspatch.circuits.scorecard import Knockout, Scorecard
    from crosspatch.circuits.scorecard_saving import load_scorecard, save_scorecard
    from crosspatch.circuits.scoring import Scoring, measure_circuits, score, split

_HOME = {
    "Circuit": "crosspatch.circuits.circuit",
    "CircuitEdge": "crosspatch.circuits.graph",
    "FaithfulnessCurve": "crosspatch.circuits.areas",
    "Graph": "crosspatch.circuits.graph",
    "Knockout": "crosspatch.circuits.scorecard",
    "Method": "crosspatch.circuits.method",
    "Overlap": "crosspatch.circuits.overlap",
    "Regime": "crosspatch.circuits.regime",
    "Roc": "crosspatch.circuits.recovery",
    "Scorecard": "crosspatch.circuits.scorecard",
    "Scoring": "crosspatch.circuits.scoring",
    "compare_circuits": "crosspatch.circuits.overlap",
    "faithfulness_curve": "crosspatch.circuits.areas",
    "find": "crosspatch.circuits.finding",
    "graph_of": "crosspatch.circuits.opening",
    "known_circuit": "crosspatch.circuits.known",
    "load_circuit": "crosspatch.circuits.saving",
    "load_scorecard": "crosspatch.circuits.scorecard_saving",
    "measure_circuits": "crosspatch.circuits.scoring",
    "read_eap_ig": "crosspatch.circuits.eap_ig",
    "read_neuronpedia": "crosspatch.circuits.neuronpedia",
    "recovery_of": "crosspatch.circuits.recovery",
    "save_circuit": "crosspatch.circuits.saving",
    "save_scorecard": "crosspatch.circuits.scorecard_saving",
    "score": "crosspatch.circuits.scoring",
    "split": "crosspatch.circuits.scoring",
    "sweep_recovery": "crosspatch.circuits.recovery",
    "to_neuronpedia": "crosspatch.circuits.neuronpedia",
    "write_eap_ig": "crosspatch.circuits.eap_ig",
    "write_neuronpedia": "crosspatch.circuits.neuronpedia",
}
__all__ = [
    "Circuit",
    "CircuitEdge",
    "FaithfulnessCurve",
    "Graph",
    "Knockout",
    "Method",
    "Overlap",
    "Regime",
    "Roc",
    "Scorecard",
    "Scoring",
    "compare_circuits",
    "faithfulness_curve",
    "find",
    "graph_of",
    "known_circuit",
    "load_circuit",
    "load_scorecard",
    "measure_circuits",
    "read_eap_ig",
    "read_neuronpedia",
    "recovery_of",
    "save_circuit",
    "save_scorecard",
    "score",
    "split",
    "sweep_recovery",
    "to_neuronpedia",
    "write_eap_ig",
    "write_neuronpedia",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crosspatch.circuits' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
