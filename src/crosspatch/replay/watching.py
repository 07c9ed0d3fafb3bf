"""See every call of every submodule, and answer it."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

# Is told of a call: the submodule's path, what it is called with, and how to run it; returns what the caller gets.
Handle = Callable[[str, tuple[Any, ...], dict[str, Any], Callable[..., Any]], Any]


@contextmanager
def watching(module: nn.Module, handle: Handle) -> Iterator[None]:
    """Route the calls of all submodules through `handle` while the block runs; the module itself just runs.

    Hooks that others keep on a submodule act around it as ever. A submodule of several names goes by its first.
    """
    with ExitStack() as stack:
        for path, part in module.named_modules():
            if path:
                stack.enter_context(_routed(part, path, handle))
        yield


@contextmanager
def _routed(part: nn.Module, path: str, handle: Handle) -> Iterator[None]:
    own = part.__dict__.get("forward")
    run = part.forward

    part.forward = functools.update_wrapper(functools.partial(_handed, handle, path, run), run)
    try:
        yield
    finally:
        if own is None:
            del part.forward
        else:
            part.forward = own


def _handed(handle: Handle, path: str, run: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return handle(path, args, kwargs, run)
