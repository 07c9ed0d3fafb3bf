"""Attention of chosen heads, example by example or averaged, as it is or weighted by the values that it moves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from crosspatch.core.errors import BadInput, MissingExtra, UnknownName
from crosspatch.core.store import write_result
from crosspatch.draw import Panel, Scale, clip, colour_bar_svg, heatmap_svg, nice_limit, number, rich_table, shown
from crosspatch.engine.select import one_layout, star_positions
from crosspatch.lenses.head_patterns import WEIGHTINGS
from crosspatch.lenses.patterns import read_patterns, written_sizes
from crosspatch.models.model import Model
from crosspatch.sites import Site, parse
from crosspatch.tasks import Task, token_strings

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

RUNS = ("clean", "corrupt")
MOST = 8  # heads drawn at once
KINDS = ("attn.head", "attn.pattern")


@dataclass(frozen=True, eq=False, repr=False)
class AttentionView:
    """Attention of some heads in every prompt of a task.

    `patterns` `[example, head, query, key]`; NaN beyond the end of a shorter prompt. With weighting "pattern" these are
    attention weights; with "value" each is multiplied by the length of what the head would write if it attended to that
    key alone, its value vector through the output projection (Kobayashi et al. 2020, "Attention is not only a weight").
    `names[e]` are the named positions of example e; `shared` the positions that mean one thing in all of them.
    """

    heads: tuple[Site, ...]
    patterns: Float[np.ndarray, "example head query key"]
    tokens: tuple[tuple[str, ...], ...]
    names: tuple[Mapping[str, int], ...]
    shared: tuple[int | str, ...]
    weighting: str
    run: str
    model: str
    task: str

    def __len__(self) -> int:
        return len(self.heads)

    def of(self, head: str) -> Float[np.ndarray, "example query key"]:
        """Return one head's patterns by its text, such as `attn.head[5, 3]`.

        Raises:
            UnknownName: the view holds no such head.
        """
        known = [str(site) for site in self.heads]
        if head not in known:
            raise UnknownName.of("head in this view", head, known)
        return self.patterns[:, known.index(head)]

    def mean(self) -> Float[np.ndarray, "head query key"]:
        """Average over examples between the shared positions: all indices where layouts agree, else shared names.

        Attention to tokens that share no name is left out, so rows between names need not sum to 1.
        """
        places = [[name if isinstance(name, int) else names[name] for name in self.shared] for names in self.names]
        found = [pattern[:, at][:, :, at] for pattern, at in zip(self.patterns, places, strict=True)]
        return np.mean(found, axis=0)

    def labels(self) -> tuple[str, ...]:
        """Label the shared positions: `4 ·Mary`, with the token where all prompts agree, or a name."""
        return tuple(self._label(place) for place in self.shared)

    def _label(self, place: int | str) -> str:
        if isinstance(place, str):
            return place
        tokens = {row[place] for row in self.tokens}
        named = [name for name, index in self.names[0].items() if index == place]
        hint = shown(tokens.pop()) if len(tokens) == 1 else named[0] if named else ""
        return f"{place} ·{clip(hint, 12)}" if hint else str(place)

    def panels(self) -> tuple[Panel, ...]:
        """Make a heat map a head of the mean, queries from the top down and keys across."""
        labels, hole = self.labels(), np.full((len(self.shared), len(self.shared)), np.nan)
        rows = tuple(label.replace(" ·", " ") for label in reversed(labels))
        return tuple(
            Panel(str(head), values[::-1], hole, hole, rows, labels, row_word="query")
            for head, values in zip(self.heads, self.mean(), strict=True)
        )

    def title(self) -> str:
        """Name what is shown, in one line."""
        where = "by token" if isinstance(self.shared[0], int) else "between named positions"
        return (
            f"{self.model} · {self.task} · {self.run} run: {WEIGHTINGS[self.weighting]} of {len(self.heads)} heads "
            f"{where}, mean over {len(self.tokens)} examples"
        )

    def strongest(self, k: int = 12) -> list[tuple[str, str, str, float]]:
        """List the k strongest entries of the mean as (head, query, key, value)."""
        mean, labels = self.mean(), [label.replace(" ·", " ") for label in self.labels()]
        order = np.argsort(-mean, axis=None, kind="stable")[:k]
        places = [np.unravel_index(int(flat), mean.shape) for flat in order]
        return [(str(self.heads[h]), labels[q], labels[s], float(mean[h, q, s])) for h, q, s in places]

    def to_frame(self) -> "pd.DataFrame":
        """Make a pandas table, one row an example, head, query and key. Raises MissingExtra without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise MissingExtra("to_frame needs pandas: pip install 'crosspatch[pandas]'") from None
        example, head, query, key = np.nonzero(~np.isnan(self.patterns))
        columns: dict[str, Any] = {
            "example": example,
            "head": [str(self.heads[h]) for h in head],
            "layer": [self.heads[h].layer for h in head],
            "unit": [self.heads[h].unit for h in head],
            "query": query,
            "key": key,
            "query_token": [self.tokens[e][q] for e, q in zip(example, query, strict=True)],
            "key_token": [self.tokens[e][k] for e, k in zip(example, key, strict=True)],
            "value": self.patterns[example, head, query, key],
        }
        return pd.DataFrame(columns)

    def save(self, folder: str | Path) -> Path:
        """Write a result folder (safetensors and JSON); give it. Raises BadInput if it cannot."""
        meta = {name: getattr(self, name) for name in ("weighting", "run", "model", "task")}
        lists = {"heads": [str(head) for head in self.heads], "tokens": [list(row) for row in self.tokens]}
        names = [dict(row) for row in self.names]
        return write_result(folder, {"patterns": self.patterns}, {"what": "attention", **meta, **lists, "names": names})

    def __repr__(self) -> str:
        rows = (
            f"{head:<20}{query:>16} → {key:<16}{number(value, 3):>8}" for head, query, key, value in self.strongest()
        )
        return "\n".join([f"AttentionView: {self.title()}", *rows])

    def _repr_html_(self) -> str:
        panels = self.panels()[:MOST]
        scale = Scale(nice_limit(np.stack([panel.values for panel in panels])))
        maps = "".join(heatmap_svg(panel, scale, hover=len(self.shared) <= 40) for panel in panels)
        more = f"<p>{len(self.heads) - MOST} more heads are not drawn.</p>" if len(self.heads) > MOST else ""
        bar = colour_bar_svg(scale, unit=WEIGHTINGS[self.weighting])
        return f"<div><p><strong>{escape(self.title())}</strong></p><div>{maps}</div>{bar}{more}</div>"

    def __rich__(self) -> "Table":
        rows = [(head, query, key, number(value, 3)) for head, query, key, value in self.strongest()]
        return rich_table(("head", "query", "key", WEIGHTINGS[self.weighting]), rows)


