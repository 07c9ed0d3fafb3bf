"""Label heads by what they attend to: the previous token, the same token before, what followed it, the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from crosspatch.core.errors import BadInput, MissingExtra, UnknownName
from crosspatch.core.store import write_result
from crosspatch.draw import Panel, Scale, colour_bar_svg, heatmap_svg, number, rich_table, table_html
from crosspatch.lenses.patterns import read_patterns
from crosspatch.models.model import Model
from crosspatch.sites import Site
from crosspatch.tasks import Task

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

# The most telling first: a head that does several things is called by the rarest.
TARGETS = ("to answer", "induction", "duplicate token", "previous token", "self", "first token")
LEAST = 0.3  # mean attention to the target
TIMES_CHANCE = 2.0
MARGIN = 0.1  # by which the target leads every other one, at the same queries
FEWEST = 4  # queries
MOST = 24  # labels listed in a shell
WIDEST = 64
RUNS = ("clean", "corrupt")
HEADERS = ("head", "label", "attention", "chance", "queries")


@dataclass(frozen=True)
class Repeated:
    """Prompts of random tokens that are then said once more (Elhage et al. 2021; Olsson et al. 2022, induction heads).

    `n` prompts of 2 × `length` tokens behind the tokenizer's BOS, if it has one.
    """

    n: int = 16
    length: int = 25
    seed: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class HeadLabels:
    """For each head and target: mean attention to it, over the queries that have such a target.

    `scores`, `chance` and `rivals` are `[target, layer, head]`, `queries` `[target, layer]`; NaN where no query has the
    target. `chance` is what attention spread evenly over the keys that the mask allows would give; `rivals` is the most
    that any other target gets at the same queries.
    """

    scores: Float[np.ndarray, "target layer head"]
    chance: Float[np.ndarray, "target layer head"]
    rivals: Float[np.ndarray, "target layer head"]
    queries: Int[np.ndarray, "target layer"]
    model: str
    prompts: str

    def score(self, target: str) -> Float[np.ndarray, "layer head"]:
        """Return the scores of one target. Raises UnknownName for another name."""
        if target not in TARGETS:
            raise UnknownName.of("target", target, TARGETS)
        return self.scores[TARGETS.index(target)]

    def holds(self) -> Bool[np.ndarray, "target layer head"]:
        """Say which labels hold: attention is high, above chance, and leads that to any other target."""
        with np.errstate(invalid="ignore"):
            high = (self.scores >= LEAST) & (self.scores >= TIMES_CHANCE * self.chance)
            return high & (self.scores >= self.rivals + MARGIN) & (self.queries >= FEWEST)[:, :, None]

    def of(self, layer: int, head: int) -> tuple[str, ...]:
        """Return the labels of one head, the most telling first; none where nothing stands out."""
        return tuple(target for target, holds in zip(TARGETS, self.holds()[:, layer, head], strict=True) if holds)

    def heads(self, target: str) -> tuple[Site, ...]:
        """Return the heads that hold a label, the highest score first. Raises UnknownName for another name."""
        scores, holds = self.score(target), self.holds()[TARGETS.index(target)]
        places = sorted(np.argwhere(holds).tolist(), key=lambda place: -scores[tuple(place)])
        return tuple(Site("attn.head", layer, head) for layer, head in places)

    def rows(self, *, every: bool = False) -> list[tuple[Site, str, float, float, int]]:
        """List (head, label, attention, chance, queries) of the labels that hold, or of every head and target."""
        holds, found = self.holds(), []
        for place, target in enumerate(TARGETS):
            for layer, head in np.ndindex(*self.scores.shape[1:]):
                if every or holds[place, layer, head]:
                    numbers = float(self.scores[place, layer, head]), float(self.chance[place, layer, head])
                    found.append((Site("attn.head", layer, head), target, *numbers, int(self.queries[place, layer])))
        return found if every else sorted(found, key=lambda row: (TARGETS.index(row[1]), -row[2]))

    def title(self) -> str:
        """Name what was measured, in one line."""
        layers, heads = self.scores.shape[1:]
        named = int(self.holds().any(axis=0).sum())
        return f"{self.model} · {self.prompts}: {named} of {layers * heads} heads attend to a target that has a name"

    def to_frame(self) -> "pd.DataFrame":
        """Make a pandas table, one row a head and target. Raises MissingExtra without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise MissingExtra("to_frame needs pandas: pip install 'crosspatch[pandas]'") from None
        rows, holds = self.rows(every=True), self.holds().reshape(-1)
        columns: dict[str, Any] = {
            "head": [str(row[0]) for row in rows],
            "layer": [row[0].layer for row in rows],
            "unit": [row[0].unit for row in rows],
            "target": [row[1] for row in rows],
            "attention": [row[2] for row in rows],
            "chance": [row[3] for row in rows],
            "rival": self.rivals.reshape(-1),
            "queries": [row[4] for row in rows],
            "label": holds,
        }
        return pd.DataFrame(columns)

    def save(self, folder: str | Path) -> Path:
        """Write a result folder (safetensors and JSON); give it. Raises BadInput if it cannot."""
        arrays = {name: getattr(self, name) for name in ("scores", "chance", "rivals", "queries")}
        meta = {"what": "head labels", "model": self.model, "prompts": self.prompts, "targets": list(TARGETS)}
        return write_result(folder, arrays, meta)

    def cells(self) -> list[tuple[str, ...]]:
        """Write the labels that hold as rows of text."""
        return [(str(s), label, number(a), number(c), str(n)) for s, label, a, c, n in self.rows()]

    def __repr__(self) -> str:
        cells = self.cells()
        lines = [f"{h:<18}{t:<17}{a:>9}{c:>8}{n:>9}" for h, t, a, c, n in (HEADERS, *cells[:MOST])]
        more = [f"… and {len(cells) - MOST} more: to_frame() has them all"] if len(cells) > MOST else []
        return "\n".join([f"HeadLabels: {self.title()}", *lines, *more])

    def _repr_html_(self) -> str:
        maps = "".join(heatmap_svg(panel, Scale(1.0)) for panel in self.panels())
        head = f"<p><strong>{escape(self.title())}</strong></p>"
        return f"<div>{head}<div>{maps}</div>{colour_bar_svg(Scale(1.0))}{table_html(HEADERS, self.cells())}</div>"

    def __rich__(self) -> "Table":
        return rich_table(HEADERS, self.cells())

    def panels(self) -> tuple[Panel, ...]:
        """Make a heat map a target, layers by heads; none for a target that no query has, or for too many heads."""
        _, layers, heads = self.scores.shape
        rows, columns = tuple(map(str, range(layers))), tuple(map(str, range(heads)))
        hole = np.full((layers, heads), np.nan)
        shown = [place for place in range(len(TARGETS)) if self.queries[place].any() and heads <= WIDEST]
        return tuple(Panel(f"to: {TARGETS[i]}", self.scores[i], hole, hole, rows, columns) for i in shown)


