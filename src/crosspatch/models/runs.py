"""Whole runs of prompts, packed without padding: the stream, keys and values, and activations at chosen sites."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosspatch.models.anatomy import Anatomy, Point
from crosspatch.models.attention import Attended, Job, Segment, rerouted
from crosspatch.models.blocks import block_list, embed, record_blocks
from crosspatch.models.guard import one_thread, refuse_compiled
from crosspatch.models.hooks import Visit, visiting
from crosspatch.models.model import Model
from crosspatch.models.packed import BlockCaller, Packed, Padded, Past, flat_visit, positions_of
from crosspatch.models.positions import require_positions
from crosspatch.models.weights import trackable, untracked

MASKS = 1 << 24  # elements of the masks that are made at once


@dataclass(frozen=True)
class Prompts:
    """Token ids of many prompts, right-padded with 0 to `[pair, pos]`, and their lengths."""

    ids: Int[Tensor, "pair pos"]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], device: torch.device) -> "Prompts":
        """Pad sequences of unequal lengths; padding is never run."""
        lengths = tuple(len(s) for s in sequences)
        ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        return cls(ids.to(device), lengths)


@dataclass
class Run:
    """What one run of the prompts left behind. Entries before a pair's start are zero and never read.

    `stream[l]` is the residual stream entering block l `[pair, pos, d_model]`, the last one leaving the last block;
    `keys`, `values` are `[pair, kv, pos, d_head]` a layer; `seen[kind][l]` is `[pair, pos, width]`;
    `patterns[l]` is `[pair, head, query, key]`. `queries[l]` `[pair, head, pos, d_head]` and `turned[l]`
    `[pair, kv, pos, d_head]` are the queries and keys that attention multiplies, behind rotary embeddings and norms;
    `kernels[l]` is the call of the longest prompts' attention without its tensors: module, mask and settings.
    """

    stream: list[Tensor]
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    queries: dict[int, Tensor] = field(default_factory=dict)
    turned: dict[int, Tensor] = field(default_factory=dict)
    kernels: dict[int, Attended] = field(default_factory=dict)
    seen: dict[str, dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    patterns: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """A model set up for direct calls of its blocks on these prompts."""

    model: Model
    prompts: Prompts
    call: BlockCaller
    job: Job

    @property
    def anatomy(self) -> Anatomy:
        """The model's anatomy."""
        return self.model.anatomy


@contextmanager
def workbench(model: Model, prompts: Prompts, *, tracked: bool = False) -> Iterator[Bench]:
    """Set the model up for direct calls of its blocks; everything is put back when the block ends.

    `tracked`: calls under `torch.enable_grad` may be differentiated with respect to activations, never to weights.
    """
    module, anatomy, job = model.module, model.anatomy, Job()
    blocks = block_list(module, anatomy)
    lengths = torch.tensor(prompts.lengths, device=prompts.ids.device)
    refuse_compiled(module)
    require_positions(module, anatomy, max(prompts.lengths))
    with one_thread(module), trackable(module) if tracked else untracked(module):
        if not anatomy.packed:
            yield Bench(model, prompts, Padded(module, anatomy, prompts.ids, lengths, blocks), job)
            return
        with rerouted(module, anatomy, job):
            # One prompt tells what blocks are handed at each position; a shorter one, which axes are positions.
            longest = int(lengths.argmax())
            ids = prompts.ids[longest : longest + 1]
            handed = record_blocks(module, anatomy, ids)[1]
            other = record_blocks(module, anatomy, _of_another_length(ids))[1]
            yield Bench(model, prompts, Packed(module, anatomy, handed, other, blocks), job)


def _of_another_length(ids: Int[Tensor, "1 pos"]) -> Int[Tensor, "1 other"]:
    """Return a prompt of another length, as short as can be: its masks are as large as its length squared."""
    return ids.repeat(1, 2) if ids.shape[1] == 1 else ids[:, : min(2, ids.shape[1] - 1)]


