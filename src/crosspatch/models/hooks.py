"""Read and write the tensor at one side of a module, by hooks that leave with their block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crosspatch.models.anatomy import Point

# Sees the tensor at a point; returns what should stand there instead, or None to leave it.
Visit = Callable[[Tensor], Tensor | None]


def main_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the activation among a module's arguments: the first positional tensor, or `hidden_states`."""
    if args and isinstance(args[0], Tensor):
        return args[0]
    return kwargs["hidden_states"]


def with_main_tensor(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with another activation in the place of the first."""
    if args and isinstance(args[0], Tensor):
        return (value, *args[1:]), kwargs
    return args, kwargs | {"hidden_states": value}


def first_tensor(output: Any) -> Tensor:
    """Return the activation in a module's output: the output itself, or the first of a tuple."""
    return output[0] if isinstance(output, (tuple, list)) else output


def with_first_tensor(output: Any, value: Tensor) -> Any:
    """Return the output with another activation in the place of the first."""
    return type(output)([value, *output[1:]]) if isinstance(output, (tuple, list)) else value


def attach(parent: nn.Module, point: Point, visit: Visit) -> RemovableHandle:
    """Register one hook that shows the point's tensor to `visit`: the whole of it, where ranks hold parts."""
    visit = visit if point.shard is None else point.shard.over(visit, -1)
    module = parent.get_submodule(point.path)
    if point.side == "input":
        return module.register_forward_pre_hook(partial(_before, visit), with_kwargs=True)
    return module.register_forward_hook(partial(_after, visit))


def _before(visit: Visit, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = visit(main_tensor(args, kwargs))
    return None if value is None else with_main_tensor(args, kwargs, value)


def _after(visit: Visit, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    value = visit(first_tensor(output))
    return None if value is None else with_first_tensor(output, value)


@contextmanager
def visiting(visits: Sequence[tuple[nn.Module, Point, Visit]]) -> Iterator[None]:
    """Keep hooks on several points while the block runs; later entries see what earlier ones wrote.

    Hooks are removed however the block ends.
    """
    with ExitStack() as stack:
        for parent, point, visit in visits:
            stack.callback(attach(parent, point, visit).remove)
        yield


def has_foreign_hooks(module: nn.Module) -> tuple[str, ...]:
    """Return the paths of modules on which somebody else keeps forward hooks; those of FSDP change no activation."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return tuple(
        name
        for name, m in module.named_modules()
        if any(not _is_fsdps(hook) for kind in kinds for hook in getattr(m, kind).values())
    )


def _is_fsdps(hook: object) -> bool:
    owner = getattr(hook, "__self__", None)
    home = getattr(hook, "__module__", None) if owner is None else type(owner).__module__
    return str(home).startswith("torch.distributed.fsdp")
