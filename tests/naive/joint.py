"""Several sites patched in one forward, attention knocked out, sites ablated: plain hooks, no engine.

How to call. A *part* is `(kind, layer, unit, positions)`: a kind of site ("attn.head", "resid.mid", "attn.pattern", …),
its layer (0 for "embed"), one head or neuron or None for the whole width, and positions (None: all; for a pattern,
those of the query). A *cut* is `(layer, head, queries, keys)`: these queries may no longer attend to these keys
(None: all). A *score* maps the logits `[vocab]` of the last position to a number. Every effect is
score(patched) − score(base).

    parts = [("attn.head", 1, 0, [4]), ("mlp.out", 0, None, None)]
    joint_effect(module, anatomy, base_ids, source_ids, parts=parts, score=score)
    knockout_effect(module, anatomy, base_ids, cuts=[(1, 0, [-1], [2]), (2, None, [-1], [2])], score=score)
    zero_effect(module, anatomy, base_ids, parts=parts, score=score)
    mean_effect(module, anatomy, base_ids, [ids, ids, …], parts=parts, score=score, over="prompt")
    resample_effect(module, anatomy, base_ids, [ids, ids, …], parts=parts, score=score)

`forward(module, anatomy, ids, writes, cuts)` gives logits; `taken` reads parts; `part_of` reads a `Site`.

Anatomy tells module paths and columns of heads, nothing else of crosspatch is used. Where parts overlap, the one later
in a forward pass wins.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from crosspatch.models.anatomy import Anatomy
from crosspatch.sites import Site
from naive.patching import Visit, read, run

Ids = Sequence[int]
Part = tuple[str, int, int | None, Sequence[int] | None]
Cut = tuple[int, int | None, Sequence[int] | None, Sequence[int] | None]
Write = tuple[Part, Tensor]  # a part and what its whole kind holds, [pos, width] ([head, query, key] for a pattern)
Score = Callable[[Tensor], float]
Hooks = dict[str, tuple[nn.Module, str, Visit]]

# The order of a forward pass.
ORDER = (
    *("embed", "resid.pre", "attn.in", "attn.q", "attn.k", "attn.v", "attn.pattern", "attn.head", "attn.out"),
    *("resid.mid", "mlp.in", "mlp.hidden", "mlp.out", "resid.post"),
)


def part_of(site: Site, names: Mapping[str, int]) -> Part:
    """Return the part that a site means in a prompt with these named positions."""
    place = names.get(site.position, site.position) if isinstance(site.position, str) else site.position
    return site.kind, site.layer or 0, site.unit, None if place in ("all", None) else [int(place)]


def spot(module: nn.Module, anatomy: Anatomy, kind: str, layer: int) -> tuple[nn.Module, str]:
    """Return the module and side through which a kind is read or written."""
    if kind == "embed":
        return module.get_submodule(anatomy.embedding), "out"
    block = module.get_submodule(f"{anatomy.blocks}.{layer}")
    if kind in ("resid.pre", "resid.post"):
        return block, "in" if kind == "resid.pre" else "out"
    point = anatomy.points[{"attn.pattern": "attn.head", "resid.mid": "attn.out"}.get(kind, kind)]
    return block.get_submodule(point.path), {"input": "in", "output": "out"}[point.side]


@torch.no_grad()
def patterns(module: Any, ids: Ids) -> tuple[Tensor, ...]:
    """Return each layer's attention pattern `[head, query, key]`, from the model's own eager kernel."""
    before = module.config._attn_implementation
    module.set_attn_implementation("eager")
    layers = module(input_ids=torch.tensor([list(ids)]), output_attentions=True).attentions
    module.set_attn_implementation(before)
    return tuple(layer[0] for layer in layers)


def activation(module: nn.Module, anatomy: Anatomy, ids: Ids, kind: str, layer: int) -> Tensor:
    """Return what a kind holds in one prompt, `[pos, width]`, or the pattern `[head, query, key]`."""
    if kind == "attn.pattern":
        return patterns(module, ids)[layer]
    if kind == "resid.mid":
        pre, added = (read(module, ids, *spot(module, anatomy, each, layer)) for each in ("resid.pre", "attn.out"))
        return pre + added
    return read(module, ids, *spot(module, anatomy, kind, layer))


def keeper(into: list[Tensor]) -> Visit:
    """Keep what passes, `[pos, width]`, and change nothing."""

    def keep(present: Tensor) -> Tensor:
        into.append(present.reshape(-1, present.shape[-1]).clone())
        return present

    return keep


def writer(value: Callable[[Tensor], Tensor], rows: Sequence[int], columns: Any) -> Visit:
    """Write the rows and columns of `value(what is there)` over what is there."""

    def write(present: Tensor) -> Tensor:
        flat = present.clone().reshape(-1, present.shape[-1])
        new = value(flat)
        for row in rows:
            flat[row, columns] = new[row, columns].to(flat.dtype)
        return flat.reshape(present.shape)

    return write


def hooks_of(module: nn.Module, anatomy: Anatomy, write: Write, length: int) -> Hooks:
    """Return the hooks that write one part; a pattern and the middle of the stream need what the run has before it."""
    (kind, layer, unit, positions), value = write
    rows, before, name = range(length) if positions is None else positions, [], f"{kind}{layer}{unit}{positions}"
    where = spot(module, anatomy, kind, layer)
    if kind == "resid.mid":
        look = (*spot(module, anatomy, "resid.pre", layer), keeper(before))
        return {f"{name} look": look, name: (*where, writer(lambda _: value - before[-1], rows, slice(None)))}
    if kind == "attn.pattern":
        look = (*spot(module, anatomy, "attn.v", layer), keeper(before))
        heads, each = anatomy.points["attn.head"], anatomy.heads // anatomy.kv_heads

        def attend(_: Tensor) -> Tensor:
            columns = [anatomy.points["attn.v"].columns(head // each) for head in range(anatomy.heads)]
            return torch.cat([value[h] @ before[-1][:, c] for h, c in enumerate(columns)], dim=1)

        return {f"{name} look": look, name: (*where, writer(attend, rows, heads.columns(unit)))}
    columns = anatomy.points[kind].columns(unit) if kind in anatomy.points else slice(None)
    return {name: (*where, writer(lambda _: value, rows, columns))}


@contextmanager
def cutting(module: nn.Module, anatomy: Anatomy, cuts: Sequence[Cut]) -> Iterator[None]:
    """Hand attention modules a mask with −inf where a cut is; the softmax shares the weight among what is left."""

    def hook_for(layer: int) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            mask = full_mask(kwargs.get("attention_mask"), anatomy.heads, hidden)
            length = mask.shape[-1]
            for head, queries, keys in (cut[1:] for cut in cuts if cut[0] == layer):
                for query in range(length) if queries is None else queries:
                    columns = slice(None) if keys is None else list(keys)
                    mask[0, slice(None) if head is None else head, query, columns] = float("-inf")
            if torch.isneginf(mask).all(-1).any():
                raise ValueError("a query has lost all its keys, so it has no attention pattern")
            return args, kwargs | {"attention_mask": mask}

        block = module.get_submodule(f"{anatomy.blocks}.{layer}")
        return block.get_submodule(anatomy.attention).register_forward_pre_hook(before, with_kwargs=True)

    handles = [hook_for(layer) for layer in sorted({cut[0] for cut in cuts})]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def full_mask(mask: Tensor | None, heads: int, hidden: Tensor) -> Tensor:
    """Return the model's own mask as numbers to add to the scores, 0 or −inf, `[1, head, query, key]`."""
    length = hidden.shape[1]
    if mask is None:  # kernels that know by themselves that they are causal
        allowed = torch.ones(length, length, dtype=torch.bool).tril()
    else:
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    added = torch.zeros(allowed.shape, dtype=hidden.dtype).masked_fill(~allowed, float("-inf"))
    return added.expand(1, heads, length, length).clone()