def in_parts(shapes: Mapping[tuple[int, int], list[int]]) -> Iterator[tuple[int, list[int]]]:
    """Yield lengths and pairs, so few at once that the masks which the model's forward makes for them stay small."""
    for (_, length), pairs in shapes.items():
        few = max(1, MASKS // length**2)
        yield from ((length, pairs[i : i + few]) for i in range(0, len(pairs), few))


def by_shape(starts: Sequence[int], lengths: Sequence[int]) -> dict[tuple[int, int], list[int]]:
    """Group pairs by start and length; the groups are in order, as are the pairs within."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for pair, shape in enumerate(zip(starts, lengths, strict=True)):
        groups[shape].append(pair)
    return dict(sorted(groups.items()))


@dataclass(frozen=True)
class Overlay:
    """Changes token embeddings, as the embedding module gives them: `scale * embedding + shift` at each position."""

    scale: Float[Tensor, "pair pos 1"]
    shift: Float[Tensor, "pair pos width"]

    def on(self, pairs: Sequence[int], length: int) -> Visit:
        """Return a visit of the embedding of these pairs' prompts, all of one length."""
        scale, shift = self.scale[pairs, :length], self.shift[pairs, :length]
        return lambda embedding: (embedding * scale + shift).to(embedding.dtype)

    def to_length(self, length: int) -> "Overlay":
        """Return the overlay of prompts that go on, unchanged, up to this length."""
        more = length - self.shift.shape[1]
        return Overlay(
            nn.functional.pad(self.scale, (0, 0, 0, more), value=1.0), nn.functional.pad(self.shift, (0, 0, 0, more))
        )


def embedded(bench: Bench, prompts: Prompts, overlay: Overlay | None = None) -> Float[Tensor, "pair pos d_model"]:
    """Return what the first block reads; prompts of one length share a call, so that nothing is padded."""
    out: Tensor | None = None
    module, point = bench.model.module, Point(bench.anatomy.embedding, "output")
    for length, pairs in in_parts(by_shape([0] * len(prompts.lengths), prompts.lengths)):
        if not length:
            continue  # a lane of prefixes, of which this pair has none
        with visiting([] if overlay is None else [(module, point, overlay.on(pairs, length))]):
            part = embed(module, bench.anatomy, prompts.ids[pairs, :length])
        if out is None:
            out = part.new_zeros(len(prompts.lengths), prompts.ids.shape[1], part.shape[-1])
        out[pairs, :length] = part
    if out is None:
        raise ValueError("no prompts")
    return out


@dataclass(frozen=True)
class Lane:
    """One of several runs that share each call of a block.

    With `starts`, pair i is run from position `starts[i]` on, against the first lane's keys and values before it: exact
    where both lanes' prompts agree up to there; a pair that starts at its end is not run. `kinds` are the activations
    to keep, `overlay` changes the embeddings, `scored` keeps the queries and keys that attention multiplies.
    """

    prompts: Prompts
    kinds: Sequence[str] = ()
    starts: Sequence[int] | None = None
    overlay: Overlay | None = None
    scored: bool = False


def run_lanes(bench: Bench, lanes: Sequence[Lane]) -> list[Run]:
    """Run all lanes through all blocks, together; only the first lane's keys and values are kept.

    Whole rows are run lane by lane, since what blocks are handed may depend on a lane's own tokens.
    """
    if isinstance(bench.call, Padded) and len(lanes) > 1:
        calls = [replace(bench.call, ids=lane.prompts.ids) for lane in lanes]
        return [run_lanes(replace(bench, call=call), [lane])[0] for call, lane in zip(calls, lanes, strict=True)]
    runs = [Running.begin(bench, lane, keys=index == 0) for index, lane in enumerate(lanes)]
    segments = [segment for run in runs for segment in run.segments]
    hidden = torch.cat([run.entering() for run in runs])
    for layer in range(bench.anatomy.layers):
        watch = _Watch(bench, runs, layer)
        bench.job.see_keys = watch.keys
        bench.job.see_pattern = watch.patterns if any("attn.pattern" in lane.kinds for lane in lanes) else None
        bench.job.see_attended = watch.attended if any(lane.scored for lane in lanes) else None
        hidden = bench.call(layer, hidden, segments, past=None, visits=watch.visits(), job=bench.job)
        for run, part in zip(runs, hidden.split([run.tokens for run in runs]), strict=True):
            run.leave(part)
    bench.job.see_keys = bench.job.see_pattern = bench.job.see_attended = None
    return [run.run for run in runs]


def past_of(run: Run, layer: int) -> Past | None:
    """Return the keys and values of a layer, if the run kept them."""
    return Past(run.keys[layer], run.values[layer]) if run.keys else None


@dataclass(frozen=True)
class Running:
    """One lane on its way: its segments, and the pair and position of each of its packed tokens."""

    lane: Lane
    run: Run
    keeps_keys: bool
    segments: Sequence[Segment]
    pairs: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]

    @classmethod
    def begin(cls, bench: Bench, lane: Lane, *, keys: bool) -> "Running":
        """Embed a lane's prompts and lay out the tokens that are run; `keys`: keep keys and values."""
        prompts, device = lane.prompts, lane.prompts.ids.device
        starts = lane.starts if lane.starts is not None and bench.anatomy.packed else [0] * len(prompts.lengths)
        shapes = {(s, n): pairs for (s, n), pairs in by_shape(starts, prompts.lengths).items() if s < n}
        segments = [Segment(s, n - s, torch.tensor(pairs, device=device)) for (s, n), pairs in shapes.items()]
        pairs = torch.cat([segment.pairs.repeat_interleave(segment.span) for segment in segments])
        return cls(
            lane, Run([embedded(bench, prompts, lane.overlay)]), keys, segments, pairs, positions_of(segments, device)
        )

    @property
    def tokens(self) -> int:
        """Number of tokens that are run."""
        return len(self.pairs)

    def entering(self) -> Float[Tensor, "token d_model"]:
        """Return what the first block reads, token by token."""
        return self.run.stream[0][self.pairs, self.positions]

    def leave(self, hidden: Float[Tensor, "token d_model"]) -> None:
        """Keep the stream that leaves a block."""
        self.run.stream.append(self.spread(hidden))

    def spread(self, flat: Float[Tensor, "token width"]) -> Float[Tensor, "pair pos width"]:
        """Lay packed tokens out by pair and position; zero where nothing was run."""
        store = flat.new_zeros(*self.run.stream[0].shape[:2], flat.shape[-1])
        store[self.pairs.to(flat.device), self.positions.to(flat.device)] = flat
        return store

    def keep_keys(self, job: Job, layer: int, segment: Segment, kv: tuple[Tensor, Tensor]) -> None:
        """Store a segment's keys and values, and show the store to the segments after it in the same call."""
        for kept, new in zip((self.run.keys, self.run.values), kv, strict=True):
            if len(kept) == layer:
                pairs, width = self.run.stream[0].shape[:2]
                kept.append(new.new_zeros(pairs, new.shape[1], width, new.shape[-1]))
            kept[layer][segment.pairs.to(new.device), :, segment.start : segment.start + segment.span] = new
        job.keys, job.values = self.run.keys[layer], self.run.values[layer]

    def keep_attended(self, layer: int, segment: Segment, seen: Attended) -> None:
        """Store the queries and keys of a segment's own tokens."""
        span = slice(segment.start, segment.start + segment.span)
        own = seen.key[:, :, span]
        for kept, new in ((self.run.queries, seen.query), (self.run.turned, own)):
            if layer not in kept:
                pairs, width = self.run.stream[0].shape[:2]
                kept[layer] = new.new_zeros(pairs, new.shape[1], width, new.shape[-1])
            kept[layer][segment.pairs.to(new.device), :, span] = new
        none = seen.query.new_empty(0)  # segments come by length, the longest last
        self.run.kernels[layer] = replace(seen, query=none, key=none, value=none, out=none)

    def keep_pattern(self, layer: int, segment: Segment, pattern: Tensor) -> None:
        """Store a segment's attention pattern."""
        if layer not in self.run.patterns:
            pairs, width = self.run.stream[0].shape[:2]
            self.run.patterns[layer] = pattern.new_zeros(pairs, pattern.shape[1], width, width)
        end = segment.start + segment.span
        self.run.patterns[layer][segment.pairs.to(pattern.device), :, segment.start : end, :end] = pattern


