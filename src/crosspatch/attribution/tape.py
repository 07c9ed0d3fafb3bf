"""Run the base prompts' changed part block by block so that it can be differentiated, and pull gradients back."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from crosspatch.engine.plan import TOKENS_AT_ONCE
from crosspatch.models.attention import Attended
from crosspatch.models.hooks import Visit
from crosspatch.models.packed import Past
from crosspatch.models.runs import Bench, Running

Cotangents = Float[Tensor, "drop token d_model"]


@dataclass
class Tape:
    """One block's forward, recorded: the stream on both sides `[token, d_model]` and what passed its points.

    `seen[kind]` is the very tensor that passed, in the block's own shape; `attended` are the calls of attention.
    """

    entering: Tensor
    leaving: Tensor
    seen: Mapping[str, Tensor]
    attended: Mapping[int, Attended]


@dataclass(frozen=True)
class Recorder:
    """Records blocks on the tokens of one lane; `past` gives the keys and values before its starts.

    `writes[kind]` stands in the place of a kind's activation in the block that is recorded.
    """

    bench: Bench
    lane: Running
    past: Sequence[Past | None]

    def record(
        self,
        layer: int,
        entering: Float[Tensor, "token d_model"],
        *,
        kinds: Collection[str] = (),
        attended: bool = False,
        writes: Mapping[str, Visit] | None = None,
    ) -> Tape:
        """Run block `layer` from a stream, with gradients if they are on; its input is a leaf where it has none yet."""
        if torch.is_grad_enabled() and not entering.requires_grad:
            entering = entering.detach().requires_grad_()
        seen: dict[str, Tensor] = {}
        calls: dict[int, Attended] = {}
        points, job = self.bench.anatomy.points, self.bench.job
        visits = [(points[kind], visit) for kind, visit in (writes or {}).items()]
        visits += [(points[kind], partial(_keep, seen, kind)) for kind in kinds]
        job.see_attended = calls.__setitem__ if attended else None
        try:
            leaving = self.bench.call(
                layer, entering, self.lane.segments, past=self.past[layer], visits=visits, job=job
            )
        finally:
            job.see_attended = None
        return Tape(entering, leaving, seen, calls)


def _keep(seen: dict[str, Tensor], kind: str, value: Tensor) -> Tensor:
    # What is kept lies on the way of the gradient. It is a tensor of its own, since parallel attention and MLP read one
    # tensor, and each is to have its own gradient; and what is handed on may be added to in place.
    seen[kind] = value.view_as(value)
    return seen[kind].clone()


@dataclass
class Pulled:
    """Gradients of a block, one set a cotangent: of its input, of what passed its points, of what attention gave."""

    entering: Cotangents
    seen: dict[str, Float[Tensor, "drop token width"]] = field(default_factory=dict)
    heads: dict[int, Float[Tensor, "drop row query head d_head"]] = field(default_factory=dict)


def pull(tape: Tape, cotangents: Cotangents) -> Pulled:
    """Pull cotangents of what leaves a block back to all that was recorded of it."""
    kinds, calls = list(tape.seen), list(tape.attended)
    outs = [tape.attended[index].out for index in calls]
    entering, *rest = vector_jacobian(tape.leaving, [tape.entering, *tape.seen.values(), *outs], cotangents)
    found = Pulled(entering)
    found.seen = {kind: grad.flatten(1, -2) for kind, grad in zip(kinds, rest, strict=False)}
    found.heads = dict(zip(calls, rest[len(kinds) :], strict=True))
    return found


def vector_jacobian(
    output: Tensor, inputs: Sequence[Tensor], cotangents: Float[Tensor, "drop *shape"], *, keep: bool = False
) -> list[Tensor]:
    """Return the gradients of the inputs for each cotangent, `[drop, …]`; those of inputs that are not used are zero.

    Cotangents are pulled back together, so many at once as make a matrix product large; the graph is used up, unless
    it is to be kept.
    """
    tokens = cotangents.shape[-2]
    parts = cotangents.split(max(1, TOKENS_AT_ONCE.get(output.device.type, TOKENS_AT_ONCE["cpu"]) // tokens))
    found = [_pulled(output, inputs, part, keep=keep or part is not parts[-1]) for part in parts]
    return found[0] if len(found) == 1 else [torch.cat(each) for each in zip(*found, strict=True)]


def _pulled(output: Tensor, inputs: Sequence[Tensor], part: Tensor, *, keep: bool) -> list[Tensor]:
    many = len(part) > 1
    grads = torch.autograd.grad(
        output,
        inputs,
        part if many else part[0],
        is_grads_batched=many,
        retain_graph=keep,
        allow_unused=True,
    )
    grads = grads if many else [None if grad is None else grad[None] for grad in grads]
    return [x.new_zeros(len(part), *x.shape) if g is None else g for g, x in zip(grads, inputs, strict=True)]
