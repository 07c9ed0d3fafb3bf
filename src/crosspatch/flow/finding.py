"""Find routes: check what was asked, run the prompts once, walk down from where the prediction is made."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.flow.reading import NEEDED, batches_of, read
from crosspatch.flow.results import EDGE, NODE, Route, Routes
from crosspatch.flow.walk import Frontier, Rules, Walk
from crosspatch.models.model import Model
from crosspatch.tasks import Task, token_strings
from crosspatch.tasks.given import Given, prompts_of

PRUNE = ("none", "exact", "route")


def routes(
    model: Model,
    prompts: Given,
    *,
    threshold: float = 0.04,
    at: int | str = -1,
    renormalise: bool = True,
    prune: str = "exact",
) -> Routes:
    """Find the tokens, heads and MLPs through which information flows to the prediction at a token of each prompt.

    Each node, the stream at a token, is a sum: of the stream before, of α_ij^h · v_j W_O^h for each head h and source
    token j, of the projection's bias (a part of its own, `attn.bias`; value biases are in v) and of what the MLP adds.
    A norm behind attention has its scale held at the target's. The importance of a part z in the sum y is
    max(‖y‖₁ − ‖z − y‖₁, ε), divided by that of all parts of the node. Edges with more than `threshold` are kept, head
    by head, and the tokens they come from are the targets one layer below. With `renormalise` the kept edges of a node
    share its whole importance. One forward pass; only targets on the route are looked at.

    `prompts` is a task (its clean prompts), texts, or token ids; `at` an index, or a name of the task's positions.
    `prune` says which parts need not be worked out: "none" of them; "exact", those whose bound proves proximity ε (no
    number changes but by rounding); "route", also those that cannot reach the threshold: edges and weights are the
    same, importances are then lower bounds within the nodes' `slack`.
    Source: Ferrando and Voita 2024 (2403.00824), without counting value biases twice as their code does.

    Raises:
        UnknownName: no position of that name.
        BadInput: no prompts or an empty one, a position outside of one, a threshold outside (0, 1), prune="route"
            without renormalise, or a model whose attention cannot be split (the message has the reason).
        NotProved: the parts do not add up to what attention adds.
        NotFinite: the model's stream is not finite.

    >>> found = routes(model, task)  # doctest: +SKIP
    """
    if not 0 < threshold < 1:
        raise BadInput(
            f"threshold={threshold:g}: give a share of a node's importance above 0 and below 1, such as 0.04."
        )
    if prune not in PRUNE:
        raise UnknownName.of("way to prune", prune, PRUNE)
    if prune == "route" and not renormalise:
        raise BadInput(
            "prune='route' leaves importances uncertain, and without renormalise they are weights: use prune='exact'."
        )
    return _found(model, prompts, at, Rules(threshold, renormalise, prune))


def full_graph(model: Model, prompts: Given, *, threshold: float = 0.0, at: int | str = -1) -> Routes:
    """Split every token of every layer into its parts, and keep all edges above `threshold` as they are.

    Nothing is renormalised or skipped; a node's importance is what reaches it from `at`. This grows with the square of
    a prompt's length: it is for small questions and to compare `routes` with.

    Raises:
        UnknownName, BadInput, NotProved, NotFinite: as `routes` does; the threshold may be 0.
    """
    if not 0 <= threshold < 1:
        raise BadInput(f"threshold={threshold:g}: give a share of a node's importance, 0 or more and below 1.")
    return _found(model, prompts, at, Rules(threshold, renormalise=False, prune="none", everywhere=True))


def _found(model: Model, asked: Given, at: int | str, rules: Rules) -> Routes:
    _require(model)
    sequences = prompts_of(model, asked)
    ends = _ends(asked, sequences, at)
    found: dict[int, Route] = {}
    biased: set[int] = set()
    for batch in batches_of(model.anatomy, sequences):
        with read(model, [sequences[i] for i in batch]) as reading:
            walk = Walk(reading, rules, _start([sequences[i] for i in batch], [ends[i] for i in batch], model, rules))
            walk.run()
            biased = (
                {layer for layer in range(model.anatomy.layers) if reading.output(layer).biased}
                if not found
                else biased
            )
        for row, index in enumerate(batch):
            tokens = tuple(token_strings(model.tokenizer, sequences[index]))
            edges, nodes = (_of_pair(t, row, c) for t, c in ((walk.edges, EDGE), (walk.nodes, NODE)))
            found[index] = Route(tokens, ends[index], edges, nodes, model.anatomy.sequential)
    anatomy = model.anatomy
    return Routes(
        found=tuple(found[index] for index in range(len(sequences))),
        model=model.name,
        task=asked.name if isinstance(asked, Task) else "prompts",
        threshold=rules.threshold,
        renormalise=rules.renormalise,
        prune=rules.prune,
        layers=anatomy.layers,
        heads=anatomy.heads,
        sequential=anatomy.sequential,
        components=_components(anatomy.layers, anatomy.heads, biased),
    )


def _components(layers: int, heads: int, biased: set[int]) -> tuple[str, ...]:
    """Name all that can carry an edge beside the stream itself: heads, then biases, then MLPs."""
    return (
        *(f"attn.head[{layer}, {head}]" for layer, head in product(range(layers), range(heads))),
        *(f"attn.bias[{layer}]" for layer in sorted(biased)),
        *(f"mlp.out[{layer}]" for layer in range(layers)),
    )


def _start(sequences: Sequence[Sequence[int]], ends: Sequence[int], model: Model, rules: Rules) -> Frontier:
    """Return the last stage's frontier: the token of each prompt that predicts, or all tokens."""
    mass = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.float64)
    need = torch.zeros(mass.shape, dtype=torch.bool)
    for row, (sequence, end) in enumerate(zip(sequences, ends, strict=True)):
        mass[row, end] = 1.0
        need[row, : len(sequence)] = rules.everywhere
        need[row, end] = True
    return Frontier(need.to(model.device), mass.to(model.device))


def _of_pair(table: dict[str, list[np.ndarray]], row: int, columns: dict[str, type]) -> dict[str, np.ndarray]:
    chosen = np.concatenate(table["pair"]) == row
    return {name: np.concatenate(table[name])[chosen].astype(dtype) for name, dtype in columns.items()}


def _require(model: Model) -> None:
    """Raise unless the model's attention can be split into heads and tokens."""
    try:
        for kind in ("attn.pattern", *NEEDED):
            model.anatomy.require(kind)
    except BadInput as reason:
        raise BadInput(f"routes need attention split by head and source token, but {reason}") from None
    if model.together:
        raise BadInput(
            f"{model.name} is held by several processes together, and routes are found in one: open it whole."
        )


def _ends(asked: Given, sequences: Sequence[Sequence[int]], at: int | str) -> list[int]:
    """Return the position that each prompt's route leads to."""
    ends: list[int] = []
    for index, sequence in enumerate(sequences):
        place = at
        if isinstance(place, str):
            names = asked.pairs[index].names if isinstance(asked, Task) else {}
            if place not in names:
                hint = "" if isinstance(asked, Task) else "Prompts that are no task have indices only."
                raise UnknownName.of(f"position in prompt {index}", place, names, hint=hint)
            place = names[place]
        if not -len(sequence) <= place < len(sequence):
            raise BadInput(
                f"at={place}: prompt {index} has {len(sequence)} tokens, so positions are {-len(sequence)} to "
                f"{len(sequence) - 1}."
            )
        ends.append(place % len(sequence))
    return ends
