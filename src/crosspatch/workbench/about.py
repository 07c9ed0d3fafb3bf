"""What the page must know of the model before anything is typed, and pairs to begin with."""

from typing import Any

from crosspatch.core.errors import CrosspatchError
from crosspatch.metrics import METRICS
from crosspatch.models.model import Model
from crosspatch.sites import KINDS
from crosspatch.tasks import get_task, token_strings
from crosspatch.workbench.state import State

FIRST = ("ioi", "capitals", "sva", "gender_bias", "docstring")  # tasks whose prompts a person reads at a glance


def about_model(state: State) -> dict[str, Any]:
    """Describe the model: what can be patched and why the rest cannot, the metrics, the bounds."""
    model, anatomy = state.model, state.model.anatomy
    offered, units = anatomy.kinds(), anatomy.units()
    kinds = [
        {
            "kind": name,
            "unit": KINDS[name].unit,
            "units": units.get(name),
            "refused": "" if name in offered else str(anatomy.refused.get(name, "this model has none")),
        }
        for name in KINDS
        if name != "logits" and not name.startswith("cross.")
    ]
    return {
        "name": model.name,
        "family": anatomy.family,
        "layers": anatomy.layers,
        "heads": anatomy.heads,
        "device": str(model.device),
        "dtype": str(next(model.module.parameters()).dtype).removeprefix("torch."),
        "kinds": kinds,
        "metrics": [{"name": metric.name, "unit": metric.unit, "note": metric.note} for metric in METRICS.values()],
        "out": str(state.out),
        "tokens": state.limits.tokens,
    }


def examples_of(model: Model) -> list[dict[str, Any]]:
    """Make the first pair of some tasks, of those that this model's tokenizer can say."""
    found = []
    for name in FIRST:
        try:
            pair = get_task(name, model, n=1).pairs[0]
        except CrosspatchError:
            continue
        answers = {
            side: ["".join(token_strings(model.tokenizer, answer)) for answer in given]
            for side, given in (("right", pair.right), ("wrong", pair.wrong))
        }
        found.append({"task": name, "clean": pair.clean_text, "corrupt": pair.corrupt_text, **answers})
    return found
