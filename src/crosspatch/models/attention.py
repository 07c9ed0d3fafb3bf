"""Attention over packed tokens and attention patterns, through transformers' own interface; nothing is re-implemented.

While one of the context managers here is open, the model's attention modules call `_dispatch` instead of their kernel.
It hands every call on to the model's own kernel, except the ones that the open job wants to see or to rearrange.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosspatch.models.anatomy import Anatomy
from crosspatch.models.blocks import block_list
from crosspatch.models.bundles import Bundles, width_for
from crosspatch.models.shards import Shard

NAME = "crosspatch"


@dataclass(frozen=True)
class Segment:
    """Rows of one shape in a packed batch: `rows` prompts, each with tokens `start … start + span - 1`.

    `pairs[r]` says whose keys and values before `start` row r attends to. Where `owners` say the same in plain numbers,
    short rows may attend together.
    """

    start: int
    span: int
    pairs: Int[Tensor, " row"]
    owners: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.pairs)

    @property
    def tokens(self) -> int:
        """Number of tokens of all rows."""
        return len(self.pairs) * self.span


@dataclass(frozen=True)
class Attended:
    """One call of the model's own kernel: what it was given, in the kernel's own shapes, and what it gave.

    `query` is `[row, head, query, d_head]`, `key` and `value` `[row, kv, key, d_head]`, all behind rotary embeddings
    and norms; `out` is `[row, query, head, d_head]`.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    settings: Mapping[str, Any]
    out: Tensor


# Sees an attention pattern [batch, head, query, key]; returns another to stand in its place, or None.
Watch = Callable[[Tensor], Tensor | None]


@dataclass
class Job:
    """What attention must do for one call of one block.

    `see_keys`, `see_pattern` and `see_attended` are shown each segment's; `edit_mask(segment, mask, (rows, heads))`
    gives another mask, `edit_heads(segment, out, values)` writes into what the heads give `[row, query, head, d_head]`.
    `skip`: attention gives zeros, since what the heads give is overwritten anyway. `shard`: the model's attention has a
    part of the heads on each rank, while all of the above speak of all heads.
    """

    segments: Sequence[Segment] = ()
    keys: Float[Tensor, "pair kv pos d_head"] | None = None
    values: Float[Tensor, "pair kv pos d_head"] | None = None
    see_keys: Callable[[int, Tensor, Tensor], None] | None = None
    see_pattern: Callable[[int, Tensor], None] | None = None
    see_attended: Callable[[int, Attended], None] | None = None
    edit_mask: Callable[[int, Tensor, tuple[int, int]], Tensor] | None = None
    edit_heads: Callable[[int, Tensor, Tensor], None] | None = None
    skip: bool = False
    original: str = "sdpa"
    watched: Mapping[int, Watch] = field(default_factory=dict)
    calls: int = 0
    shard: Shard | None = None

    @property
    def watches(self) -> bool:
        """Whether somebody reads or writes attention row by row."""
        watchers = (self.see_keys, self.see_pattern, self.see_attended, self.edit_mask, self.edit_heads)
        return any(watcher is not None for watcher in watchers)


_job: ContextVar[Job | None] = ContextVar("crosspatch_attention_job", default=None)


def own_kernel(module: nn.Module) -> Callable[..., Any] | None:
    """Return the plain attention function beside the module's class, which knows all that its architecture does."""
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def attention_modules(module: nn.Module, anatomy: Anatomy) -> list[nn.Module]:
    """Return the attention module of each block, in order."""
    return [block.get_submodule(anatomy.attention) for block in block_list(module, anatomy)]


@contextmanager
def rerouted(module: nn.Module, anatomy: Anatomy, job: Job) -> Iterator[None]:
    """Send the attention of all blocks through `_dispatch`, with this job; the configuration is restored after."""
    _register()
    configs = _configs(module, anatomy)
    before = {key: config._attn_implementation for key, config in configs.items()}
    outer = _job.get()
    job.original = next((name for name in before.values() if name != NAME), outer.original if outer else job.original)
    job.watched = _both(outer.watched, job.watched) if outer else job.watched
    job.shard = anatomy.heads_shard
    token = _job.set(job)
    try:
        for config in configs.values():
            config._attn_implementation_internal = NAME
        yield
    finally:
        _job.reset(token)
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def _both(first: Mapping[int, Watch], then: Mapping[int, Watch]) -> dict[int, Watch]:
    """Join the watches of nested contexts; where both watch a module, the inner one sees what the outer one wrote."""

    def chained(outer: Watch, inner: Watch) -> Watch:
        def watch(pattern: Tensor) -> Tensor | None:
            changed = outer(pattern)
            again = inner(pattern if changed is None else changed)
            return changed if again is None else again

        return watch

    shared = {key: chained(first[key], then[key]) for key in first.keys() & then.keys()}
    return {**first, **then, **shared}


