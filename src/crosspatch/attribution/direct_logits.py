"""Direct logit attribution: split the answers' logits into what each part of the model writes into the last stream.

The stream at the last token is a sum, and with the final norm's scale held at this run's the logits are linear in it.
So each part has its share, and the shares add up to the logit (Elhage et al. 2021, "A mathematical framework for
transformer circuits"; Wang et al. 2022, "Interpretability in the wild"). Directions are pulled back from the
answers' rows of the unembedding, so that each part is multiplied by one vector only.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crosspatch.attribution.aim import Aim
from crosspatch.attribution.decomposition import Decomposition
from crosspatch.attribution.gather import last_rows
from crosspatch.attribution.linear import tolerance_of
from crosspatch.attribution.sums import Sums
from crosspatch.core.errors import BadInput, NotProved, UnknownName
from crosspatch.engine.readout import targets_of
from crosspatch.metrics import get_metric
from crosspatch.models.model import Model
from crosspatch.tasks import Task, check_metric, token_strings

BY = ("component", "head", "neuron", "token")
RUNS = ("clean", "corrupt")
ANSWERS = {"diff": "logit_diff", "right": "right_logit", "wrong": "logit_diff"}
# What must be read, and offered by the model, for each grain.
NEEDS = {
    "component": (),
    "head": ("attn.out", "mlp.out", "attn.head"),
    "neuron": ("attn.out", "mlp.out", "mlp.hidden"),
    "token": ("attn.out", "mlp.out", "attn.head", "attn.pattern"),
}


def direct(
    model: Model, task: Task, *, by: str = "component", run: str = "clean", answer: str = "diff"
) -> Decomposition:
    """Split the answers' logits at each prompt's last token into named parts that add up to them.

    `by` is the grain: "component" (what attention and the MLP of each block add), "head", "neuron", or "token" (each
    head's share of each source token; of named positions, where prompts' layouts differ). `answer` is "diff" (mean
    right minus mean wrong logit), "right" or "wrong" (the mean of those alone). `run` is the prompt of each pair,
    "clean" or "corrupt"; the answers are the same for both. Logits are taken before a soft cap. What is not linear at
    a finer grain is kept whole, with a reason.

    Raises:
        UnknownName: another grain, run or answer.
        BadInput: a grain that this model cannot offer, or answers of several tokens.
        NotProved: the logits do not follow linearly from the last stream, or the parts do not add up to them.

    >>> found = direct(model, task, by="head")  # doctest: +SKIP
    """
    _check(model, task, by=by, run=run, answer=answer)
    prompts = [getattr(pair, run) for pair in task.pairs]
    kinds = NEEDS[by] or tuple(kind for kind in ("attn.out", "mlp.out") if kind in model.anatomy.points)
    rows = last_rows(model, prompts, kinds)
    targets = targets_of(task.pairs, model.device)
    aim = Aim.of(model, targets, answer)
    sums = Sums(model, rows, by, task, prompts)
    sums.run(aim)
    found = Decomposition(
        parts=tuple(sums.parts),
        values=_array(sums.shares),
        logits=aim.logits(rows.stream[-1], softcap=False).cpu().numpy(),
        shown=aim.logits(rows.stream[-1], softcap=True).cpu().numpy(),
        scale=aim.largest(rows.stream[-1]),
        tolerance=max(1e-4, tolerance_of(next(model.module.parameters())) / 2),
        by=by,
        answer=answer,
        run=run,
        model=model.name,
        task=task.name,
        layers=model.anatomy.layers,
        softcap=model.anatomy.readout.softcap,
        whole=dict(sums.whole),
        tokens=tuple(token_strings(model.tokenizer, prompt) for prompt in prompts),
    )
    found.check()
    return found


def _check(model: Model, task: Task, *, by: str, run: str, answer: str) -> None:
    for what, given, known in (("grain", by, BY), ("run", run, RUNS), ("answer", answer, tuple(ANSWERS))):
        if given not in known:
            raise UnknownName.of(what, given, known)
    check_metric(task, get_metric(ANSWERS[answer]))
    highest = max(
        max(*prompt, *ids)
        for pair in task.pairs
        for prompt in (pair.clean, pair.corrupt)
        for ids in (*pair.right, *pair.wrong)
    )
    if highest >= model.vocab_size:
        raise BadInput(
            f"the task has token id {highest}, but {model.name} knows ids 0..{model.vocab_size - 1}: make the task "
            "with this model's own tokenizer."
        )
    for kind in NEEDS[by]:
        model.anatomy.require(kind)
    if not model.anatomy.readout.direct:
        raise NotProved(
            f"the logits of this {model.anatomy.family} model are only given by its own forward, not by norms and one "
            "unembedding, so they have no linear parts. Patch it instead: its effects are exact too."
        )


def _array(shares: Sequence[Tensor]) -> np.ndarray:
    return torch.stack(list(shares)).cpu().numpy()
