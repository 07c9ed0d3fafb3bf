"""`find`: from a model and a task to a circuit, by any of the methods."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any

from crosspatch.circuits.circuit import Circuit
from crosspatch.circuits.method import Method
from crosspatch.circuits.opening import EdgeSweep, edge_sweep, graph_of
from crosspatch.circuits.searching import Searching
from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.core.provenance import here
from crosspatch.engine import Ablation, Options
from crosspatch.engine.ablation import ABLATIONS
from crosspatch.engine.keeping import task_hash
from crosspatch.metrics import Metric
from crosspatch.models.model import Model
from crosspatch.tasks import Pair, Task

CORRUPT = "corrupt"  # what absent edges carry unless an ablation is asked for


def find(
    model: Model,
    task: Task,
    *,
    by: str | Method = "acdc",
    threshold: float | None = None,
    size: int | float | None = None,
    metric: str | Metric | None = None,
    ablation: str | Ablation | None = None,
    places: Sequence[str] = (),
    options: Options | None = None,
    **settings: Any,
) -> Circuit:
    """Find the edges that a behaviour needs, on the user's own model.

    | `by` | what | cost |
    |---|---|---|
    | "acdc" | cut edges one by one from the logits, keep those that cost `threshold` | a run an edge, batched |
    | "eap", "eap-ig", "eap-ig-activations", "eap-clean-corrupted" | change · gradient | a few forwards and backwards |
    | "exact" | what is lost without each edge alone | a partial run an edge, batched |
    | "edge-masks", "node-masks" | trained gates | `steps` forwards and backwards |
    | "nodes", "hisp" | estimates of nodes, as edges between them | a few forwards and backwards |
    | "routes" | information-flow routes: no corrupt run, no metric | one forward |

    All methods score the edges of one graph. ACDC says itself which are kept; of the others `size` edges are taken (a
    number, or a share of them; 5 % unless given), the highest scores first. Absent edges carry the corrupt run's
    activations, or what `ablation` says: "zero", "mean", "resample". `places` are names of positions: edges are then
    told apart by the token they are at. Other settings are those of `Method`. With `options.journal`, a search that was
    killed goes on where it was.

    Raises:
        UnknownName, BadInput: a method, metric, setting or place that does not exist; a metric without slope or gap.
        NotProved: what this model's heads add cannot be told apart.
        NotFinite: the metric of some run is not a number.
        MemoryShortage: ACDC and masks hold all pairs at once, and they do not fit.

    >>> circuit = find(model, task, by="acdc", threshold=0.06, metric="kl")  # doctest: +SKIP
    """
    how = _method(by, threshold=threshold, size=size, **settings)
    began = time.perf_counter()
    sweep = edge_sweep(model, task, graph_of(model, places), [metric], ablation=ablation_of(ablation), options=options)
    sweep.method = how
    searching = Searching(sweep, task, how)
    scores, included = searching.run()
    about = described(sweep, task) | {"method": how.settings(), "by": how.by, "title": how.title}
    about |= {"passes": searching.count.calls, "circuits_run": searching.count.circuits}
    about["seconds"] = round(time.perf_counter() - began, 3)
    return Circuit(sweep.graph, included, scores, how.signed, here(**about), searching.details)


def _method(by: str | Method, **settings: Any) -> Method:
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(by, Method):
        if given:
            raise BadInput(f"a Method has its settings already: leave {', '.join(given)} out.")
        return by
    known = Method.__dataclass_fields__
    for name in given:
        if name not in known:
            raise UnknownName.of("setting", name, [each for each in known if each != "by"])
    return Method(by, **given)


def ablation_of(ablation: str | Ablation | None) -> Ablation | None:
    """Return what absent edges carry; None for the corrupt run.

    Raises:
        UnknownName: no such ablation.
    """
    if ablation is None or isinstance(ablation, Ablation):
        return ablation
    if ablation not in (CORRUPT, *ABLATIONS):
        raise UnknownName.of("ablation", ablation, (CORRUPT, *ABLATIONS))
    return None if ablation == CORRUPT else Ablation(ablation)


def described(sweep: EdgeSweep, task: Task) -> dict[str, Any]:
    """Say what circuits were run on: model, task, metric, and what absent edges carried."""
    model, metric = sweep.model, sweep.metrics[0]
    clean, corrupt = (float(values[0].mean()) for values in (sweep.base, sweep.source))
    return {
        "model": model.name,
        "model_hash": model.fingerprint,
        "vocab_size": model.vocab_size,
        "d_model": model.anatomy.d_model,
        "family": model.anatomy.family,
        "dtype": str(next(model.module.parameters()).dtype).removeprefix("torch."),
        "device": str(model.device),
        "task": task.name,
        "task_settings": dict(task.settings),
        "data_hash": task_hash(task),
        "pairs": [pair_hash(pair) for pair in task.pairs],
        "n": len(task.pairs),
        "seed": task.settings.get("seed"),
        "metric": metric.name,
        "metric_unit": metric.unit,
        "clean": clean,
        "corrupt": corrupt,
        "corruption": task.corruption.settings(),
        "ablation": sweep.ablation.settings() if sweep.ablation else {"by": CORRUPT},
        "places": list(sweep.graph.places),
    }


def pair_hash(pair: Pair) -> str:
    """Return a short hash of a pair's clean prompt and answers: pairs that differ in their corruption count as one."""
    return hashlib.sha256(repr((pair.clean, pair.right)).encode()).hexdigest()[:12]