def forward(
    module: nn.Module, anatomy: Anatomy, ids: Ids, writes: Sequence[Write] = (), cuts: Sequence[Cut] = ()
) -> Tensor:
    """Return the logits `[pos, vocab]` of one prompt with these parts written over and these edges of attention cut."""
    hooks: Hooks = {}
    for index, write in enumerate(sorted(writes, key=lambda w: ORDER.index(w[0][0]))):
        found = hooks_of(module, anatomy, write, len(ids))
        hooks |= {f"{index} {name}": hook for name, hook in found.items()}
    with cutting(module, anatomy, cuts):
        return run(module, ids, **hooks)


def taken(module: nn.Module, anatomy: Anatomy, ids: Ids, parts: Sequence[Part]) -> list[Write]:
    """Return the parts with what they hold in one prompt."""
    return [(part, activation(module, anatomy, ids, *part[:2])) for part in parts]


def effect(
    module: nn.Module, anatomy: Anatomy, ids: Ids, writes: Sequence[Write], *, score: Score, cuts: Sequence[Cut] = ()
) -> float:
    """Return score(with the parts written over and the edges cut) − score(untouched), at the last position."""
    return score(forward(module, anatomy, ids, writes, cuts)[-1]) - score(forward(module, anatomy, ids)[-1])


def joint_effect(
    module: nn.Module, anatomy: Anatomy, base_ids: Ids, source_ids: Ids, *, parts: Sequence[Part], score: Score
) -> float:
    """Put all the parts' activations of the source run into the base run at once."""
    return effect(module, anatomy, base_ids, taken(module, anatomy, source_ids, parts), score=score)


def knockout_effect(module: nn.Module, anatomy: Anatomy, base_ids: Ids, *, cuts: Sequence[Cut], score: Score) -> float:
    """Cut edges of attention (Geva et al. 2023, §4: −inf before the softmax); ValueError if a query loses all keys."""
    return effect(module, anatomy, base_ids, (), score=score, cuts=cuts)


def zero_effect(module: nn.Module, anatomy: Anatomy, base_ids: Ids, *, parts: Sequence[Part], score: Score) -> float:
    """Write zeros over the parts."""
    writes = [(part, torch.zeros_like(held)) for part, held in taken(module, anatomy, base_ids, parts)]
    return effect(module, anatomy, base_ids, writes, score=score)


def mean_effect(
    module: nn.Module,
    anatomy: Anatomy,
    base_ids: Ids,
    prompts: Sequence[Ids],
    *,
    parts: Sequence[Part],
    score: Score,
    over: str = "prompt",
) -> float:
    """Write a mean over prompts of the base's length: at each position apart, or one for all positions and prompts."""
    writes = []
    for part in parts:
        mean = torch.stack([activation(module, anatomy, ids, *part[:2]) for ids in prompts]).mean(0)
        writes.append((part, mean if over == "prompt" else mean.mean(0, keepdim=True).expand_as(mean)))
    return effect(module, anatomy, base_ids, writes, score=score)


def resample_effect(
    module: nn.Module, anatomy: Anatomy, base_ids: Ids, prompts: Sequence[Ids], *, parts: Sequence[Part], score: Score
) -> float:
    """Take the parts from each of these prompts in turn (all parts from one prompt) and average the effects."""
    return sum(joint_effect(module, anatomy, base_ids, ids, parts=parts, score=score) for ids in prompts) / len(prompts)