@dataclass(frozen=True)
class _Watch:
    """Hands what passes by in one layer to the lane it belongs to."""

    bench: Bench
    runs: Sequence[Running]
    layer: int

    def owner(self, index: int) -> tuple[Running, Segment]:
        for run in self.runs:
            if index < len(run.segments):
                return run, run.segments[index]
            index -= len(run.segments)
        raise IndexError("a segment that no lane owns")

    def keys(self, index: int, key: Tensor, value: Tensor) -> None:
        run, segment = self.owner(index)
        if run.keeps_keys:
            run.keep_keys(self.bench.job, self.layer, segment, (key, value))

    def patterns(self, index: int, pattern: Tensor) -> None:
        run, segment = self.owner(index)
        if "attn.pattern" in run.lane.kinds:
            run.keep_pattern(self.layer, segment, pattern)

    def attended(self, index: int, seen: Attended) -> None:
        run, segment = self.owner(index)
        if run.lane.scored:
            run.keep_attended(self.layer, segment, seen)

    def visits(self) -> list[tuple[Point, Visit]]:
        """Return readers of every kind that some lane keeps."""
        points = self.bench.anatomy.points
        kinds = sorted({kind for run in self.runs for kind in run.lane.kinds if kind in points})
        return [(points[kind], flat_visit(partial(self._read, kind))) for kind in kinds]

    def _read(self, kind: str, flat: Float[Tensor, "token width"]) -> None:
        for run, part in zip(self.runs, flat.split([run.tokens for run in self.runs]), strict=True):
            if kind in run.lane.kinds:
                run.run.seen[kind][self.layer] = run.spread(part)
