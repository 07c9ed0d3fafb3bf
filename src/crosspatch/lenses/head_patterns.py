"""Attention of a model's heads on the first pairs of a task, in bytes: small enough to keep beside a result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from crosspatch.core.errors import BadInput, CorruptFile
from crosspatch.core.store import file_names, read_result, write_result
from crosspatch.sites import Site

if TYPE_CHECKING:
    from crosspatch.engine.effects import Effects
    from crosspatch.models.model import Model
    from crosspatch.tasks import Task

BESIDE = "attention"  # attention.safetensors and attention.json stand beside a result's own files
HEAD_KINDS = ("attn.head", "attn.q", "attn.k", "attn.v", "attn.pattern")
KEY_KINDS = ("attn.k", "attn.v")  # what several heads share where keys and values are grouped
WEIGHTINGS = {"pattern": "attention", "value": "attention × size of value"}
MOST_PAIRS = 8
MOST_BYTES = 16 << 20  # of all patterns that are kept
ONE = 255  # the byte that means 1.0
_SIZES = "sizes-"

Head = tuple[int, int]  # layer, head
Pattern = UInt8[np.ndarray, "run head _query _key"]  # pairs may have prompts of other lengths
Sizes = Float32[np.ndarray, "run head _key"]


@dataclass(frozen=True, eq=False)
class HeadPatterns:
    """Attention of heads on the first pairs of a task.

    `patterns[e][r, h]` is the attention of `chosen[h]`, a (layer, head), in run `runs[r]` of pair e: rows are queries,
    columns keys, 255 means 1.0. `sizes[e][r, h, k]` is the length of what that head writes when it attends to key k
    alone; there are none where a head's output is not known, and in folders of earlier versions. `tokens[e][r]` are
    that prompt's tokens. `layers`, `heads` and `kv_heads` are the model's, `pairs` the task's, so that what is left out
    can be told. A corrupt run that has the clean tokens with other embeddings is not read: `runs` is ("clean",) then.

    Raises BadInput when shapes and names disagree.
    """

    model: str
    task: str
    layers: int
    heads: int
    kv_heads: int
    pairs: int
    chosen: tuple[Head, ...]
    runs: tuple[str, ...]
    patterns: tuple[Pattern, ...]
    tokens: tuple[tuple[tuple[str, ...], ...], ...]
    sizes: tuple[Sizes, ...] = ()

    def __post_init__(self) -> None:
        shapes = [pattern.shape for pattern in self.patterns]
        size = len(self.runs), len(self.chosen)
        lengths = [sorted({len(run) for run in each}) for each in self.tokens]
        expected = [(*size, *each, *each) for each in lengths]  # a second length of one pair makes it no such shape
        if not shapes or shapes != expected or any(len(each) != len(self.runs) for each in self.tokens):
            raise BadInput(
                f"patterns of {size[1]} heads in {size[0]} runs need one array [run, head, query, key] a pair, and a "
                f"token a query and key in every run; given shapes {shapes}."
            )
        if self.sizes and [each.shape for each in self.sizes] != [shape[:3] for shape in shapes]:
            raise BadInput(
                f"sizes need one array [run, head, key] a pair; given {[each.shape for each in self.sizes]}."
            )

    @property
    def group(self) -> int:
        """Count the heads that share a key and a value."""
        return group_size(self.heads, self.kv_heads)

    def part(self, pairs: int, heads: Sequence[int]) -> "HeadPatterns":
        """Keep the first pairs, and the heads at these places of `chosen`."""
        patterns, sizes = (
            tuple(np.ascontiguousarray(each[:, list(heads)]) for each in every[:pairs])
            for every in (self.patterns, self.sizes)
        )
        chosen = tuple(self.chosen[i] for i in heads)
        return replace(self, chosen=chosen, patterns=patterns, sizes=sizes, tokens=self.tokens[:pairs])

    def save(self, folder: str | Path) -> Path:
        """Write attention.safetensors and attention.json into a folder; give it. Raises BadInput if it cannot."""
        names = ("model", "task", "layers", "heads", "kv_heads", "pairs", "chosen", "runs", "tokens")
        meta = {"what": BESIDE, **{name: getattr(self, name) for name in names}}
        arrays = {str(place): pattern for place, pattern in enumerate(self.patterns)}
        arrays |= {f"{_SIZES}{place}": sizes for place, sizes in enumerate(self.sizes)}
        return write_result(folder, arrays, meta, beside=BESIDE)

    @classmethod
    def load(cls, folder: str | Path) -> "HeadPatterns":
        """Read what `save` wrote. Raises BadInput without such a folder, CorruptFile if its content is damaged."""
        arrays, meta = read_result(folder, beside=BESIDE)
        count = sum(name.startswith(_SIZES) for name in arrays)
        try:
            return cls(
                model=str(meta["model"]),
                task=str(meta["task"]),
                layers=int(meta["layers"]),
                heads=int(meta["heads"]),
                kv_heads=int(meta["kv_heads"]),
                pairs=int(meta["pairs"]),
                chosen=tuple((int(layer), int(head)) for layer, head in meta["chosen"]),
                runs=tuple(map(str, meta["runs"])),
                patterns=tuple(arrays[str(place)] for place in range(len(arrays) - count)),
                sizes=tuple(arrays[f"{_SIZES}{place}"] for place in range(count)),
                tokens=tuple(tuple(tuple(map(str, run)) for run in pair) for pair in meta["tokens"]),
            )
        except (KeyError, TypeError, ValueError, BadInput) as error:
            raise CorruptFile(f"{str(folder)!r} holds no attention as crosspatch writes it: {error}.") from error

    @staticmethod
    def found(folder: str | Path) -> "HeadPatterns | None":
        """Read what `save` wrote, if it wrote anything. Raises CorruptFile if it is damaged."""
        there = (Path(folder) / file_names(BESIDE)[1]).is_file()
        return HeadPatterns.load(folder) if there else None


def group_size(heads: int, kv_heads: int) -> int:
    """Count the heads that share a key and a value."""
    return max(1, heads // max(kv_heads, 1))


def swept_head(site: Any, group: int = 1) -> tuple[Head, ...]:
    """Give the heads that a site belongs to, as (layer, head): for a key or a value all heads that share it."""
    if not isinstance(site, Site) or site.kind not in HEAD_KINDS or site.unit is None or site.layer is None:
        return ()
    if site.kind in KEY_KINDS:
        return tuple((site.layer, site.unit * group + i) for i in range(group))
    return ((site.layer, site.unit),)


def rank_heads(effects: "Effects", group: int = 1) -> tuple[Head, ...]:
    """List the heads that were swept as (layer, head), those with the largest absolute mean effect first.

    `group` is the number of heads that share a key and a value.
    """
    size: dict[Head, float] = {}
    for site, value in zip(effects.sites, np.nan_to_num(np.abs(effects.mean())), strict=True):
        for head in swept_head(site, group):
            size[head] = max(size.get(head, 0.0), float(value))
    return tuple(sorted(size, key=lambda head: (-size[head], head)))


def read_head_patterns(
    model: "Model", task: "Task", *, first: Sequence[Head] = (), pairs: int = MOST_PAIRS, room: int = MOST_BYTES
) -> HeadPatterns:
    """Run the first pairs of a task and keep the attention of all heads; as many pairs as fit into `room` bytes.

    If not even one pair fits, only as many heads as do are kept, in the order of `first`.

    Raises:
        BadInput: a model that gives no patterns (the message has the reason), or prompts too long to hold them.
    """
    from crosspatch.lenses.patterns import read_patterns

    model.anatomy.require("attn.pattern")
    runs = ("clean",) if task.corruption.of_embeddings else ("clean", "corrupt")
    kept = task.pairs[: _fitting(model, task, runs=len(runs), most=pairs, room=room)]
    chosen = _chosen(model, first, each=len(runs) * len(kept[0].clean) ** 2, room=room)
    prompts = [getattr(pair, run) for pair in kept for run in runs]
    found: dict[int, tuple[np.ndarray, ...]] = {}
    for batch in read_patterns(model, prompts):
        written = _written(model, chosen, batch.values)
        for row, (place, n) in enumerate(zip(batch.examples, batch.lengths, strict=True)):
            weights = [batch.patterns[layer][row, head, :n, :n].cpu().numpy() for layer, head in chosen]
            pattern = np.rint(np.clip(np.stack(weights), 0, 1) * ONE).astype(np.uint8)
            found[place] = pattern, *(each[row, :, :n] for each in written)
    return _gathered(model, task, found, chosen=chosen, runs=runs)


def _written(model: "Model", chosen: Sequence[Head], values: Mapping[int, Any]) -> list[np.ndarray]:
    """Measure what heads write for each key, `[example, head, key]`; nothing where their output is not known."""
    from crosspatch.lenses.patterns import written_sizes

    if "attn.head" not in model.anatomy.points:
        return []
    sizes = [written_sizes(model, Site("attn.head", *head), values[head[0]]) for head in chosen]
    return [np.stack([each.cpu().numpy() for each in sizes], axis=1).astype(np.float32)]


def _fitting(model: "Model", task: "Task", *, runs: int, most: int, room: int) -> int:
    """Count the first pairs that fit, one at least. Raises BadInput where not even one can be held while it is read."""
    from crosspatch.lenses.patterns import ROOM

    heads = model.anatomy.layers * model.anatomy.heads
    sizes = [heads * len(pair.clean) ** 2 for pair in task.pairs[:most]]
    if 4 * sizes[0] > ROOM or runs * len(task.pairs[0].clean) ** 2 > room:
        raise BadInput(f"prompts of {len(task.pairs[0].clean)} tokens are too long to keep the attention of all heads.")
    fits = [4 * size <= ROOM and runs * sum(sizes[: i + 1]) <= room for i, size in enumerate(sizes)]
    return max(1, fits.index(False) if False in fits else len(fits))


def _chosen(model: "Model", first: Sequence[Head], *, each: int, room: int) -> list[Head]:
    every = [(layer, head) for layer in range(model.anatomy.layers) for head in range(model.anatomy.heads)]
    if each * len(every) <= room:
        return every
    return list(dict.fromkeys((*first, *every)))[: max(1, room // each)]


def _gathered(
    model: "Model",
    task: "Task",
    found: Mapping[int, tuple[np.ndarray, ...]],
    *,
    chosen: Sequence[Head],
    runs: tuple[str, ...],
) -> HeadPatterns:
    from crosspatch.tasks import token_strings

    kept = task.pairs[: len(found) // len(runs)]
    patterns, *sizes = (
        tuple(np.stack([found[i * len(runs) + r][what] for r in range(len(runs))]) for i in range(len(kept)))
        for what in range(len(found[0]))
    )
    return HeadPatterns(
        model=model.name,
        task=task.name,
        layers=model.anatomy.layers,
        heads=model.anatomy.heads,
        kv_heads=model.anatomy.kv_heads,
        pairs=len(task.pairs),
        chosen=tuple(chosen),
        runs=runs,
        patterns=patterns,
        sizes=sizes[0] if sizes else (),
        tokens=tuple(tuple(token_strings(model.tokenizer, getattr(pair, run)) for run in runs) for pair in kept),
    )