def label_heads(model: Model, task: "Task | Repeated", *, run: str = "clean") -> HeadLabels:
    """Measure what every head attends to on a task's prompts, or on repeated random tokens, and label it.

    Targets of a query t: "previous token" (t − 1), "duplicate token" (the same token, earlier), "induction" (the token
    after the same token), "self", "first token" (where sinks rest), and "to answer" (from the last token, or the one
    named `end`, to the right answer's token in the prompt). A target outside a layer's window does not count; nor do
    queries 0 and 1, where targets coincide. Olsson et al. 2022 and Wang et al. 2022 name heads by such scores.
    A label holds if the mean is at least 0.3, twice chance, and leads every other target at the same queries by 0.1.

    Raises:
        UnknownName: another run.
        BadInput: a model that gives no patterns (the message has the reason).
    """
    if run not in RUNS:
        raise UnknownName.of("run", run, RUNS)
    model.anatomy.require("attn.pattern")
    prompts, aims = repeated_prompts(model, task) if isinstance(task, Repeated) else _task_prompts(task, run)
    tally = Tally.empty(model.anatomy.layers, model.anatomy.heads)
    for batch in read_patterns(model, prompts):
        masks = [targets_of(prompts[i], aims[i], max(batch.lengths)) for i in batch.examples]
        targets = torch.stack(masks, dim=1).to(model.device)
        for layer, pattern in batch.patterns.items():
            tally.add(layer, pattern, targets, batch.allowed[layer])
    what = f"repeated random tokens, {task.n} prompts" if isinstance(task, Repeated) else f"{task.name}, {run} run"
    return tally.labels(model.name, what)


Aim = tuple[int, frozenset[int]]  # the query that answers, and the right answers' tokens


