"""Patching one module by hand: one plain hook, and full forwards."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Act = Callable[[Any], Any]
Write = Callable[[Any, Any], Any]


def take_over(base: Any, source: Any) -> Any:
    """Write the source run's value whole."""
    return source


def keep(base: Any, source: Any) -> Any:
    """Write the base run's own value."""
    return base


def at(*index: Any) -> Write:
    """Write some of the source run's numbers into a tensor: `index` says which, an entry an axis."""

    def write(base: Tensor, source: Tensor) -> Tensor:
        value = base.clone()
        value[index] = source[index]
        return value

    return write


def put(values: Any, item: Any, value: Any) -> Any:
    """Return a tuple, list or mapping with one item changed."""
    if isinstance(values, Mapping):
        return type(values)({**values, item: value})
    changed = [*values]
    changed[item] = value
    return type(values)(*changed) if hasattr(values, "_fields") else type(values)(changed)


def hook(part: nn.Module, side: str, item: int | str | None, act: Act) -> Any:
    """Let `act` say what stands at one side of a module: at an argument (None: the first one), or at an item of the
    output (None: at the output itself). It comes before hooks that are there, since transformers' own read outputs.
    """

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        where = item if item is not None else 0 if args else next(iter(kwargs))
        if isinstance(where, int):
            return put(args, where, act(args[where])), kwargs
        return args, kwargs | {where: act(kwargs[where])}

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return act(output) if item is None else put(output, item, act(output[item]))

    if side == "input":
        return part.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
    return part.register_forward_hook(after, prepend=True)


def run(module: nn.Module, inputs: Mapping[str, Any], metric: Callable[[Any], Tensor], *hooked: Any) -> Tensor:
    """Return the metric of one forward with inputs of its own; `hooked` is a hook that leaves afterwards."""
    return run_hooked(module, inputs, metric, [hooked] if hooked else [])


@torch.no_grad()
def run_hooked(
    module: nn.Module, inputs: Mapping[str, Any], metric: Callable[[Any], Tensor], hooks: Sequence[Any]
) -> Tensor:
    """Return the metric of one forward with several hooks that leave afterwards."""
    handles = [hook(*each) for each in hooks]
    try:
        return metric(module(**copy.deepcopy(dict(inputs)))).clone()
    finally:
        for handle in handles:
            handle.remove()


def seen(
    module: nn.Module, inputs: Mapping[str, Any], path: str, side: str, item: int | str | None = None
) -> list[Any]:
    """List what stood at one side of a module, call by call."""
    calls: list[Any] = []

    def note(value: Any) -> Any:
        calls.append(copy.deepcopy(value))
        return value

    run(module, inputs, lambda _: torch.zeros(0), module.get_submodule(path), side, item, note)
    return calls


def naive_module_patch(  # noqa: PLR0917
    module: nn.Module, base: Mapping[str, Any], source: Mapping[str, Any], metric: Callable[[Any], Tensor],
    path: str, side: str, *, call: int | None = 0, item: int | str | None = None, write: Write = take_over,
) -> Tensor:  # fmt: skip
    """Return the metric `[example]` of the base run with `write(base, source)` at one call, or at each (None)."""
    given = seen(module, source, path, side, item)
    count = iter(range(len(given)))

    def act(value: Any) -> Any:
        now = next(count)
        return write(value, given[now]) if call in (None, now) else value

    return run(module, base, metric, module.get_submodule(path), side, item, act)
