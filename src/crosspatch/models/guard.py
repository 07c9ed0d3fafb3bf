"""Modules where hooks would be ignored or see the wrong tensors: compiled, wrapped, laid out otherwise, used twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.distributed.tensor import DTensor

from crosspatch.core.errors import BadInput
from crosspatch.models.shards import plan_of, tensor_parallel
from crosspatch.models.weights import is_fsdp

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
_LOAD = "Or let open_model load it: open_model('…', layout=crosspatch.Layout(…))."

_used: WeakKeyDictionary[nn.Module, tuple[int, int]] = WeakKeyDictionary()  # by which thread, how many times at once
_using = Lock()


@contextmanager
def one_thread(module: nn.Module) -> Iterator[None]:
    """Keep a module to this thread: its hooks and its choice of attention are one for all threads.

    Raises:
        BadInput: another thread is using it. Nothing has been changed then.
    """
    me = get_ident()
    with _using:
        owner, times = _used.get(module, (me, 0))
        if owner != me:
            raise BadInput(
                f"another thread is running or patching this {type(module).__name__}, and its hooks would act here: "
                "wait until it is done (a workbench that is served has a thread of its own), or open the model again."
            )
        _used[module] = me, times + 1
    try:
        yield
    finally:
        with _using:
            owner, times = _used.pop(module)
            if times > 1:
                _used[module] = owner, times - 1


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile(module)`: the same parameters, run eagerly, where hooks act."""
    return module._orig_mod if type(module).__name__ == "OptimizedModule" else module  # pyright: ignore[reportReturnType]


def refuse_compiled(module: nn.Module) -> None:
    """Raise if some part is compiled in place: compiled code ignores hooks that come later, without a word.

    Raises:
        BadInput: names the part, and says how to undo it.
    """
    for name, part in module.named_modules():
        forward = part.__dict__.get("forward")
        inside = type(part).__name__ == "OptimizedModule"
        if inside or part._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable"):
            where = f"the part {name!r} of {type(module).__name__}" if name else type(module).__name__
            raise BadInput(
                f"{where} is compiled, and compiled code ignores hooks silently: no patch would act. Give the module "
                "as it was before torch.compile, or undo module.compile() with "
                "`for part in module.modules(): part._compiled_call_impl = None`."
            )


def refuse_unknown(module: nn.Module) -> None:
    """Raise for a module that is wrapped or spread over devices in a way that is not understood here.

    Raises:
        BadInput: says what it is, and what to give instead.
    """
    refuse_compiled(module)
    kind = type(module).__name__
    if kind in _WRAPPERS:
        raise BadInput(
            f"{kind} is a wrapper: give the module inside, `wrapped.module`. To shard weights over processes, use "
            f"torch.distributed.fsdp.fully_shard on each block and on the model. {_LOAD}"
        )
    for name, part in module.named_modules():
        inner = type(part).__name__
        if inner == "PipelineIdentityLayer":
            raise BadInput(f"{kind} is a pipeline stage: {name} is not on this process. {_ONE} {_LOAD}")
        if name and inner in _WRAPPERS:
            raise BadInput(f"{name} is wrapped in {inner}, whose parts hide behind it. {_LOAD}")
    _refuse_mixed(module)
    _refuse_offloaded_above(module)


_ONE = "Spread it with device_map, tensor parallelism or FSDP2 instead."


def _refuse_mixed(module: nn.Module) -> None:
    """Raise unless split weights come from tensor parallelism of transformers, or from FSDP2, and from one of them."""
    split = any(isinstance(parameter, DTensor) for parameter in module.parameters())
    tp, fsdp = tensor_parallel(module) is not None, is_fsdp(module)
    config: Any = getattr(module, "config", None)
    experts = getattr(getattr(config, "distributed_config", None), "ep_size", None) or 1
    kind = type(module).__name__
    if experts > 1:
        raise BadInput(f"{kind} splits its experts over ranks (ep_size={experts}), which is not proved here. {_LOAD}")
    if tp and fsdp:
        raise BadInput(f"{kind} is split by tensor parallelism and by FSDP2 at once: use one of them. {_LOAD}")
    if tp:
        plan_of(module)
    elif split and not fsdp:
        raise BadInput(
            f"{kind} holds parts of weights (DTensor), but neither FSDP2 nor tensor parallelism of transformers put "
            f"them there, so what its activations are is not known. {_LOAD}"
        )


def _refuse_offloaded_above(module: nn.Module) -> None:
    """Raise if weights of blocks are fetched by a module above them: blocks are called by themselves here."""
    for name, part in module.named_modules():
        hook: Any = getattr(part, "_hf_hook", None)
        for each in (*getattr(hook, "hooks", ()), hook):
            if getattr(each, "offload", False) and getattr(each, "place_submodules", False) and _has_blocks(part):
                raise BadInput(
                    f"the whole of {name or type(module).__name__!r} is offloaded as one piece, so its blocks cannot "
                    "be run one by one. Name the blocks in the device map, one by one, or let device_map='auto' do it."
                )


def _has_blocks(part: nn.Module) -> bool:
    return any(isinstance(each, nn.ModuleList) for each in part.modules())