def attention(
    model: Model, task: Task, heads: str | Sequence[Site], *, run: str = "clean", weighting: str = "pattern"
) -> AttentionView:
    """Read the attention of chosen heads in every prompt of a task.

    `heads` is a selection such as "attn.head[5, 3], attn.head[9|10, *]". Patterns are the model's own, with its
    windows, soft caps and sinks: with a sink, a row sums to less than 1. `weighting` is "pattern" or "value".

    Raises:
        UnknownName: a head, run or weighting that does not exist.
        BadInput: something that is no head, or a model that gives no patterns (the message has the reason).
    """
    for what, given, known in (("run", run, RUNS), ("weighting", weighting, tuple(WEIGHTINGS))):
        if given not in known:
            raise UnknownName.of(what, given, known)
    model.anatomy.require("attn.pattern")
    chosen = chosen_heads(model, heads)
    prompts = [getattr(pair, run) for pair in task.pairs]
    widest = max(map(len, prompts))
    patterns = np.full((len(prompts), len(chosen), widest, widest), np.nan, dtype=np.float32)
    for batch in read_patterns(model, prompts):
        sizes = {
            head: written_sizes(model, head, batch.values[head.layer or 0]) for head in chosen if weighting == "value"
        }
        for place, head in enumerate(chosen):
            weights = batch.patterns[head.layer or 0][:, head.unit]
            weights = weights if weighting == "pattern" else weights * sizes[head][:, None]
            for row, example in enumerate(batch.examples):
                n = batch.lengths[row]
                patterns[example, place, :n, :n] = weights[row, :n, :n].cpu().numpy()
    shared = tuple(range(widest)) if one_layout(task) else _names(task)
    tokens = tuple(token_strings(model.tokenizer, prompt) for prompt in prompts)
    names = tuple(dict(pair.names) for pair in task.pairs)
    return AttentionView(chosen, patterns, tokens, names, shared, weighting, run, model.name, task.name)


def _names(task: Task) -> tuple[int | str, ...]:
    """Return the names that all prompts share, or the indices that all of them have."""
    found = star_positions(task)
    return found if isinstance(found[0], str) else tuple(range(min(len(pair.clean) for pair in task.pairs)))


def chosen_heads(model: Model, heads: str | Sequence[Site]) -> tuple[Site, ...]:
    """Expand a selection of heads; each must be one.

    Raises:
        UnknownName: a layer or head that the model lacks.
        BadInput: a site that is no head, or one at a position: patterns are read at all of them.
    """
    sites = parse(heads).expand(model.extent, (0,)) if isinstance(heads, str) else tuple(heads)
    for site in sites:
        if site.kind not in KINDS or site.unit is None:
            raise BadInput(f"{site} is no attention head: give heads, such as 'attn.head[5, 3]' or 'attn.head[5, *]'.")
        if site.position is not None:
            raise BadInput(f"{site}: a view shows all positions; leave @{site.position} out.")
        model.require(site)
    if not sites:
        raise BadInput("no heads were given: name some, such as 'attn.head[5, 3]'.")
    return tuple(dict.fromkeys(Site("attn.head", site.layer, site.unit) for site in sites))