def _task_prompts(task: Task, run: str) -> tuple[list[Sequence[int]], list[Aim]]:
    prompts = [getattr(pair, run) for pair in task.pairs]
    aims = [(p.names.get("end", len(p.clean) - 1), frozenset(answer[0] for answer in p.right)) for p in task.pairs]
    return prompts, aims


def repeated_prompts(model: Model, given: Repeated) -> tuple[list[Sequence[int]], list[Aim]]:
    """Make prompts of random tokens said twice; nothing is their answer.

    Raises:
        BadInput: fewer than one prompt, or of fewer than two tokens.
    """
    if given.n < 1 or given.length < 2:
        raise BadInput(f"Repeated(n={given.n}, length={given.length}): give at least 1 prompt of at least 2 tokens.")
    special = set(getattr(model.tokenizer, "all_special_ids", ()) or ())
    plain = torch.tensor([token for token in range(model.vocab_size) if token not in special])
    generator = torch.Generator().manual_seed(given.seed)
    drawn = plain[torch.randint(0, len(plain), (given.n, given.length), generator=generator)].tolist()
    bos = getattr(model.tokenizer, "bos_token_id", None)
    start = () if bos is None else (bos,)
    return [(*start, *tokens, *tokens) for tokens in drawn], [(0, frozenset())] * given.n


def targets_of(prompt: Sequence[int], aim: Aim, width: int) -> Bool[Tensor, "target query key"]:
    """Mark each target's keys for each query of one prompt, padded to `width`; queries 0 and 1 have none."""
    tokens = torch.tensor([*prompt, *[-1 - i for i in range(width - len(prompt))]])
    query, key = torch.arange(width)[:, None], torch.arange(width)[None]
    same = (tokens[:, None] == tokens[None]) & (key < query)
    after = torch.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    end, answers = aim
    answer = torch.zeros_like(same)
    for place, token in enumerate(prompt):
        answer[end, place] = token in answers and place < end
    marked = {
        "to answer": answer,
        "induction": after & (key < query),
        "duplicate token": same,
        "previous token": key == query - 1,
        "self": key == query,
        "first token": (key == 0) & (query > 0),
    }
    real = (query >= 2) & (query < len(prompt))
    return torch.stack([marked[target] & real for target in TARGETS])


@dataclass
class Tally:
    """Sums of attention to targets, over queries and examples; chance is added up beside it."""

    mass: Float64[Tensor, "target rival layer head"]
    chance: Float64[Tensor, "target layer"]
    queries: Int[Tensor, "target layer"]

    @classmethod
    def empty(cls, layers: int, heads: int) -> "Tally":
        """Start at zero."""
        count = len(TARGETS)
        mass = torch.zeros(count, count, layers, heads, dtype=torch.float64)
        return cls(mass, torch.zeros(count, layers, dtype=torch.float64), torch.zeros(count, layers, dtype=torch.long))

    def add(
        self,
        layer: int,
        pattern: Float[Tensor, "example head query key"],
        targets: Bool[Tensor, "target example query key"],
        allowed: Bool[Tensor, "query key"],
    ) -> None:
        """Add one layer's attention in some examples; `targets` beyond the mask do not exist."""
        targets = targets & allowed
        there = targets.any(-1)
        share = targets.sum(-1).double() / allowed.sum(-1).clamp_min(1)
        self.chance[:, layer] += share.sum((1, 2)).cpu()
        self.queries[:, layer] += there.sum((1, 2)).cpu()
        for target in range(len(TARGETS)):
            # At the queries that have this target: attention to it, and to what belongs to others alone.
            for rival in range(len(TARGETS)):
                keys = targets[target] if rival == target else targets[rival] & ~targets[target]
                keys = (keys & there[target][..., None]).to(pattern.dtype)
                self.mass[target, rival, layer] += torch.einsum("ehqk,eqk->h", pattern, keys).double().cpu()

    def labels(self, model: str, prompts: str) -> HeadLabels:
        """Divide the sums by the number of queries."""
        queries = self.queries.numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self.mass.numpy() / queries[:, None, :, None]
            chance = self.chance.numpy() / queries
        own = np.einsum("ttlh->tlh", mean).copy()
        others = mean - np.eye(len(TARGETS))[:, :, None, None] * 2
        chance = np.repeat(chance[:, :, None], own.shape[2], axis=2)
        return HeadLabels(own, chance, others.max(axis=1), queries, model, prompts)
