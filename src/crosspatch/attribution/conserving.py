"""Whether relevance is conserved: at every layer, stream · gradient by the rules adds up to the metric."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from crosspatch.attribution.direct_logits import RUNS
from crosspatch.attribution.estimators import estimator
from crosspatch.attribution.tape import Recorder
from crosspatch.core.errors import UnknownName
from crosspatch.draw import Display, Displayed, number
from crosspatch.engine.patching import Question, prepare
from crosspatch.engine.readout import Scorer
from crosspatch.engine.sweep import Options
from crosspatch.metrics import Metric
from crosspatch.models.blocks import at_least_single
from crosspatch.models.model import Model
from crosspatch.models.rules import relevance_rules
from crosspatch.models.runs import Running, workbench
from crosspatch.tasks import Task


@dataclass(frozen=True, eq=False, repr=False)
class Conserved(Displayed):
    """Relevance of the stream that enters each block and leaves the last `[layer, pair]`, and the metric `[pair]`."""

    relevance: Float[np.ndarray, "layer pair"]
    metric: Float[np.ndarray, " pair"]

    def display(self) -> Display:
        """Say how far relevance is from the metric, layer by layer."""
        rows = [(str(layer), number(float(mean), 3)) for layer, mean in enumerate(self.relevance.mean(axis=1))]
        title = (
            f"Relevance is within {self.error:.1e} of the metric ({number(float(self.metric.mean()), 3)} on average)"
        )
        return Display(title, ("layer", "mean relevance"), rows)

    @property
    def error(self) -> float:
        """The largest difference of a layer's relevance from the metric, relative to the largest metric."""
        return float(np.abs(self.relevance - self.metric).max() / np.abs(self.metric).max())


def conservation(
    model: Model, task: Task, *, preset: str = "relp", run: str = "clean", metric: str | Metric | None = None
) -> Conserved:
    """Check the conservation of relevance in the clean or the corrupt prompts, at all positions.

    With the rules of `relp` the model is a product of its input with constants, so the sums equal the metric, but for
    what biases add and for a soft cap on the logits. With fewer rules they need not. Works on logit differences and
    logits, which are linear in the last stream.

    Raises:
        UnknownName, BadInput, NotProved: as `attribute(by="relp")` does.
    """
    if run not in RUNS:
        raise UnknownName.of("run", run, RUNS)
    how, direction = estimator("relp", preset=preset), "noise" if run == "clean" else "denoise"
    sweep = prepare(model, task, Question("resid.pre[0]", direction, (metric,)), options=Options())
    numbers = list(range(len(sweep.pairs)))
    lane, layers = sweep.lane("base", numbers), model.anatomy.layers
    scorer = Scorer(model, sweep.metrics, sweep.targets)
    with relevance_rules(model.module, model.anatomy, how.rules) as coverage:
        with workbench(model, lane.prompts, tracked=True) as bench:
            running = Running.begin(bench, lane, keys=False)
            recorder, streams = Recorder(bench, running, [None] * layers), [running.entering().requires_grad_()]
            with torch.enable_grad():
                for layer in range(layers):
                    streams.append(recorder.record(layer, streams[-1]).leaving)
                final = running.spread(streams[-1])
                reads = torch.tensor(sweep.extents.reads, device=final.device)
                rows = torch.arange(len(numbers), device=final.device)
                values = scorer(final[rows[:, None], reads], rows)[0]
                gradients = torch.autograd.grad(values.sum(), streams)
        coverage.require()
    products = [
        (at_least_single(stream.detach()) * at_least_single(slope)).sum(-1)
        for stream, slope in zip(streams, gradients, strict=True)
    ]
    sums = torch.stack([product.new_zeros(len(numbers)).index_add_(0, running.pairs, product) for product in products])
    return Conserved(sums.cpu().numpy(), values.detach().cpu().numpy())
