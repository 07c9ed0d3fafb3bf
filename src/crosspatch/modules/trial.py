"""Trial: a module with the inputs of its clean and its corrupt run, and a metric of what it gives."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosspatch.core.errors import BadInput, NotFinite, UnknownName
from crosspatch.draw import Display, Displayed
from crosspatch.models.guard import refuse_compiled
from crosspatch.modules.anatomy import Stack, find_stacks, first_attention
from crosspatch.modules.proving import proved
from crosspatch.replay import Recording, outline
from crosspatch.replay.values import tensors
from crosspatch.sites import split_stack

# From what the module gives to one number an example; takes the examples' numbers too, if it has a second parameter.
Score = Callable[..., Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Trial(Displayed):
    """Hold any module, in evaluation mode, with the inputs of `count` pairs and a metric.

    `clean` and `corrupt` are what the module is called with: a tensor, a tuple of arguments or a mapping of keyword
    arguments, of the same shapes. The first axis of each tensor holds the examples (or several entries an example, side
    by side), except of those named in `shared`. `metric(output)` gives `[example]`; a metric with a second parameter is
    told which examples the rows of the output are, `[row]`, so that it can look up their answers. `names` gives
    positions names: one index for all examples, or one each. `lengths` says how many real positions each example has in
    a stack (by its name), so that padding is not patched.

    Raises:
        BadInput: the module is training or compiled, or the two runs' inputs do not match.
    """

    module: nn.Module
    clean: Any
    corrupt: Any
    metric: Score
    count: int
    name: str = "trial"
    metric_name: str = "metric"
    names: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    lengths: Mapping[str, Sequence[int]] = field(default_factory=dict)
    shared: Collection[str] = ()

    def display(self) -> Display:
        """Say what is tried: the module, its inputs' shapes, the metric, the named positions."""
        inputs = ", ".join(str(list(tensor.shape)) for tensor in tensors(self.clean))
        names = ", ".join(f"{name} {place}" for name, place in self.names.items())
        rows = [("module", type(self.module).__name__), ("inputs", inputs), ("metric", self.metric_name)]
        rows += [("positions", names)] if names else []
        return Display(f"Trial {self.name} of {self.count} pairs", ("what", "which"), rows)

    def __post_init__(self) -> None:
        training = next((name or "it" for name, part in self.module.named_modules() if part.training), None)
        if training is not None:
            raise BadInput(f"the module is in training mode ({training} is): call .eval() on it first.")
        refuse_compiled(self.module)
        if self.count < 1:
            raise BadInput(f"a trial of {self.count} pairs: give one at least.")
        shapes = [[tuple(tensor.shape) for tensor in tensors(side)] for side in (self.clean, self.corrupt)]
        if shapes[0] != shapes[1] or not shapes[0]:
            raise BadInput(
                f"the clean run's inputs have shapes {shapes[0]}, the corrupt run's {shapes[1]}: pair them, one tensor "
                "for one, of the same shape."
            )
        for title, many in (*self.names.items(), *self.lengths.items()):
            if not isinstance(many, int) and len(many) != self.count:
                raise BadInput(f"{title!r} has {len(many)} entries for {self.count} pairs: give one for each.")

    @cached_property
    def outline(self) -> Recording:
        """The clean run's calls, without what they gave."""
        handed = first_attention(self.module)
        return outline(self.module, self.clean, count=self.count, shared=self.shared, handed=handed)

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks of blocks that the run goes through; none for a module without any."""
        return tuple(proved(stack, self.outline) for stack in find_stacks(self.outline))

    def stack(self, kind: str) -> Stack:
        """Return the stack that a kind is in.

        Raises:
            UnknownName: the module has no such stack, or the stack no such kind.
            BadInput: the kind is there and refused.
        """
        name = split_stack(kind)[0]
        for stack in self.stacks:
            if kind in stack.kinds:
                return stack
            if stack.name == name and (reason := stack.refused.get(split_stack(kind)[1])):
                raise BadInput(f"{kind} cannot be used on this {type(self.module).__name__}: {reason}.")
        offered = [kind for stack in self.stacks for kind in stack.kinds]
        if not offered:
            raise UnknownName(
                f"{kind}: {type(self.module).__name__} has no stack of blocks. Patch it by module path: patch_modules."
            )
        raise UnknownName.of("site kind", kind, offered)

    def inputs(self, run: str) -> Any:
        """Return what the module is called with in the "clean" or the "corrupt" run."""
        return self.clean if run == "clean" else self.corrupt

    def score(self, output: Any, rows: Sequence[int], run: str) -> Float[Tensor, " row"]:
        """Apply the metric to what a run gave for some examples, in float32.

        Raises:
            BadInput: it does not give one number an example.
            NotFinite: a number is not finite.
        """
        numbers: Int[Tensor, " row"] = torch.tensor(rows, dtype=torch.long)
        value = self.metric(output, numbers) if _takes_rows(self.metric) else self.metric(output)
        if not isinstance(value, Tensor) or value.shape != (len(rows),):
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise BadInput(f"the metric gave {got} for {len(rows)} examples; it must give one number each.")
        if not torch.isfinite(value).all():
            first = rows[int((~torch.isfinite(value)).nonzero()[0])]
            raise NotFinite(f"the metric of the {run} is not finite on example {first}.")
        return value.detach().float().cpu()

    def names_of(self, example: int) -> dict[str, int]:
        """Return the named positions of an example."""
        return {name: at if isinstance(at, int) else int(at[example]) for name, at in self.names.items()}


def _takes_rows(metric: Score) -> bool:
    try:
        parameters = signature(metric).parameters.values()
    except (TypeError, ValueError):  # a metric built into torch
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return len(places) > 1
