"""What an ablation writes in the place of activations: zero, the mean over reference prompts, or another prompt's."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from torch import Tensor

from crosspatch.core.errors import BadInput
from crosspatch.models.model import Model
from crosspatch.models.runs import Lane, Prompts, Run, run_lanes, workbench
from crosspatch.tasks import Pair, layout_of

ABLATIONS = ("zero", "mean", "resample")
AT_ONCE = 16  # reference prompts that are run together


@dataclass(frozen=True)
class Ablation:
    """Say what is written: "zero", "mean" or "resample", of the corrupt prompts of `reference`'s pairs.

    A mean is taken at each position over the reference prompts of the same layout; a resample is one of them, drawn
    with `seed`. Without reference pairs the swept pairs' own corrupt prompts serve.
    """

    by: str
    reference: tuple[Pair, ...] = ()
    seed: int = 0

    def settings(self) -> dict[str, str | int]:
        """Return what a result stores of it."""
        return {"by": self.by, "seed": self.seed, "reference_prompts": len(self.reference) or "the task's corrupt ones"}

    def drawn(self, pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
        """Return for each pair the reference prompt whose activations it gets.

        Raises:
            BadInput: a pair whose layout no reference prompt has.
        """
        rng, pools = Random(self.seed), self.pools(pairs)
        return [rng.choice(self._others(pools, pair, number)) for number, pair in enumerate(pairs)]

    def _others(self, pools: Mapping[object, list[tuple[int, ...]]], pair: Pair, number: int) -> list[tuple[int, ...]]:
        others = [prompt for prompt in pools.get(layout_of(pair), []) if prompt not in (pair.clean, pair.corrupt)]
        if not others:
            raise BadInput(f"example {number} has a layout that no other reference prompt has.{_REMEDY}")
        return others

    def pools(self, pairs: Sequence[Pair]) -> dict[object, list[tuple[int, ...]]]:
        """Return the reference prompts of each layout."""
        found: dict[object, list[tuple[int, ...]]] = defaultdict(list)
        for pair in self.reference or pairs:
            found[layout_of(pair)].append(pair.corrupt)
        return found

    def needed_pools(self, pairs: Sequence[Pair]) -> dict[object, list[tuple[int, ...]]]:
        """Return the reference prompts of the layouts that the pairs have.

        Raises:
            BadInput: a layout of which there are fewer than two reference prompts.
        """
        pools = self.pools(pairs)
        needed = {layout_of(pair): number for number, pair in reversed(list(enumerate(pairs)))}
        for layout, number in needed.items():
            if len(set(pools.get(layout, []))) < 2:
                raise BadInput(f"the mean for example {number} needs two reference prompts of its layout.{_REMEDY}")
        return {layout: pools[layout] for layout in needed}


_REMEDY = (
    " A layout is a length with named positions. Give more pairs, one template, or reference=… with prompts of the "
    "same layouts."
)


@dataclass
class Means:
    """Mean activations over the reference prompts of each layout: runs of one row each."""

    runs: dict[object, Run] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, pools: Mapping[object, Sequence[tuple[int, ...]]], kinds: Sequence[str]) -> "Means":
        """Run all reference prompts and average, in float32."""
        return cls({layout: _mean_run(model, prompts, kinds) for layout, prompts in pools.items()})

    def rows(self, pairs: Sequence[Pair], like: Run) -> Run:
        """Lay the means out as a run of these pairs, shaped and typed as another run of them."""
        own = [self.runs[layout_of(pair)] for pair in pairs]
        out = Run([_stacked([run.stream[i] for run in own], stream) for i, stream in enumerate(like.stream)])
        for kind, layers in own[0].seen.items():
            for layer in layers:
                parts = [run.seen[kind][layer] for run in own]
                out.seen[kind][layer] = _stacked(parts, like.stream[layer + 1], width=parts[0].shape[-1])
        for layer in own[0].patterns:
            out.patterns[layer] = _stacked_patterns([run.patterns[layer] for run in own], like.stream[layer + 1])
        return out


def zeros_like_run(model: Model, like: Run, kinds: Sequence[str]) -> Run:
    """Return a run that is zero everywhere, in next to no memory."""
    pairs, length = like.stream[0].shape[:2]
    anatomy = model.anatomy
    zeros = [stream.new_zeros(()) for stream in like.stream]
    out = Run([zero.expand(stream.shape) for zero, stream in zip(zeros, like.stream, strict=True)])
    for kind in kinds:
        for layer, zero in enumerate(zeros[1:]):  # where the layer is
            if kind == "attn.pattern":
                out.patterns[layer] = zero.expand(pairs, anatomy.heads, length, length)
            else:
                point = anatomy.points[kind]
                width = max(point.starts) + point.width if point.starts else anatomy.d_model
                out.seen[kind][layer] = zero.expand(pairs, length, width)
    return out


def _mean_run(model: Model, prompts: Sequence[tuple[int, ...]], kinds: Sequence[str]) -> Run:
    total: Run | None = None
    for part in _parts(prompts):
        given = Prompts.of(part, model.device)
        with workbench(model, given) as bench:
            run = run_lanes(bench, [Lane(given, kinds)])[0]
        total = _added(total, run)
    if total is None:
        raise ValueError("no prompts")
    return _scaled(total, 1 / len(prompts))


def _parts(prompts: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
    for start in range(0, len(prompts), AT_ONCE):
        yield prompts[start : start + AT_ONCE]


def _added(total: Run | None, run: Run) -> Run:
    """Add a run's rows to a running sum of one row."""
    out = Run([stream.float().sum(0, keepdim=True) for stream in run.stream])
    for kind, layers in run.seen.items():
        out.seen[kind] = {layer: value.float().sum(0, keepdim=True) for layer, value in layers.items()}
    out.patterns = {layer: value.float().sum(0, keepdim=True) for layer, value in run.patterns.items()}
    if total is None:
        return out
    for layer, new in enumerate(out.stream):
        total.stream[layer] += new
    for kind, layers in out.seen.items():
        for layer, value in layers.items():
            total.seen[kind][layer] += value
    for layer, value in out.patterns.items():
        total.patterns[layer] += value
    return total


def _scaled(run: Run, factor: float) -> Run:
    tensors = (*run.stream, *(v for layers in run.seen.values() for v in layers.values()), *run.patterns.values())
    for tensor in tensors:
        tensor.mul_(factor)
    return run


def _stacked(parts: Sequence[Tensor], like: Tensor, *, width: int | None = None) -> Tensor:
    """Put rows `[1, pos, width]` of unequal lengths into one tensor as long as `like` [pair, pos, …]."""
    out = like.new_zeros(len(parts), like.shape[1], width or like.shape[-1])
    for row, part in enumerate(parts):
        out[row, : part.shape[1]] = part[0]
    return out


def _stacked_patterns(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    length = like.shape[1]
    out = like.new_zeros(len(parts), parts[0].shape[1], length, length)
    for row, part in enumerate(parts):
        out[row, :, : part.shape[2], : part.shape[3]] = part[0]
    return out
