"""Shards: activations of which each rank of a tensor-parallel model holds a part, shown whole and cut again."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crosspatch.core.errors import BadInput

if TYPE_CHECKING:
    from crosspatch.models.anatomy import Anatomy, Point

# The sides of a module at which a style of transformers' tensor-parallel plans leaves each rank its own part.
STYLES: Mapping[str, tuple[str, ...]] = {
    "colwise": ("output",),
    "packed_colwise": ("output",),
    "rowwise": ("input",),
    "packed_rowwise": ("input",),
    "replicated_with_grad_allreduce": ("input", "output"),
    "local_params": (),
    "colwise_gather_output": (),
    "colwise_rep": (),
    "rowwise_split_input": (),
    "rowwise_rep": (),
    "embedding_rowwise": (),
    "embedding_colwise": (),
    "moe_tp_experts": (),
    "moe_identity_expert": (),
    "all_reduce": (),
    "replicate": (),
}
CONTIGUOUS = ("colwise", "rowwise")  # of the styles above: parts laid end to end are the whole


@dataclass(frozen=True)
class Shard:
    """Equal parts of an axis, laid end to end in the order of the ranks of a process group."""

    group: Any
    rank: int
    size: int

    def whole(self, part: Tensor, axis: int) -> Tensor:
        """Return all ranks' parts as one tensor; every rank must ask, in the same order."""
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, part.detach().contiguous(), group=self.group)
        parts[self.rank] = part  # with its graph, if it has one
        return torch.cat(parts, axis)

    def own(self, whole: Tensor, axis: int) -> Tensor:
        """Return this rank's part."""
        return whole.chunk(self.size, axis)[self.rank]

    def over(self, visit: Callable[[Tensor], Tensor | None], axis: int) -> Callable[[Tensor], Tensor | None]:
        """Let a visit that knows only whole tensors act on parts."""

        def act(part: Tensor) -> Tensor | None:
            changed = visit(self.whole(part, axis))
            return None if changed is None else self.own(changed, axis)

        return act


def tensor_parallel(module: nn.Module) -> Shard | None:
    """Return the shards of a module that transformers laid out for tensor parallelism; None for any other."""
    if int(getattr(module, "_tp_size", None) or 1) == 1:
        return None
    mesh: Any = module._device_mesh["tp"]  # pyright: ignore[reportIndexIssue, reportArgumentType]
    return Shard(mesh.get_group(), mesh.get_local_rank(), mesh.size())


def plan_of(module: nn.Module) -> dict[str, str]:
    """Return the style of each module or parameter of a tensor-parallel plan; layers' numbers are `*`.

    Raises:
        BadInput: the model has no plan, or one with styles that are not known here.
    """
    plan: dict[str, str] = dict(getattr(module, "tp_plan", None) or {})
    if not plan:
        raise BadInput(f"{type(module).__name__} has no tensor-parallel plan in transformers. {_ELSE}")
    unknown = sorted(set(plan.values()) - set(STYLES))
    if unknown:
        raise BadInput(
            f"the tensor-parallel plan of {type(module).__name__} has styles whose activations are not known here: "
            f"{', '.join(unknown)}. {_ELSE}"
        )
    return plan


_ELSE = "Lay it out with device_map='auto' on one process, or with fsdp=… on several."


def style_at(plan: Mapping[str, str], path: str) -> str:
    """Return the style of a module by its path; '' for one that the plan does not name."""
    return plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", path), "")


def with_shards(module: nn.Module, anatomy: "Anatomy") -> "Anatomy":
    """Return the anatomy with a shard on every point where ranks hold parts; kinds that cannot be joined are refused.

    Raises:
        BadInput: a plan that is not known here.
    """
    shard = tensor_parallel(module)
    if shard is None:
        return anatomy
    plan = plan_of(module)
    points: dict[str, Point] = {}
    refused = dict(anatomy.refused)
    for kind, point in anatomy.points.items():
        style = style_at(plan, f"{anatomy.blocks}.0.{point.path}")
        if point.side not in STYLES.get(style, ()):
            points[kind] = point
        elif style in CONTIGUOUS and point.starts:
            points[kind] = replace(point, shard=shard)
        else:
            refused[kind] = f"{point.path} is split over ranks in a way ({style}) whose parts cannot be laid end to end"
    heads = points.get("attn.head")
    return replace(anatomy, points=points, refused=refused, heads_shard=heads.shard if heads else None)