def _configs(module: nn.Module, anatomy: Anatomy) -> dict[int, Any]:
    """Return the configurations that choose the kernel: the attention modules' own and the one that makes masks."""
    owner = module.get_submodule(anatomy.blocks.rpartition(".")[0])
    found = (getattr(part, "config", None) for part in (owner, *attention_modules(module, anatomy)))
    return {id(config): config for config in found if config is not None}


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        ALL_ATTENTION_FUNCTIONS.register(NAME, _dispatch)
        # A mask with numbers in it can be sliced for any run of positions; kernels that skip it cannot be asked.
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def _dispatch(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    job = _job.get()
    if job is None:
        raise RuntimeError("crosspatch attention was called outside its context")
    if job.segments:
        local = job if job.shard is None else _on_own_heads(job, job.shard)
        out = _attend_packed(local, module, (query, key, value), attention_mask, kwargs)
        job.calls = local.calls
        return out, None
    if id(module) in job.watched:
        return _attend_watched(job, module, (query, key, value), attention_mask, kwargs)
    return _attend(job, module, (query, key, value), attention_mask, kwargs)


def _on_own_heads(job: Job, shard: Shard) -> Job:
    """Return the job as it is for one rank's heads: what it sees is joined over ranks, what it gives is cut."""

    def see_keys(segment: int, key: Tensor, value: Tensor) -> None:
        if job.see_keys is not None:
            job.see_keys(segment, key, value)  # each rank keeps its own
            local.keys, local.values = job.keys, job.values

    def see_pattern(segment: int, pattern: Tensor) -> None:
        if job.see_pattern is not None:
            job.see_pattern(segment, shard.whole(pattern, 1))

    def edit_mask(segment: int, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        edited = mask if job.edit_mask is None else job.edit_mask(segment, mask, (shape[0], shape[1] * shard.size))
        return edited if edited.shape[1] == 1 else shard.own(edited, 1)

    def edit_heads(segment: int, out: Tensor, values: Tensor) -> None:
        if job.edit_heads is not None:
            every = shard.whole(out, 2)
            job.edit_heads(segment, every, shard.whole(values, 1))
            out.copy_(shard.own(every, 2))

    local = replace(
        job,
        see_keys=job.see_keys and see_keys,
        see_pattern=job.see_pattern and see_pattern,
        edit_mask=job.edit_mask and edit_mask,
        edit_heads=job.edit_heads and edit_heads,
    )
    return local


def _attend(
    job: Job,
    module: nn.Module,
    qkv: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    kwargs: Mapping[str, Any],
    *,
    explicit: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Call the model's kernel; `explicit` asks for one that returns the attention pattern too."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    special = kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None or job.original == "eager"
    eager = own_kernel(module)
    if eager is not None and (explicit or special):
        return eager(module, *qkv, mask, **kwargs)
    # Packed rows come with their own mask, which kernels for padded batches (flash) do not take.
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *qkv, mask, **kwargs)


def attend_again(job: Job, seen: Attended, *, query: Tensor | None = None, key: Tensor | None = None) -> Tensor:
    """Call the model's own kernel once more with other queries or keys: what the heads would give."""
    given = (seen.query if query is None else query, seen.key if key is None else key, seen.value)
    return _attend(job, seen.module, given, seen.mask, seen.settings)[0]


def pattern_of(job: Job, seen: Attended) -> Float[Tensor, "row head query key"]:
    """Return the attention pattern of a call, by the model's own kernel."""
    return _pattern(job, seen.module, (seen.query, seen.key, seen.value), seen.mask, seen.settings)


def _pattern(
    job: Job, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, kwargs: Mapping[str, Any]
) -> Float[Tensor, "batch head query key"]:
    pattern = _attend(job, module, qkv, mask, kwargs, explicit=True)[1]
    if pattern is None:
        raise RuntimeError("the model's attention function gave no pattern")
    return pattern


def _attend_packed(
    job: Job, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, kwargs: Mapping[str, Any]
) -> Float[Tensor, "1 token head d_head"]:
    """Attend each segment's rows to their pair's earlier keys and values and to their own."""
    job.calls += 1
    query, _, value = qkv
    shape = 1, query.shape[2], query.shape[1], value.shape[-1]
    if job.skip:
        return query.new_zeros(shape)
    if mask is not None and _bundles(job, mask):
        return _attend_bundled(job, module, qkv, mask, kwargs)
    outs: list[Tensor] = []
    first = 0
    for index, segment in enumerate(job.segments):
        last = first + segment.tokens
        q, k, v = (t[0, :, first:last].unflatten(1, (segment.rows, segment.span)).transpose(0, 1) for t in qkv)
        if job.see_keys is not None:
            job.see_keys(index, k, v)
        if segment.start:
            k, v = _with_past(job.keys, k, segment), _with_past(job.values, v, segment)
        end = segment.start + segment.span
        part = None if mask is None else mask[..., segment.start : end, :end]
        if job.edit_mask is not None:
            part = query.new_zeros(1, 1, segment.span, end) if part is None else part
            part = job.edit_mask(index, part, (segment.rows, query.shape[1]))
        # What a block gives comes from the model's own kernel, asked for patterns or not: the same numbers to the bit.
        result = _attend(job, module, (q, k, v), part, kwargs)[0]
        if job.see_pattern is not None:
            job.see_pattern(index, _pattern(job, module, (q, k, v), part, kwargs))
        if job.edit_heads is not None:
            job.edit_heads(index, result, v)
        if job.see_attended is not None:
            job.see_attended(index, Attended(module, q, k, v, part, kwargs, result))
        outs.append(result.flatten(0, 1))
        first = last
    return torch.cat(outs)[None]


def _bundles(job: Job, mask: Tensor) -> bool:
    """Tell whether rows may attend together: all are short, and nobody looks at them one by one."""
    if job.watches or job.keys is None or mask.shape[:2] != (1, 1):
        return False
    width = width_for(max(segment.start for segment in job.segments))
    return all(len(segment.owners) == segment.rows and segment.span <= width for segment in job.segments)


def _attend_bundled(
    job: Job, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor, kwargs: Mapping[str, Any]
) -> Float[Tensor, "1 token head d_head"]:
    """Attend all rows in one call of the model's kernel: `_attend_packed` by bundles instead of shapes."""
    if job.keys is None or job.values is None:
        raise RuntimeError("rows that attend together share keys and values")
    bundles = Bundles.of(job.segments, mask.device)
    query, key, value = (each[0] for each in qkv)
    together = bundles.laid_out(query), bundles.behind(job.keys, key), bundles.behind(job.values, value)
    return bundles.apart(_attend(job, module, together, bundles.mask(mask), kwargs)[0])[None]


def _with_past(past: Tensor | None, new: Float[Tensor, "row kv span d_head"], segment: Segment) -> Tensor:
    if past is None:
        raise RuntimeError("a segment that starts late needs the keys and values before it")
    return torch.cat([past[:, :, : segment.start][segment.pairs], new], dim=2)


def _attend_watched(
    job: Job, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Show the pattern `[batch, head, query, key]` of a watched module; a pattern given back replaces it."""
    query, key, value = qkv
    if mask is None and query.shape[2] > 1:
        length = key.shape[2]
        mask = torch.full((query.shape[2], length), torch.finfo(query.dtype).min, device=query.device).triu(
            1 + length - query.shape[2]
        )
    watch = job.watched[id(module)] if job.shard is None else job.shard.over(job.watched[id(module)], 1)
    changed = watch(_pattern(job, module, qkv, mask, kwargs))
    if changed is None:
        return _attend(job, module, qkv, mask, kwargs)
    groups = changed.shape[1] // value.shape[1]
    return (changed.to(value.dtype) @ value.repeat_interleave(groups, dim=1)).transpose(1, 2).contiguous(), changed
